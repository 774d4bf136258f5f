"""Which cells of a design are still to be trained: a function of how the trials of each have ended."""

import heapq
from collections import Counter
from collections.abc import Iterable

TRIES = (
    2  # of a cell whose trials fail, in one call of the command: what failed by chance is had, a bug is not repeated
)


class OpenCells:
    """The cells that have no trial but failed ones, and not too many of these.

    A trial that runs, is complete, was stopped or is infeasible settles its cell; one that failed leaves it open, and
    each call of the command tries such a cell anew.
    """

    def __init__(self, num_cells: int, settled: Iterable[int] = ()) -> None:
        """Args: the number of cells, replicates and all, and those that need no trial."""
        self._num_cells = num_cells
        self._open = sorted(set(range(num_cells)).difference(settled))  # a sorted list is a heap
        self._failures: Counter[int] = Counter()  # in this call

    def __len__(self) -> int:
        return len(self._open)

    def take(self) -> int:
        """Return the first cell of the list that is open; it is settled, until it fails."""
        return heapq.heappop(self._open)

    def failed(self, cell: int) -> None:
        """Open a cell again, whose trial has failed."""
        self._failures[cell] += 1
        if self._failures[cell] < TRIES and cell < self._num_cells:
            heapq.heappush(self._open, cell)

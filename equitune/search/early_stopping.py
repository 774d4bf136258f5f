"""Early stopping for several objectives: which trials go on after a rung. Neither Ray nor Optuna, no clock, no file.

MO-ASHA (Schmucker et al., 2021, arXiv 2106.12639) keeps a share of the trials, rounded up, by their non-dominated rank
among the most recent 1,000 of a rung; within a front, those go first that cover it best: by an epsilon-net (Salinas et
al., 2021) or by their crowding distance (Deb et al., 2002). With one objective it is the stopping variant of ASHA (Li
et al., 2018). Median stops who is worse than the median of the complete trials (Golovin et al., 2017).
"""

import math
from bisect import bisect_right
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from equitune.analysis.pareto import losses
from equitune.config.objectives import Bound
from equitune.config.stopping import SchedulerSpec

Array = npt.NDArray[np.float64]

MOST_RANKED = 1000  # trials of a rung, the most recent: with three objectives 10,000 would take a second and a half


class EarlyStopping:
    """What has been measured at each rung, and who goes on.

    What it knows is rebuilt by `hear` and `complete` from the trials' records; a verdict is given once.
    """

    def __init__(
        self, spec: SchedulerSpec, directions: Mapping[str, str], constraints: Mapping[str, Bound] | None = None
    ) -> None:
        """`directions`: metric -> maximize or minimize, of the objectives."""
        self._spec, self._directions, self._constraints = spec, directions, constraints or {}
        self._rungs: dict[int, dict[int, Array]] = {}  # epoch -> trial number -> losses, then the violation
        self._heard: set[tuple[int, int]] = set()  # trial number and rung, also where there was nothing to judge by
        self._complete: set[int] = set()

    def rungs_before(self, epoch: int) -> tuple[int, ...]:
        return self._spec.rungs(epoch)

    def hear(self, number: int, epoch: int, metrics: Mapping[str, float]) -> bool:
        """Keep what a trial measured after an epoch; False: there is nothing to judge, or it was judged before.

        There is nothing where the epoch is no rung, or an objective has no finite value.
        """
        if self.has_heard(number, epoch) or not self._spec.is_rung(epoch):
            return False
        self._heard.add((number, epoch))
        row = losses([metrics], self._directions)[0]
        if not np.isfinite(row).all():
            return False
        # Of a constraint that was not measured nothing is held against a trial.
        known = [(bound, metrics[name]) for name, bound in self._constraints.items() if name in metrics]
        outside = (max(0.0, bound.violation(value)) for bound, value in known)
        self._rungs.setdefault(epoch, {})[number] = np.append(row, sum(outside))
        return True

    def has_heard(self, number: int, epoch: int) -> bool:
        return (number, epoch) in self._heard

    def complete(self, number: int) -> None:
        """Count a trial that has trained to its end: from now on the median regards it."""
        self._complete.add(number)

    def why_stop(self, number: int, epoch: int) -> str | None:
        """Why a trial that was heard of at a rung does not go on; None: it goes on."""
        if self._spec.name == "median":
            return self._worse_than_median(number, self._rungs[epoch])
        seen = dict(list(self._rungs[epoch].items())[-MOST_RANKED:])
        if len(seen) < self._spec.fewest:
            return None
        table, mine = np.stack(list(seen.values())), list(seen).index(number)
        ranks = ranked(table)
        place, kept = place_of(mine, table, ranks, self._spec.ties), math.ceil(len(seen) / self._spec.reduction)
        if place < kept:
            return None
        goes_on = "the first goes on" if kept == 1 else f"the first {kept} go on"
        return (
            f"rank {ranks[mine] + 1} of {ranks.max() + 1}, place {place + 1} of {len(seen)} trials, of which {goes_on}"
        )

    def _worse_than_median(self, number: int, seen: Mapping[int, Array]) -> str | None:
        others = [other for other in seen if other in self._complete and other != number]
        if len(others) < self._spec.fewest:
            return None
        sums = scalarised(np.stack([seen[other] for other in [*others, number]]))
        median = float(np.median(sums[:-1]))
        if sums[-1] <= median:
            return None
        how = "losses, scaled to their range and added" if len(self._directions) > 1 else "scaled loss"
        return f"{sums[-1]:.2f} is worse than {median:.2f}, the median of {len(others)} complete trials there ({how})"


def ranked(table: Array) -> npt.NDArray[np.int64]:
    """Return the non-dominated rank of each row, from 0. Rows that violate constraints come after all others, by
    violation.

    O(n log n) for two objectives, O(n^2) else.

    Args:
        table: (n, objectives + 1), finite: losses, lower is better, then the violation, 0 within the constraints.
    """
    ranks = np.zeros(len(table), dtype=np.int64)
    inside, outside = np.flatnonzero(table[:, -1] == 0), np.flatnonzero(table[:, -1] > 0)
    losses_in_order, index = np.unique(table[inside, :-1], axis=0, return_inverse=True)
    ranks[inside] = _chains(losses_in_order)[index]
    first = ranks[inside].max(initial=-1) + 1
    ranks[outside] = first + np.unique(table[outside, -1], return_inverse=True)[1]
    return ranks


def _chains(rows: Array) -> npt.NDArray[np.int64]:
    """How many rows the longest chain has in which each dominates the next and the last dominates this one: its rank.

    `rows` differ and stand in lexicographic order, so that whatever dominates a row stands before it.
    """
    ranks = np.zeros(len(rows), dtype=np.int64)
    if rows.shape[1] == 2:
        lowest: list[float] = []  # of the second objective, by rank; it rises with the rank
        for index, second in enumerate(rows[:, 1].tolist()):
            ranks[index] = bisect_right(lowest, second)
            lowest[ranks[index] : ranks[index] + 1] = [second]
        return ranks
    for index, row in enumerate(rows):
        dominating = (rows[:index] <= row).all(axis=1)
        ranks[index] = ranks[:index][dominating].max(initial=-1) + 1
    return ranks


def place_of(mine: int, table: Array, ranks: npt.NDArray[np.int64], ties: str) -> int:
    """Return the place of a row, from 0: by rank, then by how well it covers its front. Equal rows share one."""
    members = np.flatnonzero(ranks == ranks[mine])
    front = table[members, :-1]
    order = epsilon_net(front) if ties == "epsilon_net" else crowded(front)
    equal = (table[members[order]] == table[mine]).all(axis=1)
    return int((ranks < ranks[mine]).sum() + equal.argmax())


def epsilon_net(front: Array) -> list[int]:
    """Return the order of the rows of a front (n, objectives): the best in the first objective, then always the one
    that is
    farthest from those before it. Distances are Euclidean, each objective scaled to its range on the front."""
    scaled = _scaled(front)
    order = [int(np.lexsort(scaled.T[::-1])[0])]
    distances = np.linalg.norm(scaled - scaled[order[0]], axis=1)
    distances[order[0]] = -1.0
    while len(order) < len(front):
        farthest = int(distances.argmax())
        order.append(farthest)
        distances = np.minimum(distances, np.linalg.norm(scaled - scaled[farthest], axis=1))
        distances[order] = -1.0
    return order


def crowded(front: Array) -> list[int]:
    """Return the order of the rows of a front (n, objectives): its ends, then by crowding distance, most room first."""
    scaled = _scaled(front)
    room = np.zeros(len(front))
    for column in scaled.T:
        order = np.argsort(column, kind="stable")
        room[order[[0, -1]]] = np.inf
        room[order[1:-1]] += column[order[2:]] - column[order[:-2]]
    return [int(index) for index in np.argsort(-room, kind="stable")]


def scalarised(table: Array) -> Array:
    """One loss a row: the objectives' losses, each scaled to its range in the table, added; and the violation, likewise
    scaled, which weighs more than all of them together."""
    scaled = _scaled(table)
    weights = np.ones(table.shape[1])
    weights[-1] = table.shape[1]
    return np.asarray(scaled @ weights)


def _scaled(table: Array) -> Array:
    """Each column from 0 to 1; one without a range is 0."""
    low, span = table.min(axis=0), np.ptp(table, axis=0)
    return (table - low) / np.where(span > 0, span, 1.0)

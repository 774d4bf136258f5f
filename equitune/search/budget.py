"""Budgets: how long a study has run, and how much its front still grows. Whichever is used up first ends it."""

from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from equitune.analysis.hypervolume import Hypervolume, hypervolume
from equitune.config.record import FORMAT
from equitune.config.search import SearchSpec
from equitune.records.checked import DamagedError, read_json
from equitune.records.folder import write_json
from equitune.records.place import Place

Losses = npt.NDArray[np.float64]

SAVE_S = 5.0  # a driver that is killed forgets no more than this


class Usage:
    """The time that a study has taken, over all of its drivers, kept in a file.

    Attributes:
        wall_s: seconds that a driver was at work.
        gpu_s: GPUs times seconds of its trials, those included that did not end.
    """

    def __init__(self, file: Place, now: Callable[[], float]) -> None:
        """`now`: seconds on a clock of which only differences count."""
        self._file, self._now = file, now
        self.wall_s = self.gpu_s = 0.0
        try:
            known = read_json(file)
            self.wall_s, self.gpu_s = float(known["wall_s"]), float(known["gpu_s"])
        except (DamagedError, ValueError, KeyError, TypeError):
            pass  # there is none yet, or it cannot be read: what was used is the user's to remember
        self._counted = self._saved = now()

    def count(self, gpus: float) -> None:
        """Add the time since the last call, during which trials had so many GPUs; write it down now and then."""
        now = self._now()
        passed_s, self._counted = max(0.0, now - self._counted), now
        self.wall_s += passed_s
        self.gpu_s += passed_s * gpus
        if now - self._saved >= SAVE_S:
            self.save()

    def save(self) -> None:
        self._saved = self._now()
        with suppress(OSError):  # a full disk is reported by what it stops
            write_json(self._file, {"format": FORMAT, "wall_s": self.wall_s, "gpu_s": self.gpu_s})

    def used_up(self, search: SearchSpec) -> str | None:
        """Return the budget of time that is used up, such as `hours: 2.0 of 2.0`; None: there is time left."""
        for name, used_s, hours in (
            ("hours", self.wall_s, search.hours),
            ("gpu_hours", self.gpu_s, search.gpu_hours),
        ):
            if hours is not None and used_s >= hours * 3600:
                return f"{name}: {used_s / 3600:.3g} of {hours:.3g}"
        return None


class Growth:
    """The hypervolume of a study as its trials end, and whether that is enough: once so, it stays so."""

    def __init__(self, search: SearchSpec, reference: Sequence[float | None], num_brought: int = 0) -> None:
        """Args:
        search: says what is enough.
        reference: a loss for each objective; None: the worst of any trial so far.
        num_brought: how many trials, the first to be added, a warm start has brought: they make no plateau.
        """
        self._target, self._plateau, self._reference = search.hypervolume, search.plateau, reference
        self._first_before = max(1, num_brought)
        self._losses: list[Losses] = []
        self._curve: list[float] = []  # after each trial, where the whole reference point is given
        given = [loss for loss in reference if loss is not None]
        self._known = Hypervolume(given) if len(given) == len(reference) else None
        self.is_asked = self._target is not None or self._plateau is not None
        self.had_enough: str | None = None  # such as `hypervolume: 0.61 of 0.6`; None: trials go on

    def add(self, losses: Losses) -> None:
        """Take the losses (objectives,) of a trial that has ended: NaN where it does not count."""
        if not self.is_asked or self.had_enough:
            return
        self._losses.append(losses)
        if self._known:
            self._known.add(losses)
            self._curve.append(self._known.value)
        self.had_enough = self._enough(len(self._losses))

    def _enough(self, count: int) -> str | None:
        reached = self._at(count)
        if self._target is not None and reached >= self._target:
            return f"hypervolume: {reached:.4g} of {self._target:.4g}"
        if self._plateau is not None and count - self._plateau.trials >= self._first_before:
            before = self._at(count - self._plateau.trials)
            if before > 0 and reached - before <= self._plateau.gain * before:
                gained = (reached - before) / before
                return f"plateau: {gained:.2%} of hypervolume gained by the last {self._plateau.trials} trials"
        return None

    def _at(self, count: int) -> float:
        """Return the hypervolume of the first so many, below the reference point of all so far."""
        if self._known:
            return self._curve[count - 1]
        table = np.array(self._losses)
        known = table[np.isfinite(table).all(axis=1)]
        if not len(known):
            return 0.0
        worst = [high if given is None else given for given, high in zip(self._reference, known.max(0), strict=True)]
        return hypervolume(table[:count], worst)

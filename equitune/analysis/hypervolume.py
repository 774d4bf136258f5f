"""Hypervolume: how much of what is worse than nothing but a reference point the trials beat; exact, in any dimension.

All is in losses, lower is better. It is the measure of the union of the boxes between each point and the reference
point, so a point that does not beat the reference point in every objective adds nothing.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from equitune.analysis.pareto import losses as losses_of
from equitune.analysis.pareto import non_dominated, objective_values
from equitune.records.reader import StudyRecord, TrialRecord

Array = npt.NDArray[np.float64]


class Staircase:
    """The non-dominated points of a plane and the area that they dominate below a reference point; O(log n) a point."""

    def __init__(self, reference: Sequence[float]) -> None:
        x, y = reference
        self.area = 0.0
        # From left to right, each lower than the one before; the walls at both ends never go.
        self._x, self._y = [-math.inf, x], [y, -math.inf]

    def add(self, x: float, y: float) -> float:
        """Add a point that beats the reference point in both; return the area that it alone dominates."""
        first = bisect_left(self._x, x)  # the first step that is not left of it
        after = first
        if self._y[first - 1] <= y or (self._x[first] == x and self._y[first] <= y):
            return 0.0
        gained, left, height = 0.0, x, self._y[first - 1]
        while self._y[after] >= y:  # steps that it dominates
            gained += (self._x[after] - left) * (height - y)
            left, height = self._x[after], self._y[after]
            after += 1
        gained += (self._x[after] - left) * (height - y)
        self._x[first:after] = [x]
        self._y[first:after] = [y]
        self.area += gained
        return gained


class Hypervolume:
    """The hypervolume of points that come one after another.

    A point costs O(log n) for two objectives and about O(n) to O(n log n) for three, n being the size of the front.
    """

    def __init__(self, reference: Sequence[float]) -> None:
        self.reference = _checked(reference)
        self.value = 0.0
        self._stairs = Staircase(self.reference.tolist()) if len(self.reference) == 2 else None
        self._front = np.empty((0, len(self.reference)))

    def add(self, point: Sequence[float] | Array) -> float:
        """Add a point; return what it added to the hypervolume: 0 where it is dominated, or has no value."""
        row = np.asarray(point, dtype=np.float64)
        if not (np.isfinite(row).all() and (row < self.reference).all()):
            return 0.0
        if self._stairs is not None:
            gained = self._stairs.add(*row.tolist())
        elif (self._front <= row).all(axis=1).any():
            return 0.0
        else:
            gained = _exclusive(row, self._front, self.reference)
            kept = self._front[~(self._front >= row).all(axis=1)]
            self._front = np.concatenate([kept, row[None]])
        self.value += gained
        return gained


def hypervolume(losses: Array, reference: Sequence[float] | Array) -> float:
    """Return the volume that points dominate below a reference point.

    Two objectives by a sweep, three by a sweep over planes (Fonseca, Paquete and Lopez-Ibanez, 2006), O(n log n) both;
    more by exclusive volumes, each in one dimension less (While, Bradstreet and Barone, 2012).

    Args:
        losses: (n, objectives), lower is better; a row with a NaN or an infinity does not count.
        reference: (objectives,), finite.

    Raises:
        ValueError: the reference point is not finite, or has another number of objectives.
    """
    worst = _checked(reference)
    if losses.ndim != 2 or losses.shape[1] != len(worst):
        raise ValueError(f"losses {losses.shape} need a reference point of their objectives, but got {worst.shape}")
    inside = losses[np.isfinite(losses).all(axis=1) & (losses < worst).all(axis=1)]
    return _volume(inside, worst)


def _volume(points: Array, reference: Array) -> float:
    """Return the same of points that all beat the reference point."""
    if not len(points):
        return 0.0
    if len(reference) == 1:
        return float(reference[0] - points.min())
    if len(reference) == 2:
        stairs = Staircase(reference.tolist())
        for x, y in points.tolist():
            stairs.add(x, y)
        return stairs.area
    if len(reference) == 3:
        return _volume_by_planes(points, reference)
    front = np.unique(points, axis=0)
    front = front[non_dominated(front)]
    front = front[np.argsort(-front[:, -1])]  # the worst in the last objective first: it ends where the next begin
    heights = reference[-1] - front[:, -1]
    flat, below = front[:, :-1], reference[:-1]
    return math.fsum(
        float(height) * _exclusive(row, flat[index + 1 :], below)
        for index, (height, row) in enumerate(zip(heights, flat, strict=True))
    )


def _volume_by_planes(points: Array, reference: Array) -> float:
    """Sweeps a plane up the third objective: what its section dominates grows, a point at a time."""
    stairs, volume = Staircase(reference[:2].tolist()), 0.0
    top = float(reference[2])
    for x, y, z in points[np.argsort(points[:, 2], kind="stable")].tolist():
        volume += stairs.add(x, y) * (top - z)
    return volume


def _exclusive(row: Array, others: Array, reference: Array) -> float:
    """Return what a point dominates and no other one does."""
    return float(np.prod(reference - row)) - _volume(np.maximum(row, others), reference)


def _checked(reference: Sequence[float] | Array) -> Array:
    worst = np.asarray(reference, dtype=np.float64)
    if worst.ndim != 1 or not len(worst) or not np.isfinite(worst).all():
        raise ValueError(f"a reference point is a finite number for each objective, but got {reference}")
    return worst


@dataclass(frozen=True)
class Reference:
    """A study's reference point.

    Attributes:
        point: value by objective, in its own direction; None: no complete trial has every objective.
        given: the objectives whose value the study's file gives; of the others it is the worst of any complete trial.
    """

    point: dict[str, float] | None
    given: tuple[str, ...]

    def losses(self, study: StudyRecord) -> Array:
        """Return the point as losses, (objectives,)."""
        row: Array = losses_of([self.point or {}], study.objectives)[0]
        return row


@dataclass(frozen=True)
class Step:
    """One trial that made the hypervolume grow.

    Attributes:
        trial: its number.
        ended: how many trials had ended with it.
        hours: since the first trial began, pauses included.
        value: the hypervolume from then on.
    """

    trial: int
    ended: int
    hours: float
    value: float


def reference_point(study: StudyRecord) -> Reference:
    """Return what the study gives for an objective, else the worst value of any complete trial."""
    given = {name: float(value) for name, value in study.references.items() if name in study.objectives}
    table = _losses(study, [trial for trial in study.trials if trial.state == "COMPLETE"])
    known = table[np.isfinite(table).all(axis=1)]
    if not len(known):
        return Reference(None, tuple(given))
    signs = losses_of([dict.fromkeys(study.objectives, 1.0)], study.objectives)[0]
    worst = dict(zip(study.objectives, (known.max(axis=0) * signs).tolist(), strict=True))
    return Reference(worst | given, tuple(given))


def over_time(study: StudyRecord, reference: Reference | None = None) -> list[Step]:
    """How the hypervolume grew, trial by trial in the order in which they ended, below one reference point.

    Trials that violate a constraint count in none of it.
    """
    point = reference or reference_point(study)
    if point.point is None:
        return []
    began = min(trial.started for trial in study.trials)
    known = Hypervolume(point.losses(study).tolist())
    feasible = {trial.number for trial in study.feasible()}
    steps = []
    order = sorted(study.ended(), key=lambda trial: (ended_at(trial), trial.number))
    for count, (trial, row) in enumerate(zip(order, _losses(study, order), strict=True), 1):
        if trial.number in feasible and known.add(row) > 0:
            steps.append(Step(trial.number, count, max(0.0, ended_at(trial) - began) / 3600, known.value))
    return steps


def ended_at(trial: TrialRecord) -> float:
    """When a trial ended, as Unix time in seconds: its last epoch, and then its measures."""
    seconds = trial.result.seconds if trial.result else {}
    if trial.epochs:
        return trial.epochs[-1].time + seconds.get("measure", 0.0)
    return trial.started + sum(seconds.values())


def _losses(study: StudyRecord, trials: list[TrialRecord]) -> Array:
    return losses_of([objective_values(study, trial) for trial in trials], study.objectives)

"""The Pareto front: the trials that no other trial beats in every objective."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from equitune.records.reader import StudyRecord, TrialRecord

DECIMALS = 9  # the error of an exact network is rounding, 1e-14 or so: which of two is smaller says nothing


def non_dominated(losses: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which rows no other row dominates: is nowhere worse and somewhere better.

    Args:
        losses: (n, objectives), lower is better; rows with a NaN are never on the front. Equal rows are all on it.
    """
    front = np.zeros(len(losses), dtype=np.bool_)
    left = np.flatnonzero(np.isfinite(losses).all(axis=1))
    left = left[np.lexsort(losses[left].T[::-1])]
    while left.size:  # the first in order is dominated by none of the others; what it dominates leaves with it
        rows, best = losses[left], losses[left[0]]
        front[left[(rows == best).all(axis=1)]] = True
        left = left[(rows < best).any(axis=1)]
    return front


def losses(values: Sequence[Mapping[str, float | None]], objectives: Mapping[str, str]) -> npt.NDArray[np.float64]:
    """Objective values as losses (n, objectives): what is maximised changes its sign, what is missing is NaN.

    They are rounded to DECIMALS, so that two exact networks are equal in their error.
    """
    signs = [-1.0 if direction == "maximize" else 1.0 for direction in objectives.values()]
    rows = [[np.nan if row.get(name) is None else row[name] for name in objectives] for row in values]
    return np.round(np.array(rows, dtype=np.float64).reshape(len(rows), len(signs)), DECIMALS) * signs


def front(study: StudyRecord) -> list[TrialRecord]:
    """Return the trials on the Pareto front, the best in the first objective first; who violates a constraint is on
    none.
    """
    feasible = study.feasible()
    table = losses([objective_values(study, trial) for trial in feasible], study.objectives)
    order = np.lexsort(table.T[::-1])
    on_front = non_dominated(table)
    return [feasible[index] for index in order if on_front[index]]


def objective_values(study: StudyRecord, trial: TrialRecord) -> dict[str, float | None]:
    """Return a trial's objectives by name; None where one could not be measured."""
    return {name: trial.metrics[name].value if name in trial.metrics else None for name in study.objectives}

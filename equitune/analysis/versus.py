"""Studies beside each other: their fronts below one reference point, and how their hypervolumes differ."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from equitune.analysis.arms import CONFIDENCE
from equitune.analysis.hypervolume import hypervolume
from equitune.analysis.pareto import DECIMALS
from equitune.errors import UserError
from equitune.records.reader import StudyRecord, TrialRecord

Array = npt.NDArray[np.float64]

DRAWS = 499
REACH = 3.0  # standard errors: a trial that even so far to the better is dominated never counts


@dataclass(frozen=True)
class Versus:
    """One study's hypervolume beside the first one's.

    Attributes:
        difference: this study's minus the first one's.
        low, high: 95 % basic bootstrap interval: each objective of each trial is drawn anew from a normal distribution
            with its standard error over images. It says how sure the measured values are, not what another seed gives.
        trials: complete ones that keep every constraint.
    """

    name: str
    hypervolume: float
    difference: float
    low: float
    high: float
    trials: int


def versus(studies: Sequence[StudyRecord]) -> tuple[dict[str, float], list[Versus]]:
    """Return the reference point, the worst value of any trial of any study, and each study beside the first.

    Raises:
        UserError: the studies share no objective, or one of them has no complete trial.
    """
    objectives = shared_objectives(studies)
    signs = np.array([-1.0 if direction == "maximize" else 1.0 for direction in objectives.values()])
    tables = [_table(study, list(objectives)) for study in studies]
    for study, (values, _) in zip(studies, tables, strict=True):
        if not len(values):
            raise UserError(f"study {study.name} has no complete trial to compare: wait for one, or leave it out")
    losses = [np.round(values, DECIMALS) * signs for values, _ in tables]
    worst = np.max([table.max(axis=0) for table in losses], axis=0)
    found, drawn = [], []
    for index, (table, (_, errors)) in enumerate(zip(losses, tables, strict=True)):
        near = table[_may_count(table, errors)], errors[_may_count(table, errors)]
        rng = np.random.default_rng(index)
        drawn.append(
            np.array([hypervolume(near[0] + near[1] * rng.standard_normal(near[0].shape), worst) for _ in range(DRAWS)])
        )
        found.append(hypervolume(table, worst))
    result = []
    for study, value, draws, table in zip(studies, found, drawn, losses, strict=True):
        difference = value - found[0]
        low, high = np.quantile(draws - drawn[0], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        ends = (0.0, 0.0) if study is studies[0] else (2 * difference - high, 2 * difference - low)
        result.append(Versus(study.name, value, difference, float(ends[0]), float(ends[1]), len(table)))
    return dict(zip(objectives, (worst * signs).tolist(), strict=True)), result


def shared_objectives(studies: Sequence[StudyRecord]) -> dict[str, str]:
    """Return the objectives that every study has, in the order of the first.

    Raises:
        UserError: there is none.
    """
    shared = {
        name: direction
        for name, direction in studies[0].objectives.items()
        if all(study.objectives.get(name) == direction for study in studies)
    }
    if not shared:
        said = "; ".join(f"{study.name}: {', '.join(study.objectives)}" for study in studies)
        raise UserError(f"the studies share no objective, so their fronts cannot be compared ({said})")
    return shared


def _table(study: StudyRecord, names: list[str]) -> tuple[Array, Array]:
    """Values and standard errors (trials, objectives) of the trials that have every value and violate nothing."""
    rows = [_row(trial, names) for trial in study.feasible()]
    table = np.array([row for row in rows if row is not None], dtype=np.float64).reshape(-1, 2, len(names))
    return table[:, 0], table[:, 1]


def _row(trial: TrialRecord, names: list[str]) -> tuple[list[float], list[float]] | None:
    values, errors = [], []
    for name in names:
        metric = trial.metrics.get(name)
        if metric is None or metric.value is None:
            return None
        values.append(metric.value)
        errors.append(metric.stderr or 0.0)
    return values, errors


def _may_count(losses: Array, errors: Array) -> npt.NDArray[np.bool_]:
    """Which rows some draw may put on the front."""
    hopeful = losses - REACH * errors
    return ~np.array([bool((losses + REACH * errors < row).all(axis=1).any()) for row in hopeful], dtype=np.bool_)

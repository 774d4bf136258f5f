"""What the search is told of a trial's end, and whether a record still says the same."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import optuna
from optuna.trial import FrozenTrial, TrialState

from equitune.analysis.pareto import losses
from equitune.config.study import StudySpec
from equitune.results.values import TrialResult, untimed

# What each state is told as. INFEASIBLE also gets a violated constraint, by its cause: TPE proposes again what FAILs.
STATES = {
    "COMPLETE": TrialState.COMPLETE,
    "PRUNED": TrialState.PRUNED,
    "INFEASIBLE": TrialState.PRUNED,
    "FAILED": TrialState.FAIL,
}
TOLD = "told"  # in the provenance of a record that was made again: the values that the search had been told before


@dataclass(frozen=True)
class Telling:
    """A trial's end as Optuna keeps it: `values` where it is complete, violated constraints by name."""

    state: TrialState
    values: list[float] | None
    constraints: dict[str, float]


def telling(spec: StudySpec, result: TrialResult) -> Telling:
    """Return what the search is told of a result."""
    state, values, constraints = STATES[result.state], objective_values(spec, result), violations(spec, result)
    if result.state == "INFEASIBLE":
        constraints[result.cause or "infeasible"] = 1.0  # records from before have no cause
    elif result.state == "COMPLETE" and values is None:
        constraints["unmeasured"] = 1.0
        state = TrialState.PRUNED
    return Telling(state, values if state == TrialState.COMPLETE else None, constraints)


def contradiction(spec: StudySpec, result: TrialResult, told: FrozenTrial, *, by_the_clock: bool = True) -> str | None:
    """Return what a record says otherwise than the search was told, to the last bit; None where it is nothing.

    Args:
        spec: the study.
        result: the record.
        told: the ended trial in the search's storage.
        by_the_clock: compares also what a clock has measured, which differs from one training to another.
    """
    if result.provenance.get(TOLD) == values_of(told):
        return None  # the record was made again, and what differs has been said
    found = telling(spec, result)
    if (found.state == TrialState.COMPLETE) != (told.state == TrialState.COMPLETE):
        return f"it ended {result.state}, but the search was told {told.state.name}"
    compared = result.metrics if by_the_clock else untimed(result.metrics)
    pairs = list(zip(spec.objectives, found.values or [], told.values or [], strict=False))
    pairs += [
        (f"distance to {name}'s bound", found.constraints[name], told.constraints[name])
        for name in spec.constraints
        if name in compared and name in found.constraints and name in told.constraints
    ]
    for name, here, there in pairs:
        if here != there and (name in compared or name not in spec.objectives):
            return f"its {name} is {here!r}, but the search was told {there!r}"
    return None


def values_of(told: FrozenTrial) -> str:
    """Return how a trial ended in the search's storage, as text."""
    return json.dumps([told.state.name, told.values])


def objective_values(spec: StudySpec, result: TrialResult) -> list[float] | None:
    """Return the objectives in the study's order; None if one of them has no value."""
    values = [result.metrics[name].value if name in result.metrics else None for name in spec.objectives]
    if any(value is None or not math.isfinite(value) for value in values):
        return None
    return values  # type: ignore[return-value]


def violations(spec: StudySpec, result: TrialResult) -> dict[str, float]:
    """How far a trial lies outside each constraint, at most 0 within; of one that did not complete, where it is known.

    A complete trial without the metric counts as outside.
    """
    known = {name: metric.value for name, metric in result.metrics.items()}
    if result.state == "COMPLETE":
        known = dict.fromkeys(spec.constraints) | known
    return {name: bound.violation(known[name]) for name, bound in spec.constraints.items() if name in known}


def reference_losses(spec: StudySpec) -> list[float | None]:
    """Return the study's references as losses; None for an objective that has none."""
    signs = {name: -1.0 if direction == "maximize" else 1.0 for name, direction in spec.directions.items()}
    return [signs[name] * spec.references[name] if name in spec.references else None for name in spec.objectives]


def losses_of(spec: StudySpec, values: Sequence[float] | None) -> npt.NDArray[np.float64]:
    """Return the objectives of a trial as losses, (objectives,); NaN where it does not count."""
    known = dict(zip(spec.objectives, values, strict=True)) if values else {}
    row: npt.NDArray[np.float64] = losses([known], spec.directions)[0]
    return row


def ended_values(study: optuna.Study) -> list[list[float] | None]:
    """Return the objectives of the trials that have ended, in that order; None for one that does not count."""
    ended = [trial for trial in study.get_trials(deepcopy=False) if trial.datetime_complete]
    ended.sort(key=lambda trial: (trial.datetime_complete, trial.number))
    return [trial.values if all(value <= 0 for value in trial.constraints.values()) else None for trial in ended]

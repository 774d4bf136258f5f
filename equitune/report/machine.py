"""A study for machines."""

from typing import Any

from equitune.analysis.pareto import front
from equitune.records.reader import StudyRecord
from equitune.report import arms


def as_json(study: StudyRecord, against: int = 0) -> dict[str, Any]:
    """Return what `equitune show --json` prints: a stable interface, to which keys may be added.

    Raises:
        UserError: there is no arm `against` which to take differences.
    """
    members = {trial.number for trial in front(study)}
    return {
        "study": study.name,
        "state": study.state,
        "objectives": study.objectives,
        "references": study.references,
        "constraints": {name: bound.given() for name, bound in study.constraints.items()},
        "trials": [
            {
                "number": trial.number,
                "state": trial.state,
                "reason": trial.reason,
                "params": trial.config.params,
                "metrics": {
                    name: {"value": metric.value, "stderr": metric.stderr, "n": metric.n}
                    for name, metric in trial.metrics.items()
                },
                "amounts": {
                    layer: {"before": amount.before, "after": amount.after, "unit": amount.unit}
                    for layer, amount in trial.amounts.items()
                },
                "exact": {
                    symmetry: {"broken_by": verdict.broken_by, "loosened_by": verdict.loosened_by}
                    for symmetry, verdict in trial.exact.items()
                },
                "violates": study.violations(trial),
                "front": trial.number in members,
            }
            for trial in study.trials
        ],
        "arms": arms.as_json(study, against) if study.replicates > 1 else [],
        "damaged": list(study.damaged),
    }

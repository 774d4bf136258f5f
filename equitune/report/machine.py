"""A study for machines."""

from typing import Any

from equitune.analysis.pareto import front
from equitune.records.reader import StudyRecord


def as_json(study: StudyRecord) -> dict[str, Any]:
    """What `equitune show --json` prints: a stable interface, to which keys may be added."""
    members = {trial.number for trial in front(study)}
    return {
        "study": study.name,
        "state": study.state,
        "objectives": study.objectives,
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
                "front": trial.number in members,
            }
            for trial in study.trials
        ],
    }

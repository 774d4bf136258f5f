"""What a study had reached after each of its trials, as points of its own run: against the number of ended trials."""

from collections.abc import Iterator
from dataclasses import replace

from equitune.analysis.hypervolume import ended_at, hypervolume
from equitune.analysis.pareto import front, losses, objective_values
from equitune.records.reader import StudyRecord, TrialRecord
from equitune.tracking.store import Point


class Progress:
    """Counts the trials in as they end, each once: what was said of a step never changes."""

    def __init__(self, steps_sent: int = 0) -> None:
        """`steps_sent`: how many steps the store has; they are counted again, and not said again."""
        self._steps_sent = steps_sent
        self._counted: set[int] = set()
        self._members: list[TrialRecord] = []
        self._complete: list[dict[str, float]] = []  # the worst value of each objective, where there is one
        self._num_complete = 0
        self._trial_hours = 0.0

    def points(self, study: StudyRecord) -> list[Point]:
        """Return the points of the trials that have ended since the last call."""
        new = [trial for trial in study.ended() if trial.number not in self._counted]
        found: list[Point] = []
        for trial in sorted(new, key=lambda trial: (ended_at(trial), trial.number)):
            self._count(study, trial)
            if len(self._counted) > self._steps_sent:
                step, time_s = len(self._counted), ended_at(trial)
                found += [Point(name, value, time_s, step) for name, value in self._values(study)]
        return found

    def _count(self, study: StudyRecord, trial: TrialRecord) -> None:
        self._counted.add(trial.number)
        self._trial_hours += _seconds(trial) / 3600
        if trial.state != "COMPLETE":
            return
        self._num_complete += 1
        self._members = front(replace(study, trials=[*self._members, trial]))
        values = objective_values(study, trial)
        if all(value is not None for value in values.values()):
            self._complete = [_worst(study, [*self._complete, values])]  # type: ignore[list-item]

    def _values(self, study: StudyRecord) -> Iterator[tuple[str, float]]:
        for name, direction in study.objectives.items():
            values = [value for trial in self._members if (value := objective_values(study, trial)[name]) is not None]
            if values:
                yield f"best_{name}", max(values) if direction == "maximize" else min(values)
        if self._complete and len(study.objectives) > 1:
            yield "hypervolume", self._hypervolume(study)
        yield "front_size", float(len(self._members))
        if (gpus := study.info.get("gpus_of_a_trial")) is not None:
            yield "gpu_hours", self._trial_hours * gpus
        yield "trial_hours", self._trial_hours
        yield "trials_complete", float(self._num_complete)
        yield "trials_ended", float(len(self._counted))  # the last of a step: who finds it finds the others

    def _hypervolume(self, study: StudyRecord) -> float:
        """Below the study's reference values; where it gives none, below the worst of the trials until then."""
        reference = losses([self._complete[0] | study.references], study.objectives)[0]
        members = losses([objective_values(study, trial) for trial in self._members], study.objectives)
        return hypervolume(members, reference)


def _worst(study: StudyRecord, rows: list[dict[str, float]]) -> dict[str, float]:
    return {
        name: (min if direction == "maximize" else max)(row[name] for row in rows)
        for name, direction in study.objectives.items()
    }


def _seconds(trial: TrialRecord) -> float:
    """Return what a trial took: all its epochs, also those before an interruption, and its building and measuring."""
    seconds = dict(trial.result.seconds) if trial.result else {}
    fit_s = seconds.pop("fit", 0.0)
    return max(fit_s, sum(epoch.train_s for epoch in trial.epochs)) + sum(seconds.values())

"""Arms: trials of equal parameters, which differ in their seed alone, and their intervals over replicates."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from equitune.analysis.pareto import front
from equitune.errors import UserError
from equitune.records.reader import StudyRecord, TrialRecord
from equitune.results.values import Measurement

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """The mean of n numbers with Student's 95 % interval, which holds for normal numbers; NaN is what n is too few for.

    Attributes:
        sd: the sample's standard deviation, with n - 1.
        low, high: mean -+ t(n - 1) sd / sqrt(n).
    """

    n: int
    mean: float
    sd: float
    low: float
    high: float

    @classmethod
    def of(cls, numbers: Iterable[float]) -> "Interval":
        from scipy.special import stdtrit  # half a second to import

        values = list(numbers)
        n = len(values)
        if not values:
            return cls(0, math.nan, math.nan, math.nan, math.nan)
        mean = math.fsum(values) / n
        if n == 1:
            return cls(1, mean, math.nan, math.nan, math.nan)
        sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
        half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * sd / math.sqrt(n)
        return cls(n, mean, sd, mean - half, mean + half)

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Arm:
    """One combination of parameters, and its trials by number."""

    number: int  # from 0, in the order of their first trials
    trials: list[TrialRecord]

    @property
    def params(self) -> dict[str, object]:
        return dict(self.trials[0].config.params)

    def by_replicate(self, metric: str, split: str = "validation") -> dict[int, float]:
        """Return the metric of each complete trial that has a value, by replicate."""
        complete = {trial.config.replicate: trial for trial in self.trials if trial.state == "COMPLETE"}
        found = {replicate: measured_on(trial, split).get(metric) for replicate, trial in complete.items()}
        return {
            replicate: value.value
            for replicate, value in found.items()
            if value is not None and value.value is not None and math.isfinite(value.value)
        }

    def summary(self, metric: str, split: str = "validation") -> Interval:
        """Return the metric over replicates. A trial without a value counts in none; see `n`."""
        return Interval.of(self.by_replicate(metric, split).values())

    def difference(self, other: "Arm", metric: str, split: str = "validation") -> Interval:
        """Return this arm minus another one, paired by replicate: trials of one replicate began from the same seed."""
        mine, theirs = self.by_replicate(metric, split), other.by_replicate(metric, split)
        return Interval.of(mine[replicate] - theirs[replicate] for replicate in sorted(mine.keys() & theirs))


def arms(study: StudyRecord) -> list[Arm]:
    """Return the study's trials that count, grouped by equal parameters."""
    groups: dict[tuple[tuple[str, type, object], ...], list[TrialRecord]] = {}
    for trial in study.counted():
        key = tuple(sorted((name, type(value), value) for name, value in trial.config.params.items()))
        groups.setdefault(key, []).append(trial)
    return [Arm(number, trials) for number, trials in enumerate(groups.values())]


def arm_of(found: list[Arm], number: int) -> Arm:
    """Return the arm of that number.

    Raises:
        UserError: there is none.
    """
    if number >= len(found):
        raise UserError(f"--against {number}: the study has arms 0 to {len(found) - 1}")
    return found[number]


def to_test(study: StudyRecord) -> list[TrialRecord]:
    """Return the trials whose test split counts: the front's; all complete ones of a study that compares arms.

    Whoever compares all arms with each other chooses nothing by the test split.
    """
    if study.replicates > 1:
        return [trial for trial in study.trials if trial.state == "COMPLETE"]
    return front(study)


def measured_on(trial: TrialRecord, split: str) -> Mapping[str, Measurement]:
    """Return what was measured on a split, `validation` or `test`, and what needs no images."""
    if split != "test":
        return trial.metrics
    if not trial.test:
        return {}
    return {name: metric for name, metric in trial.metrics.items() if metric.split == "none"} | trial.test

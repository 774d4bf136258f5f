"""Whether more equivariant trials are more accurate: rank correlation over trials, overall and at equal capacity."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from equitune.analysis.arms import CONFIDENCE, measured_on
from equitune.records.reader import StudyRecord
from equitune.records.results import Measurement

Array = npt.NDArray[np.float64]

FEWEST = 4  # trials overall, and in a stratum that counts
RESAMPLES = 1999
SUFFIXES = ("_error", "_correlation")  # of the metrics that say how equivariant a network is


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's correlation; NaN is what there are too few trials for, or too little that varies.

    Attributes:
        rho: of ranks; ties have their mean rank. Within strata the mean of their rho, each weighed by its trials - 1,
            which is one over the variance of rho where nothing is related.
        low, high: 95 % percentile interval of drawing trials anew, within their strata. Of normal pairs it held the
            true value 94 to 98 times of 100 with 8 trials or more, 86 to 100 within strata of 4 or 6 (300 data sets).
        p: of shuffling the accuracies, within their strata, two-sided; never below 1 / 2,000.
        trials, strata: that count.
    """

    rho: float
    low: float
    high: float
    p: float
    trials: int
    strata: int


@dataclass(frozen=True)
class Correlated:
    """A metric and accuracy, over all trials and within strata of equal capacity."""

    metric: str
    is_objective: bool
    overall: RankCorrelation
    within: RankCorrelation


def correlations(study: StudyRecord, split: str = "validation") -> list[Correlated]:
    """Spearman's correlation of each equivariance metric with accuracy over complete trials, the objectives first.

    Capacity is the metric `parameters`: trials whose networks have equally many are a stratum; it counts from four
    trials on. The trials of a search that learns are no independent draws: the interval is about these trials, not
    about the search space.
    """
    complete = [measured_on(trial, split) for trial in study.trials if trial.state == "COMPLETE"]
    names = dict.fromkeys([*study.objectives, *sorted({name for metrics in complete for name in metrics})])
    found = []
    for name in names:
        if name.endswith(SUFFIXES):
            rows = [[_value(metrics, key) for key in (name, "accuracy", "parameters")] for metrics in complete]
            metric, accuracy, parameters = np.array(rows, dtype=np.float64).reshape(-1, 3).T
            if name in study.objectives or np.isfinite(metric).any():
                is_objective = name in study.objectives
                found.append(Correlated(name, is_objective, *overall_and_within(metric, accuracy, parameters)))
    return found


def overall_and_within(metric: Array, accuracy: Array, capacity: Array) -> tuple[RankCorrelation, RankCorrelation]:
    """Two rank correlations of the pairs without a NaN: over all, and within strata of equal capacity, all (n,)."""
    has_both = np.isfinite(metric) & np.isfinite(accuracy)
    pairs = np.stack([metric, accuracy], axis=1)
    at = [np.flatnonzero(has_both & (capacity == value)) for value in np.unique(capacity[has_both])]
    return rank_correlation([pairs[has_both]]), rank_correlation([pairs[rows] for rows in at if len(rows)])


def rank_correlation(strata: list[Array]) -> RankCorrelation:
    """Spearman's correlation within strata, each of pairs (n, 2), pooled by n - 1; of one stratum simply its own."""
    counting = [pairs for pairs in strata if len(pairs) >= FEWEST and (np.ptp(pairs, axis=0) > 0).all()]
    trials = sum(map(len, counting))
    if not counting:
        return RankCorrelation(math.nan, math.nan, math.nan, math.nan, 0, 0)
    rng = np.random.default_rng(0)
    weights = np.array([len(pairs) - 1.0 for pairs in counting])
    rho = float(np.average([_spearman(pairs[None])[0] for pairs in counting], weights=weights))
    drawn, shuffled = (
        np.array([list(_resampled_rho(pairs, rng, whole)) for pairs in counting]) for whole in (False, True)
    )  # (strata, resamples)
    has_rho = ~np.isnan(drawn)
    total = (weights[:, None] * has_rho).sum(axis=0)
    sums = (weights[:, None] * np.nan_to_num(drawn)).sum(axis=0)
    pooled = sums[total > 0] / total[total > 0]
    low, high = np.quantile(pooled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    by_chance = np.average(shuffled, weights=weights, axis=0)
    p = (1 + (np.abs(by_chance) >= abs(rho) - 1e-12).sum()) / (1 + RESAMPLES)
    return RankCorrelation(rho, float(low), float(high), float(p), trials, len(counting))


def _resampled_rho(pairs: Array, rng: np.random.Generator, shuffle: bool) -> Iterator[float]:
    """Spearman's correlation of pairs drawn anew, or with one side shuffled; NaN where all are equal."""
    n = len(pairs)
    at_once = max(1, 200_000 // n)  # keeps memory small
    for start in range(0, RESAMPLES, at_once):
        size = min(at_once, RESAMPLES - start)
        if shuffle:
            order = rng.permuted(np.tile(np.arange(n), (size, 1)), axis=1)
            drawn = np.stack([np.broadcast_to(pairs[:, 0], (size, n)), pairs[order, 1]], axis=2)
        else:
            drawn = pairs[rng.integers(0, n, (size, n))]
        yield from _spearman(drawn).tolist()


def _spearman(pairs: Array) -> Array:
    """Spearman's correlation of many sets of pairs (sets, n, 2); NaN where one side is constant."""
    from scipy.stats import rankdata  # half a second to import

    ranks = rankdata(pairs, axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    x, y = ranks[..., 0], ranks[..., 1]
    norms = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    rho: Array = np.divide((x * y).sum(axis=1), norms, out=np.full(len(norms), np.nan), where=norms > 0)
    return rho


def _value(metrics: Mapping[str, Measurement], name: str) -> float:
    measured = metrics.get(name)
    return math.nan if measured is None or measured.value is None else float(measured.value)

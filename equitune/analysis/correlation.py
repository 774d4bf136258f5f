"""Whether more equivariant trials are more accurate: rank correlation over trials, overall and at equal capacity."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from equitune.analysis.arms import CONFIDENCE, measured_on
from equitune.records.reader import StudyRecord
from equitune.results.values import Measurement

Array = npt.NDArray[np.float64]

FEWEST = 4  # trials overall, and in a stratum that counts
RESAMPLES = 1999
# Of the metrics that say how equivariant a network is.
SUFFIXES = ("_error", "_correlation", "_consistency", "_lie_derivative", "_relative_stability")


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's correlation; NaN is what there are too few trials for, or too little that varies.

    Attributes:
        rho: of ranks; ties have their mean rank. Within strata the mean of their rho, each weighed by its trials - 1,
            which is one over the variance of rho where nothing is related.
        low, high: 95 % percentile interval of drawing trials anew, within their strata. Of normal pairs it held the
            true value 94 to 98 times of 100 with 8 trials or more, 86 to 100 within strata of 4 or 6 (300 data sets).
        p: of shuffling the accuracies, within their strata, two-sided; where none of 1,999 shuffles reaches rho, of a
            normal distribution with rho's variance, 1 / sum of (trials - 1), whose tails are the heavier ones.
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
    rho = float(np.average([_spearman(pairs, np.ones((1, len(pairs))))[0] for pairs in counting], weights=weights))
    drawn = np.array([_drawn_anew(pairs, rng) for pairs in counting])  # (strata, resamples)
    total = weights @ ~np.isnan(drawn)
    pooled = (weights @ np.nan_to_num(drawn))[total > 0] / total[total > 0]
    low, high = np.quantile(pooled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    by_chance = np.average([_shuffled(pairs, rng) for pairs in counting], weights=weights, axis=0)
    reached = int((np.abs(by_chance) >= abs(rho) - 1e-12).sum())
    p = (1 + reached) / (1 + RESAMPLES)
    if not reached:  # else a hundred comparisons could never find anything, corrected by Holm's rule
        p = min(p, math.erfc(abs(rho) * math.sqrt(weights.sum() / 2)))
    return RankCorrelation(rho, float(low), float(high), float(p), trials, len(counting))


def _drawn_anew(pairs: Array, rng: np.random.Generator) -> Array:
    """Spearman's correlation of pairs (n, 2) drawn anew, (resamples,); NaN where all that is drawn is equal."""
    n = len(pairs)
    at_once = max(1, 400_000 // n)  # keeps memory small
    sizes = [min(at_once, RESAMPLES - start) for start in range(0, RESAMPLES, at_once)]
    return np.concatenate([_spearman(pairs, rng.multinomial(n, np.full(n, 1 / n), size)) for size in sizes])


def _shuffled(pairs: Array, rng: np.random.Generator) -> Array:
    """Spearman's correlation of pairs (n, 2) with one side shuffled against the other, (resamples,)."""
    ones = np.ones((1, len(pairs)))
    x, y = (_ranks(side, ones)[0] for side in pairs.T)
    norm = np.sqrt((x @ x) * (y @ y))
    rho: Array = np.array([x @ rng.permutation(y) for _ in range(RESAMPLES)]) / norm
    return rho


def _spearman(pairs: Array, counts: npt.NDArray[Any]) -> Array:
    """Spearman's correlation of pairs (n, 2), each counted so often (resamples, n); NaN where one side is constant."""
    x, y = (_ranks(side, counts) for side in pairs.T)
    norms = np.sqrt((counts * x**2).sum(axis=1) * (counts * y**2).sum(axis=1))
    rho: Array = np.divide((counts * x * y).sum(axis=1), norms, out=np.full(len(norms), np.nan), where=norms > 1e-12)
    return rho


def _ranks(values: Array, counts: npt.NDArray[Any]) -> Array:
    """Return the ranks of values (n,), each counted so often (resamples, n), minus their mean; ties share their mean
    rank.
    """
    group = np.unique(values, return_inverse=True)[1]
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(group.max() + 1))
    totals = np.add.reduceat(counts[:, order], starts, axis=1)
    ranks: Array = np.cumsum(totals, axis=1) - (totals - 1) / 2 - (len(values) + 1) / 2
    return ranks[:, group]


def _value(metrics: Mapping[str, Measurement], name: str) -> float:
    measured = metrics.get(name)
    return math.nan if measured is None or measured.value is None else float(measured.value)

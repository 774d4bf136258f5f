"""Uncertainty: a measured number is a smooth function of sums over images, and its error follows from them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from equitune.evaluation.image_set import EvaluationSet
from equitune.results.values import Measurement

CLUSTERS = 1024  # image i belongs to cluster i mod CLUSTERS: exactly per image up to so many, bounded memory beyond
RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A statistic of images, kept as sums over clusters of images.

    Attributes:
        value: the statistic of all images.
        influence_K: how much each cluster moves it, to first order; sums to 0.
        sums_Kk: float64 on the CPU; row i holds k sums over the images of cluster i.
        function: the statistic of total sums, (..., k) -> (...); unchanged when all sums are scaled alike.
    """

    value: float
    influence_K: Tensor
    sums_Kk: Tensor
    function: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, sums_Kk: Tensor, function: Callable[[Tensor], Tensor]) -> "Estimate":
        """Any smooth function of sums over clusters of images, float64 on the CPU."""
        with torch.inference_mode(False), torch.enable_grad():
            total = sums_Kk.sum(0).clone().requires_grad_()
            value = function(total)
            (gradient,) = torch.autograd.grad(value, total)
        return cls(float(value.detach()), sums_Kk @ gradient, sums_Kk, function)

    @classmethod
    def mean(cls, values_n: Tensor) -> "Estimate":
        """Return the mean of one number an image."""
        return cls.ratio(values_n, torch.ones_like(values_n))

    @classmethod
    def ratio(cls, numerators_n: Tensor, denominators_n: Tensor) -> "Estimate":
        """Return the ratio of two sums over images, or over clusters of them."""
        sums = clustered(torch.stack([numerators_n, denominators_n], 1).double().cpu())
        above, below = sums.sum(0)
        influence = (sums[:, 0] - above / below * sums[:, 1]) / below
        return cls(float(above / below), influence, sums, lambda s: s[..., 0] / s[..., 1])

    @classmethod
    def correlation(cls, ab_K: Tensor, aa_K: Tensor, bb_K: Tensor) -> "Estimate":
        """Return the correlation whose covariance and variances are sums over clusters of images."""
        sums = torch.stack([ab_K, aa_K, bb_K], 1)
        ab, aa, bb = sums.sum(0)
        scale = (aa * bb).sqrt()
        influence = ab_K / scale - ab / scale / 2 * (aa_K / aa + bb_K / bb)
        return cls(float(ab / scale), influence, sums, lambda s: s[..., 0] / (s[..., 1] * s[..., 2]).sqrt())

    @classmethod
    def average(cls, estimates: Sequence["Estimate"]) -> "Estimate":
        """Return the mean of statistics of the same images; their covariance is accounted for."""
        return Estimate._weighted(estimates, [1 / len(estimates)] * len(estimates))

    def minus(self, other: "Estimate") -> "Estimate":
        """Return the paired difference of two statistics of the same images."""
        return Estimate._weighted([self, other], [1.0, -1.0])

    @property
    def stderr(self) -> float:
        """The infinitesimal jackknife's standard error over images."""
        return float(torch.linalg.vector_norm(self.influence_K))

    def interval(self, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
        """Return the 95 % percentile interval of the bootstrap over images, the same resamples for equal seeds."""
        values = self.function(_weights(len(self.sums_Kk), seed, resamples) @ self.sums_Kk)
        low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
        return low, high

    @staticmethod
    def _weighted(estimates: Sequence["Estimate"], weights: list[float]) -> "Estimate":
        if len(estimates) == 1 and weights == [1.0]:
            return estimates[0]
        distinct: list[Tensor] = []  # the same sums stand once: a statistic differs from itself by exactly nothing
        places = []
        for estimate in estimates:
            same = (place for place, sums in enumerate(distinct) if torch.equal(sums, estimate.sums_Kk))
            places.append(next(same, len(distinct)))
            if places[-1] == len(distinct):
                distinct.append(estimate.sums_Kk)
        widths = [sums.shape[1] for sums in distinct]

        def function(sums: Tensor) -> Tensor:
            parts = torch.split(sums, widths, dim=-1)
            terms = zip(weights, estimates, places, strict=True)
            return torch.stack([weight * estimate.function(parts[place]) for weight, estimate, place in terms]).sum(0)

        return Estimate(
            math.fsum(weight * estimate.value for weight, estimate in zip(weights, estimates, strict=True)),
            torch.stack([estimate.influence_K for estimate in estimates], 1) @ torch.tensor(weights).double(),
            torch.cat(distinct, 1),
            function,
        )


def clustered(per_image: Tensor) -> Tensor:
    """Return sums over the clusters of images: (n, ...) -> (min(n, CLUSTERS), ...)."""
    if len(per_image) <= CLUSTERS:
        return per_image
    sums = per_image.new_zeros(CLUSTERS, *per_image.shape[1:])
    return sums.index_add_(0, torch.arange(len(per_image), device=per_image.device) % CLUSTERS, per_image)


def measured(
    estimate: Estimate, images: EvaluationSet, *, chance: float | None = None, untrained: Estimate | None = None
) -> Measurement:
    """Return an estimate as a trial records it."""
    value = estimate.value
    if not math.isfinite(value):
        return unmeasured(images, "undefined", f"the statistic is {value}")
    control = untrained.value if untrained else math.nan
    return Measurement(
        value=value,
        stderr=estimate.stderr,
        n=len(images),
        split=images.split,
        chance=chance,
        untrained=control if math.isfinite(control) else None,
    )


def unmeasured(images: EvaluationSet, status: str, reason: str | None) -> Measurement:
    """Return a metric without a value, as a trial records it."""
    return Measurement.model_validate(
        {"value": None, "n": len(images), "split": images.split, "status": status, "reason": reason}
    )


_kept_weights: dict[tuple[int, int, int], Tensor] = {}


def _weights(n: int, seed: int, resamples: int) -> Tensor:
    """How often each of n clusters is drawn in each resample, (resamples, n)."""
    key = (n, seed, resamples)
    if key not in _kept_weights:
        drawn = torch.randint(n, (resamples, n), generator=torch.Generator().manual_seed(seed))
        counts = torch.zeros(resamples, n, dtype=torch.float64)
        _kept_weights.clear()  # one study, one n
        _kept_weights[key] = counts.scatter_add_(1, drawn, torch.ones_like(counts))
    return _kept_weights[key]

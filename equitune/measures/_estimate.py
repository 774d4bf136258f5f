"""Uncertainty: a measured number is a smooth function of sums over images, and its error follows from them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from equitune.measures._evaluation import EvaluationSet
from equitune.records.results import Measurement

CLUSTERS = 1024  # image i belongs to cluster i mod CLUSTERS: exactly per image up to so many, bounded memory beyond
RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A statistic of images, kept as sums over clusters of images.

    Attributes:
        sums_Kk: float64 on the CPU; row i holds k sums over the images of cluster i.
        function: the statistic of the total sums, (..., k) -> (...); unchanged when all sums are scaled alike.
    """

    sums_Kk: Tensor
    function: Callable[[Tensor], Tensor]

    @classmethod
    def mean(cls, values_n: Tensor) -> "Estimate":
        """The mean of one number an image."""
        return cls.ratio(values_n, torch.ones_like(values_n))

    @classmethod
    def ratio(cls, numerators_n: Tensor, denominators_n: Tensor) -> "Estimate":
        """The ratio of two sums over images."""
        per_image = torch.stack([numerators_n, denominators_n], 1).double().cpu()
        return cls(clustered(per_image), lambda sums: sums[..., 0] / sums[..., 1])

    @classmethod
    def average(cls, estimates: Sequence["Estimate"]) -> "Estimate":
        """The mean of statistics of the same images; their covariance is accounted for."""
        return cls._joined(estimates, lambda values: torch.stack(values).mean(0))

    def minus(self, other: "Estimate") -> "Estimate":
        """The paired difference of two statistics of the same images."""
        return self._joined([self, other], lambda values: values[0] - values[1])

    @property
    def value(self) -> float:
        return float(self.function(self.sums_Kk.sum(0)))

    @property
    def stderr(self) -> float:
        """The infinitesimal jackknife's standard error over images."""
        total = self.sums_Kk.sum(0)
        with torch.inference_mode(False), torch.enable_grad():
            place = total.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self.function(place), place)
        return float((self.sums_Kk @ gradient).square().sum().sqrt())

    def interval(self, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
        """The 95 % percentile interval of the bootstrap over images, the same resamples for equal seeds."""
        values = self.function(_weights(len(self.sums_Kk), seed, resamples) @ self.sums_Kk)
        low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
        return low, high

    @staticmethod
    def _joined(estimates: Sequence["Estimate"], combine: Callable[[list[Tensor]], Tensor]) -> "Estimate":
        widths = [estimate.sums_Kk.shape[1] for estimate in estimates]

        def function(sums: Tensor) -> Tensor:
            parts = torch.split(sums, widths, dim=-1)
            return combine([estimate.function(part) for estimate, part in zip(estimates, parts, strict=True)])

        return Estimate(torch.cat([estimate.sums_Kk for estimate in estimates], 1), function)


def clustered(per_image: Tensor) -> Tensor:
    """Sums over the clusters of images: (n, ...) -> (min(n, CLUSTERS), ...)."""
    if len(per_image) <= CLUSTERS:
        return per_image
    sums = per_image.new_zeros(CLUSTERS, *per_image.shape[1:])
    return sums.index_add_(0, torch.arange(len(per_image), device=per_image.device) % CLUSTERS, per_image)


def measured(
    estimate: Estimate, images: EvaluationSet, *, chance: float | None = None, untrained: Estimate | None = None
) -> Measurement:
    """An estimate as a trial records it."""
    value = estimate.value
    if not math.isfinite(value):
        return Measurement(
            value=None, n=len(images), split=images.split, status="undefined", reason=f"the statistic is {value}"
        )
    control = untrained.value if untrained else math.nan
    return Measurement(
        value=value,
        stderr=estimate.stderr,
        n=len(images),
        split=images.split,
        chance=chance,
        untrained=control if math.isfinite(control) else None,
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

"""The one place that averages: pairs of feature maps, streamed as sufficient statistics in float64.

A pair is a = f(T_g x) and b = rho(g) f(x), each (B, C, P) with P positions. For every image and channel the sums of a,
b, a^2, b^2 and a*b are kept; all correlations, errors and standard errors follow from them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from equitune.records.results import Status

PART = 2**17  # numbers that are summed at once: a megabyte in float64
COLLAPSED = 1e-12  # relative to the features' own energy: below it, images cannot be told apart


_scratch_buffers: dict[tuple[torch.device, int], Tensor] = {}


@dataclass(frozen=True)
class Estimate:
    """A statistic over images. `influence` (n,) says how much each image moves it: their spread is its error."""

    value: float
    influence: Tensor

    @property
    def stderr(self) -> float:
        """The infinitesimal jackknife's standard error over images."""
        return float((self.influence - self.influence.mean()).square().sum().sqrt()) / len(self.influence)


def mean(estimates: list[Estimate]) -> Estimate:
    """The mean of statistics of the same images; their covariance is accounted for."""
    influence = torch.stack([estimate.influence for estimate in estimates]).mean(0)
    return Estimate(math.fsum(estimate.value for estimate in estimates) / len(estimates), influence)


@dataclass(frozen=True)
class Moments:
    """A batch of features (B, C, P) summed in float64: over positions, and over images."""

    sums_BC: Tensor
    squares_BC: Tensor
    map_CP: Tensor

    @classmethod
    def of(cls, values_BCP: Tensor) -> "Moments":
        parts = [cls._of_part(_scratch(values_BCP[part], 0)) for part in _parts(values_BCP)]
        return cls._joined(parts)

    @classmethod
    def _of_part(cls, values: Tensor) -> "Moments":
        total = values.new_ones(len(values)) @ values.flatten(1)
        return cls(values.sum(2), torch.linalg.vector_norm(values, dim=2).square_(), total.view(values.shape[1:]))

    @classmethod
    def _joined(cls, parts: list["Moments"]) -> "Moments":
        if len(parts) == 1:
            return parts[0]
        sums, squares = torch.cat([part.sums_BC for part in parts]), torch.cat([part.squares_BC for part in parts])
        return cls(sums, squares, sum((part.map_CP for part in parts[1:]), parts[0].map_CP))


class PairStatistics:
    """Accumulates pairs batch by batch; what it reports does not depend on their order or on the batches' size."""

    def __init__(self) -> None:
        self._a: list[Moments] = []
        self._b: list[Moments] = []
        self._distances: list[Tensor] = []  # sum of (a - b)^2 over positions, taken from the difference itself
        self._across: list[Tensor] = []  # <a_i, mean b> + <b_i, mean a> (B,), with the first batch's means
        self._means: tuple[Tensor, Tensor] | None = None
        self._positions = 0
        self._summary: _Summary | None = None

    def add(
        self,
        a_BCP: Tensor,
        b: Tensor,
        b_moments: Moments | None = None,
        act: Callable[[Tensor], Tensor] = lambda part: part,
    ) -> None:
        """Adds a batch of pairs of any floating dtype, a few images at a time, so that they stay in the cache.

        Args:
            a_BCP: f(T_g x).
            b: rho(g) f(x), (B, C, P); or f(x) of any shape, where `act` is given.
            b_moments: the moments of rho(g) f(x) where they follow from those of f(x).
            act: makes rho(g) f(x), (B, C, P), of f(x).
        """
        if self._means is None:  # rho(g) is linear: it acts on the mean as on each image
            self._means = (_mean_map(a_BCP), _mean_map(act(b.mean(0, keepdim=True))))
        a_mean, b_mean = self._means
        a_parts, b_parts = [], []
        for part in _parts(a_BCP):
            a, moved = _scratch(a_BCP[part], 0), _scratch(act(b[part]), 1)
            a_parts.append(Moments._of_part(a))
            if b_moments is None:
                b_parts.append(Moments._of_part(moved))
            self._across.append(a.flatten(1) @ b_mean + moved.flatten(1) @ a_mean)
            self._distances.append(torch.linalg.vector_norm(a.sub_(moved), dim=2).square_())
        self._a.append(Moments._joined(a_parts))
        self._b.append(b_moments or Moments._joined(b_parts))
        self._positions = a_BCP.shape[2]
        self._summary = None

    @property
    def n(self) -> int:
        return sum(len(part) for part in self._distances)

    def status(self) -> tuple[Status, str | None]:
        """`ok`, or why no number can be given."""
        s = self._summarised()
        if s.n < 2:
            return "undefined", "needs two images or more"
        if not math.isfinite(float(s.energy)):
            return "undefined", "features are not finite"
        if float(s.chance_distance) <= COLLAPSED * float(s.energy):
            return "collapsed", "all images have the same features"
        if min(float(s.a_variance), float(s.b_variance)) <= COLLAPSED * float(s.energy):
            return "collapsed", "features do not vary"
        return "ok", None

    def correlation(self) -> Estimate:
        """M1, r_pop: the correlation of a and b centred per channel over the data set; 1 is equivariant."""
        s = self._summarised()
        scale = (s.a_variance * s.b_variance).sqrt()
        value = s.covariance_n.mean() / scale
        influence = s.covariance_n / scale - value / 2 * (s.a_variance_n / s.a_variance + s.b_variance_n / s.b_variance)
        return Estimate(float(value), influence)

    def chance_correlation(self) -> float:
        """r_pop of unrelated images, averaged over all pairs i != j: what a shared positional pattern scores."""
        s = self._summarised()
        total = s.shared_pattern * s.n**2 - s.covariance_n.sum()
        return float(total / (s.n * (s.n - 1)) / (s.a_variance * s.b_variance).sqrt())

    def error(self) -> Estimate:
        """M2, NEE: E|a_i - b_i|^2 over E|a_i - b_j|^2 for unrelated images; 0 is exact, 1 no better than another's."""
        s = self._summarised()
        value = s.distance_n.mean() / s.chance_distance
        return Estimate(float(value), (s.distance_n - value * s.chance_influence_n) / s.chance_distance)

    def relative_distance(self) -> float:
        """|a - b| / (|a| + |b|) over the whole data set: 0.707 for independent zero-mean vectors."""
        s = self._summarised()
        return float(s.distance_n.sum().sqrt() / (s.a_energy.sqrt() + s.b_energy.sqrt()))

    def flat_correlation(self) -> float:
        """r_flat: per image, centred over channels and positions together, then averaged. Inflated by offsets."""
        a, b, aa, bb, ab = (sums_nC.sum(1) for sums_nC in self._sums())
        count = self._sums()[0].shape[1] * self._positions
        return float(((ab - a * b / count) / ((aa - a * a / count) * (bb - b * b / count)).sqrt()).nanmean())

    def channel_correlation(self) -> float:
        """r_chan: per image and channel over positions, channels without variance dropped, then averaged."""
        a, b, aa, bb, ab = self._sums()
        count = self._positions
        a_variance, b_variance = aa - a * a / count, bb - b * b / count
        alive = (a_variance > COLLAPSED * aa) & (b_variance > COLLAPSED * bb)
        return float(((ab - a * b / count)[alive] / (a_variance * b_variance)[alive].sqrt()).mean())

    def dead_channels(self) -> float:
        """The share of channels that never vary over the data set."""
        power_C = torch.cat([batch.squares_BC for batch in self._a]).mean(0) / self._positions
        mean_C = torch.cat([batch.sums_BC for batch in self._a]).mean(0) / self._positions
        return float((power_C - mean_C.square() <= COLLAPSED * power_C).double().mean())

    def _sums(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The sums over positions of a, b, a^2, b^2 and a*b, each (n, C)."""
        a, b = (torch.cat([batch.sums_BC for batch in side]) for side in (self._a, self._b))
        aa, bb = (torch.cat([batch.squares_BC for batch in side]) for side in (self._a, self._b))
        return a, b, aa, bb, (aa + bb - torch.cat(self._distances)) / 2

    def _summarised(self) -> "_Summary":
        if self._summary is None:
            self._summary = _Summary(self)
        return self._summary


class _Summary:
    """The sums of a `PairStatistics`, centred. A suffix names the axes: n images, C channels, P positions."""

    def __init__(self, pairs: PairStatistics) -> None:
        positions = pairs._positions
        a_nC, b_nC = (torch.cat([batch.sums_BC for batch in side]) for side in (pairs._a, pairs._b))
        aa_n, bb_n = (torch.cat([batch.squares_BC for batch in side]).sum(1) for side in (pairs._a, pairs._b))
        a_map_CP, b_map_CP = (
            sum((batch.map_CP for batch in side[1:]), side[0].map_CP) for side in (pairs._a, pairs._b)
        )
        self.n = len(aa_n)
        self.distance_n = torch.cat(pairs._distances).sum(1)
        product_n = (aa_n + bb_n - self.distance_n) / 2

        a_mean, b_mean = a_nC.mean(0) / positions, b_nC.mean(0) / positions
        self.covariance_n = product_n - b_nC @ a_mean - a_nC @ b_mean + positions * (a_mean @ b_mean)
        self.a_variance_n = aa_n - 2 * (a_nC @ a_mean) + positions * (a_mean @ a_mean)
        self.b_variance_n = bb_n - 2 * (b_nC @ b_mean) + positions * (b_mean @ b_mean)
        self.a_variance, self.b_variance = self.a_variance_n.mean(), self.b_variance_n.mean()
        # sum over C and P of the two mean maps, each centred per channel
        self.shared_pattern = torch.vdot(a_map_CP.flatten(), b_map_CP.flatten()) / self.n**2 - positions * (
            a_mean @ b_mean
        )

        self.a_energy, self.b_energy = aa_n.sum(), bb_n.sum()
        self.energy = (self.a_energy + self.b_energy) / self.n
        unrelated = torch.vdot(a_map_CP.flatten(), b_map_CP.flatten()) - product_n.sum()
        self.chance_distance = self.energy - 2 * unrelated / max(self.n * (self.n - 1), 1)
        self.chance_influence_n = aa_n + bb_n - 2 * torch.cat(pairs._across)


def _mean_map(values_BCP: Tensor) -> Tensor:
    """The mean over images, flat and in float64."""
    return values_BCP.mean(0).flatten().double()


def _parts(values: Tensor) -> list[slice]:
    """The batch in parts of a few images, small enough for a processor's cache."""
    images = max(1, len(values) * PART // max(values.numel(), 1)) if values.device.type == "cpu" else len(values)
    return [slice(start, start + images) for start in range(0, len(values), images)]


def _scratch(values: Tensor, which: int) -> Tensor:
    """The values in float64, in memory that is used again: fresh pages cost more than all the sums together."""
    key = (values.device, which)
    if key not in _scratch_buffers or _scratch_buffers[key].numel() < values.numel():
        with torch.inference_mode(False):  # else it could not be used outside that mode
            _scratch_buffers[key] = torch.empty(values.numel(), dtype=torch.float64, device=values.device)
    return _scratch_buffers[key][: values.numel()].view(values.shape).copy_(values)

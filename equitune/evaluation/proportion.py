"""Shares of images, with errors that are not 0 where every image agrees."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from equitune.evaluation.estimate import RESAMPLES, Estimate, clustered


@dataclass(frozen=True)
class Proportion(Estimate):
    """The mean of one number in [0, 1] an image; its error is Wilson's (1927), a bootstrap's would be 0 at 0 and 1.

    Wilson's formula takes the variance over images in place of p (1 - p): the same for hits and misses, and right for
    images that are hit in part.
    """

    @classmethod
    def of_images(cls, values_n: Tensor) -> "Proportion":
        """From one number an image: whether it was hit, or how often."""
        values_n = values_n.double().cpu()
        share = float(values_n.mean())
        sums = clustered(torch.stack([values_n, torch.ones_like(values_n), values_n.square()], 1))
        influence = (sums[:, 0] - share * sums[:, 1]) / len(values_n)
        return cls(share, influence, sums, lambda s: s[..., 0] / s[..., 1])

    @property
    def stderr(self) -> float:
        """Half of Wilson's interval at one standard deviation."""
        return self._wilson(1.0)[1]

    def interval(self, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
        """Wilson's 95 % interval; it needs no resamples."""
        centre, half = self._wilson(1.959964)
        return centre - half, centre + half

    def _wilson(self, z: float) -> tuple[float, float]:
        hits, n, squares = self.sums_Kk.sum(0).tolist()
        share, spread = hits / n, z * z / n
        variance = max(squares / n - share**2, 0.0)
        half = z * math.sqrt(variance / n + spread / (4 * n)) / (1 + spread)
        return (share + spread / 2) / (1 + spread), half

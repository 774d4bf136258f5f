"""The matched action: which channel of f(T_g x) goes with which channel of rho(g) f(x), found from the features.

The permutation is fitted on one half of the images and scored on the other, since with few images it can fit noise
(K14 of the project's reference; the idea is that of 2305.17017).
"""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


class Matching:
    """Accumulates the correlations of all channels of a with all channels of b, each (B, C, P)."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: tuple[Tensor, ...] = ()  # of a and b, of their squares (C,), and of a b (C, C), in float64

    @torch.inference_mode()
    def add(self, a_BCP: Tensor, b_BCP: Tensor) -> None:
        a, b = (each.double().transpose(0, 1).flatten(1) for each in (a_BCP, b_BCP))
        new = (a.sum(1), b.sum(1), a.square().sum(1), b.square().sum(1), a @ b.T)
        self._sums = tuple(old + more for old, more in zip(self._sums, new, strict=True)) if self._sums else new
        self._count += a.shape[1]

    def permutation(self) -> Tensor:
        """For each channel of a the channel of b that correlates with it, one to one and best in sum: (C,) int64."""
        covariance, a_variance, b_variance = self._centred()
        scale = (a_variance[:, None] * b_variance).sqrt()
        correlation = torch.where(scale > 0, covariance / scale, 0.0)
        _, columns = linear_sum_assignment(correlation.cpu().numpy(), maximize=True)
        return torch.from_numpy(columns).to(covariance.device)

    def correlation(self) -> float:
        """r_pop of the matched channels on the images that the permutation was fitted on."""
        covariance, a_variance, b_variance = self._centred()
        matched = covariance[torch.arange(len(a_variance)), self.permutation()].sum()
        return float(matched / (a_variance.sum() * b_variance.sum()).sqrt())

    def _centred(self) -> tuple[Tensor, Tensor, Tensor]:
        a, b, aa, bb, ab = self._sums
        n = self._count
        return ab - torch.outer(a, b) / n, (aa - a.square() / n).clamp(min=0), (bb - b.square() / n).clamp(min=0)

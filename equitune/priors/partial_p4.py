"""Partial group convolution: each layer keeps the orientations that it learns to keep, and leaves the others out.

Romero and Lohit, 2110.10211, its discrete form: in training every orientation but the identity is kept by a draw from a
relaxed Bernoulli variable (temperature 0.5, straight-through); in evaluation it is kept if its probability is above one
half. All kept: `p4`; none but the identity: a plain convolution. The lifting layer keeps all. Weights and multiply-adds
of `p4`. It starts near 1, as in the paper: what training draws and evaluation does not costs accuracy.
"""

import math
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from equitune.groups.grid import Symmetry
from equitune.groups.layout import Axis
from equitune.layers.group import CosetPool, GroupConv, GroupPrior
from equitune.layers.prior import Shape
from equitune.layers.relaxable import Relaxable

FEATURES = "maps"
TEMPERATURE = 0.5


def build(
    *,
    keep: Annotated[float, Field(gt=0, lt=1)] = 0.99,
    learned: bool = True,
    head: Literal["max", "mean", "flatten"] = "max",
    padding: Literal["zero", "circular", "reflect"] = "zero",
) -> "PartialPrior":
    return PartialPrior("c4", partial(_layer, keep=keep, learned=learned), head, padding)


class PartialPrior(GroupPrior):
    """Entries that were left out are zero on every map; normalisation and pooling leave them out too."""

    def norm(self, channels: int) -> nn.Module:
        return PresentNorm(channels)

    def head(self, channels: int) -> tuple[nn.Module, int]:
        pool, features = super().head(channels)
        return (PresentMean() if isinstance(pool, CosetPool) and pool.kind == "mean" else pool), features


class PartialConv(GroupConv, Relaxable):
    """A group convolution, evaluated on the entries that it keeps.

    Attributes:
        logits: (G - 1,) of the probability to keep each orientation but the identity. Not trained where it is not
            `learned`.
    """

    def __init__(self, axis: Axis, shape: Shape, keep: float, learned: bool) -> None:
        super().__init__(axis, shape)
        logits = torch.full((self.entries - 1,), math.log(keep / (1 - keep)))
        self.logits = nn.Parameter(logits, requires_grad=learned)
        self.strays = None if keep > 0.5 else f"it leaves out every orientation but one (keep {keep:g})"
        self.learns = "the probability to keep each orientation is learned" if learned else None

    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps) * self.kept()[:, None, None]

    def kept(self) -> Tensor:
        """1 for each entry that is kept, 0 for the others: (G,)."""
        if not self.training:
            chosen = (self.logits > 0).to(self.logits)
        else:
            uniform = torch.rand_like(self.logits).clamp(1e-6, 1 - 1e-6)
            soft = ((self.logits + uniform.logit()) / TEMPERATURE).sigmoid()
            chosen = (soft > 0.5).to(soft) + (soft - soft.detach())  # straight-through
        return torch.cat([torch.ones_like(chosen[:1]), chosen])

    def squared_amount(self) -> Tensor:
        """Return the square of the mean probability to leave an orientation out: 0 is p4, 1 a plain convolution."""
        return (-self.logits).sigmoid().mean().square()


class PresentNorm(nn.BatchNorm3d):
    """Batch normalisation over the entries that are present; the others stay zero."""

    def forward(self, maps: Tensor) -> Tensor:
        there_G = present(maps)
        if not self.training:
            return super().forward(maps) * there_G[:, None, None]
        entries = there_G.nonzero().flatten()
        return torch.zeros_like(maps).index_copy(2, entries, super().forward(maps.index_select(2, entries)))


class PresentMean(nn.Module):
    """Pooled maps (B, C, G) -> their mean over the entries that are present (B, C)."""

    def breaks(self, symmetry: Symmetry, side: int) -> None:
        """Nothing: it is invariant, wherever the entries are."""

    def forward(self, pooled: Tensor) -> Tensor:
        return pooled.sum(2) / present(pooled[..., None, None]).sum()


def present(maps: Tensor) -> Tensor:
    """Which entries of (B, C, G, H, W) hold anything but zeros, (G,) bool; the identity's always does."""
    there_G = maps.detach().abs().amax((0, 1, 3, 4)) > 0
    return torch.cat([torch.ones_like(there_G[:1]), there_G[1:]])


def _layer(axis: Axis, shape: Shape, keep: float, learned: bool) -> nn.Module:
    return GroupConv(axis, shape) if shape.lifts else PartialConv(axis, shape, keep, learned)

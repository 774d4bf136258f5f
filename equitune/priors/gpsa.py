"""Gated positional self-attention: attention that starts out as a convolution and may leave it (ConViT, 2103.10697).

A_h = (1 - sigmoid(l_h)) softmax(q k^T / sqrt d) + sigmoid(l_h) softmax(v_h . r), r = (dx, dy, dx^2 + dy^2). Head h
starts with v_h = alpha (2 Dx_h, 2 Dy_h, -1): it looks at offset D_h of a square stencil, the more sharply the larger
`locality` (alpha) is. l_h starts at `gate`; both are learned, or with `learned: false` stay as they are. Large ones
are a convolution with a kernel of sqrt(heads) x sqrt(heads), a gate far below zero is plain attention.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from equitune.errors import Infeasible
from equitune.groups.grid import TURNS, Symmetry
from equitune.layers.relaxable import Relaxable
from equitune.priors.attention import Attention

FEATURES = "tokens"


def build(
    *,
    locality: Annotated[float, Field(gt=0)] = 1.0,
    gate: float = 1.0,
    learned: bool = True,
    layers: Annotated[int, Field(ge=1, le=1000)] = 10,
    position: Literal["learned", "sincos", "none"] = "learned",
) -> "GPSA":
    return GPSA(locality, gate, learned, layers, position)


class GPSA:
    """The token layers of a ConViT: gated ones in the first `layers` blocks, plain attention in those after them."""

    def __init__(self, locality: float, gate: float, learned: bool, layers: int, position: str) -> None:
        self.locality, self.gate, self.learned = locality, gate, learned
        self.layers, self.plain = layers, Attention(position)

    def position(self, width: int, grid: int) -> nn.Module:
        return self.plain.position(width, grid)

    def mix(self, width: int, heads: int, grid: int, *, block: int) -> nn.Module:
        if block >= self.layers:
            return self.plain.mix(width, heads, grid, block=block)
        layer = GatedSelfAttention(width, heads, grid, self.locality, self.gate)
        layer.gate.requires_grad_(self.learned)
        layer.direction.requires_grad_(self.learned)
        return layer


class GatedSelfAttention(nn.Module, Relaxable):
    """(B, T, D) -> (B, T, D), on a square grid of T = grid * grid patches.

    Attributes:
        gate: l, (heads,).
        direction: v, (heads, 3).

    Raises:
        Infeasible: the heads do not form a square, or do not divide the width.
    """

    offsets: Tensor

    def __init__(self, width: int, heads: int, grid: int, locality: float, gate: float) -> None:
        super().__init__()
        if math.isqrt(heads) ** 2 != heads:
            raise Infeasible(f"gpsa lays its heads out as a square (1, 4, 9, 16, ...), but got {heads}")
        if width % heads:
            raise Infeasible(f"width {width} is not divisible by {heads} heads")
        self.heads = heads
        self.qk = nn.Linear(width, 2 * width, bias=False)
        self.v = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.v.weight)
        self.out = nn.Linear(width, width)
        self.has_places = bool(torch.tensor(float(gate), device="cpu").sigmoid())  # else the gate stays shut
        self.gate = nn.Parameter(torch.full((heads,), float(gate)))
        self.direction = nn.Parameter(locality * torch.cat([2 * stencil(heads), -torch.ones(heads, 1)], 1))
        self.register_buffer("offsets", offsets(grid), persistent=False)

    def breaks(self, symmetry: Symmetry, side: int) -> str | None:
        """Return the rule by which it fails to commute with a symmetry at the start."""
        is_round = self.heads == 1 and symmetry in TURNS  # a single head looks at its own place, equally far around
        keeps = symmetry == "hue" or is_round or not self.has_places
        return None if keeps else "its heads look at places on a map with borders"

    def loosens(self, symmetry: Symmetry) -> str | None:
        """Return what may break, in training, a symmetry that it has at the start."""
        moves = self.has_places and self.direction.requires_grad and symmetry != "hue"
        return "v, where its heads look, is learned" if moves else None

    def forward(self, tokens: Tensor) -> Tensor:
        q, k = self.qk(tokens).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        v = self.v(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        content_BHTT = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(3)
        share = self.gate.sigmoid()[:, None, None]
        attention = (1 - share) * content_BHTT + share * self.places()
        return self.out((attention @ v).transpose(1, 2).flatten(2))

    def places(self) -> Tensor:
        """Return the positional attention, (heads, T, T): how much each token takes from each."""
        return torch.einsum("hr,tur->htu", self.direction, self.offsets).softmax(2)

    def squared_amount(self) -> Tensor:
        """Return the square of the mean share of attention that goes by content, not by place: 0 at a gate
        of infinity.
        """
        return (-self.gate).sigmoid().mean().square()


def stencil(heads: int) -> Tensor:
    """D_h: the offsets (x, y) of a square of heads about its centre, in patches, row by row: (heads, 2)."""
    along = torch.arange(math.isqrt(heads)) - (math.isqrt(heads) - 1) / 2
    y, x = torch.meshgrid(along, along, indexing="ij")
    return torch.stack([x, y], 2).flatten(0, 1)


def offsets(grid: int) -> Tensor:
    """r = (dx, dy, dx^2 + dy^2) from each patch to each, in patches: (T, T, 3)."""
    along = torch.arange(grid, dtype=torch.get_default_dtype())
    y, x = (axis.flatten() for axis in torch.meshgrid(along, along, indexing="ij"))
    dx, dy = x - x[:, None], y - y[:, None]
    return torch.stack([dx, dy, dx**2 + dy**2], 2)

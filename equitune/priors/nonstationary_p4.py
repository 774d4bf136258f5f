"""Non-stationary group convolution, factored: `terms` group convolutions, mixed by waves over positions and turns.

The roto-translation form of `nonstationary` (after 2204.07178): y(x, g) = sum_r a_r(x, g) (L_g psi_r * f)(x), with
a_r(x, g) = sqrt(2 / R) cos(2 pi w2 (B_r . g^-1 x + C_r . e_g) + b_r), random B_r, C_r and b_r, x in [-1, 1]^2 and e_g
the turn as a point of the unit circle. w2 = 0 is `p4`, exactly. Positions are read in the frame of the orientation:
`relaxes: position` gives shifts up and keeps quarter turns about the centre, `orientation` gives turns up and keeps
shifts. `terms` (R) times the weights of `p4` and its multiply-adds, but those of `p4` for `relaxes: orientation`. With
`learned`, w2 is a weight of each layer, without weight decay.
"""

import math
from dataclasses import replace
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from equitune.groups.axis import ENTRIES
from equitune.groups.grid import Symmetry, out_side
from equitune.groups.layout import Axis
from equitune.layers.group import ExpandedConv, GroupPrior, joined, moved, sources
from equitune.layers.padding import PAD_MODE, check_padding, padded
from equitune.layers.plain import places, position_dependence
from equitune.layers.prior import Shape
from equitune.layers.relaxable import Relaxable

FEATURES = "maps"


def build(
    *,
    w2: Annotated[float, Field(ge=0)] = 0.03,
    learned: bool = False,
    relaxes: Literal["both", "position", "orientation"] = "both",
    terms: Annotated[int, Field(ge=1, le=100)] = 4,
    head: Literal["max", "mean", "flatten"] = "max",
    padding: Literal["zero", "circular", "reflect"] = "zero",
) -> "NonStationaryP4":
    layer = partial(NonStationaryGroupConv, w2=w2, learned=learned, relaxes=relaxes, terms=terms)
    return NonStationaryP4("c4", layer, head, padding)


class NonStationaryP4(GroupPrior):
    """A prior of a group whose layers know the side of their maps."""

    def built(self, shape: Shape, side: int) -> nn.Module:
        check_padding(self._padding, shape.padding, side)
        return self._layer(self.axis, replace(shape, pad_mode=PAD_MODE[self._padding]), side=side)


class NonStationaryGroupConv(ExpandedConv, Relaxable):
    """sum_r a_r(x, g) (L_g psi_r * f)(x).

    Attributes:
        psi: (terms, outputs, inputs, G_in, k, k).
        w2: how fast the filter changes, a scalar. Not trained where it is not `learned`.
        frequency, phase: B and C of what is relaxed, (terms, 2) or (terms, 4), and b, (terms,): drawn once.
        points: g^-1 x and e_g, of what is relaxed, (G, H', W', 2 or 4), or (G, 1, 1, 2) where positions are not.
    """

    sources: Tensor
    frequency: Tensor
    phase: Tensor
    points: Tensor

    def __init__(
        self, axis: Axis, shape: Shape, *, side: int, w2: float, learned: bool, relaxes: str, terms: int
    ) -> None:
        super().__init__(axis, shape)
        self.relaxes, self.initial_w2 = relaxes, w2
        kernel = shape.kernel
        # The waves have mean square 1 / R: the mixed filter has the variance of each psi_r.
        self.psi = nn.Parameter(self.uniform(terms, shape.outputs, shape.inputs, self.entries_in, kernel, kernel))
        self.w2 = nn.Parameter(torch.tensor(float(w2)), requires_grad=learned)
        out = out_side(side, kernel, stride=shape.stride, padding=shape.padding)
        points = relaxed_points(axis, out, relaxes)
        self.register_buffer("frequency", torch.randn(terms, points.shape[3]))
        self.register_buffer("phase", torch.rand(terms) * 2 * math.pi)
        self.register_buffer("points", points, persistent=False)
        self.register_buffer("sources", sources(axis, self.entries_in, kernel), persistent=False)

    def waves(self) -> Tensor:
        """a_r(x, g): (terms, G, H', W'), or (terms, G, 1, 1) where positions are not relaxed."""
        angle = 2 * math.pi * self.w2 * torch.einsum("rp,ghwp->rghw", self.frequency, self.points)
        return (2 / len(self.phase)) ** 0.5 * torch.cos(angle + self.phase[:, None, None, None])

    def expand(self) -> Tensor:
        """Return the filters of one conv2d: of each term, (terms * outputs * G, inputs * G_in, k, k); or
        already mixed.
        """
        filters = moved(self.psi.flatten(0, 1), self.sources)  # (terms * outputs, G, inputs, G_in, k, k)
        if self.relaxes != "orientation":
            return joined(filters)
        shares = self.waves()[:, None, :, :, :, None]  # (terms, 1, G, 1, 1, 1), to (terms, outputs, G, inputs, ...)
        return joined((torch.unflatten(filters, 0, (len(self.psi), -1)) * shares[..., None]).sum(0))

    def forward(self, maps: Tensor) -> Tensor:
        if self.relaxes == "orientation":
            return super().forward(maps)
        maps, padding = padded(maps.flatten(1, 2) if maps.ndim == 5 else maps, self.padding, self.pad_mode)
        parts = functional.conv2d(maps, self.filters(), None, self.stride, padding)
        parts = torch.unflatten(parts, 1, (len(self.psi), -1, self.entries))  # (B, terms, outputs, G, H', W')
        out = (parts * self.waves()[:, None]).sum(1)
        return out if self.bias is None else out + self.bias[:, None, None, None]

    def breaks(self, symmetry: Symmetry, side: int) -> str | None:
        """Return the rule by which it fails to commute with a symmetry on maps of this side, at the start."""
        if self.initial_w2 and (given_up := self._given_up(symmetry)):
            return f"its filters change with their {given_up} (w2 {self.initial_w2:g})"
        return super().breaks(symmetry, side)

    def loosens(self, symmetry: Symmetry) -> str | None:
        """Return what may break, in training, a symmetry that it has at the start."""
        given_up = self._given_up(symmetry) if self.w2.requires_grad else None
        return given_up and f"w2, how fast its filters change with their {given_up}, is learned"

    def _given_up(self, symmetry: Symmetry) -> str | None:
        """With what the filters may change that a symmetry asks them to keep."""
        asked = {"hue": None, "c4": "orientation", "d4": "orientation"}.get(symmetry, "position")
        return asked if self.relaxes in (asked, "both") else None

    def squared_amount(self) -> Tensor:
        """How far the filters of all positions and orientations, each in its own frame, are from one filter.

        0 a group convolution (`position_dependence`).
        """
        filters = self.psi.flatten(1)
        return position_dependence(self.waves().flatten(1).T, filters @ filters.T)


def relaxed_points(axis: Axis, side: int, relaxes: str) -> Tensor:
    """Where on a square map, as seen from each orientation, and which orientation: (G, H, W, coordinates)."""
    turned = torch.stack([places(side).rot90(turn) for turn in range(ENTRIES[axis])])  # at x and g, where g^-1 x lies
    angles = torch.arange(ENTRIES[axis]) * math.pi / 2
    circle = torch.stack([angles.cos(), angles.sin()], 1)[:, None, None]  # (G, 1, 1, 2)
    if relaxes == "both":
        return torch.cat([turned, circle.expand(-1, side, side, -1)], 3)
    return turned if relaxes == "position" else circle

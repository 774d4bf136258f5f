"""The orbit of quarter turns: plain kernels on four turned copies of the image, mixed by a cyclic convolution.

Entry r of the group axis is computed from the image turned by -r quarters, so a quarter turn of the image rolls the
axis and moves no plane: exact under quarter turns at every size and stride, with any kernel. A shift moves the four
planes in four directions, so that only `turns: 1`, which never adds them up, commutes with it. `turns` copies are read
by each; it multiplies the weights of `conv`, and 4 * `turns` its multiply-adds.
"""

from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from equitune.groups.grid import COLOURS, Symmetry, uneven
from equitune.groups.layout import Axis
from equitune.layers.group import GroupPrior, joined, moved, sources
from equitune.layers.padding import padded
from equitune.layers.prior import Shape

FEATURES = "maps"


def build(
    *,
    turns: Annotated[int, Field(ge=1, le=4)] = 4,
    head: Literal["max", "mean", "flatten"] = "max",
    padding: Literal["zero", "circular", "reflect"] = "zero",
) -> GroupPrior:
    return GroupPrior("orbit_c4", partial(OrbitConv, turns=turns), head, padding)


class OrbitConv(nn.Module):
    """out[o, r] = sum_i,d x[i, r + d mod 4] * psi[o, i, d], d < turns.

    Maps (B, inputs, 4, H, W) -> maps (B, outputs, 4, H', W'). Where it lifts, of square images (B, inputs, H, W),
    x[i, r] is the image turned by -r quarters, and d = 0.

    Attributes:
        psi: (outputs, inputs, turns, k, k).
        bias: (outputs,), or None.
    """

    sources: Tensor | None

    def __init__(self, axis: Axis, shape: Shape, turns: int) -> None:
        super().__init__()
        self.kernel, self.lifts, self.turns = shape.kernel, shape.lifts, 1 if shape.lifts else turns
        # Not `stride` and `kernel_size`: whether windows lie evenly says nothing about planes that do not turn.
        self.step, self.border, self.pad_mode = shape.stride, shape.padding, shape.pad_mode
        bound = (shape.inputs * shape.kernel**2) ** -0.5  # as the other priors with a group
        sizes = (shape.outputs, shape.inputs, self.turns, shape.kernel, shape.kernel)
        self.psi = nn.Parameter(torch.empty(sizes).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(shape.outputs).uniform_(-bound, bound)) if shape.bias else None
        table = sources(axis, self.turns, shape.kernel) if self.turns == 4 else None
        self.register_buffer("sources", table, persistent=False)

    def breaks(self, symmetry: Symmetry, side: int) -> str | None:
        """Return the rule by which it fails to commute with a symmetry on maps of this side."""
        if symmetry == "hue":
            return COLOURS
        if symmetry == "c4":
            return None
        if symmetry == "d4":
            return "its group has no flips"
        if self.turns > 1:
            return "it adds up planes that a shift moves in different directions"
        wraps = self.pad_mode == "circular"
        return uneven(symmetry, side, self.kernel, stride=self.step, padding=self.border, wraps=wraps)

    def forward(self, maps: Tensor) -> Tensor:
        if self.lifts:
            maps = torch.stack([maps.rot90(-turn, (2, 3)) for turn in range(4)], 2)
        if self.sources is not None:  # every entry reads every other: one conv2d, at up to twice the speed of a conv3d
            images, border = padded(maps.flatten(1, 2), self.border, self.pad_mode)
            bias = None if self.bias is None else self.bias[:, None].expand(-1, 4).flatten()
            out = functional.conv2d(images, joined(moved(self.psi, self.sources)), bias, self.step, border)
            return torch.unflatten(out, 1, (-1, 4))
        maps, border = padded(torch.cat([maps, maps[:, :, : self.turns - 1]], 2), self.border, self.pad_mode)
        return functional.conv3d(maps, self.psi, self.bias, (1, self.step, self.step), (0, border, border))

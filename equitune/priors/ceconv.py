"""Colour-equivariant convolution: a filter in three hues, which turning all hues by 120 degrees exchanges (2310.19368).

A turn by 120 degrees is the cyclic exchange of red, green and blue, so the layers commute with it exactly. Maps gain a
group axis of three hues: the first layer sees the filter with its channels rolled, the others with its hue axis
rolled. `separable` parts the kernel into space and hue. Three times the weights of `conv` but in the first layer, and
nine times its multiply-adds, three times in the first.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from equitune.errors import Infeasible
from equitune.groups.grid import Symmetry, of_free_kernels
from equitune.layers.group import CosetPool
from equitune.layers.padding import PAD_MODE, check_padding, padded
from equitune.layers.prior import MapPrior, Shape

FEATURES = "maps"
HUES = 3


def build(
    *,
    separable: bool = False,
    head: Literal["max", "mean", "flatten"] = "max",
    padding: Literal["zero", "circular", "reflect"] = "zero",
) -> "CEConv":
    return CEConv(separable, head, padding)


class CEConv(MapPrior):
    """The layers of a network that commutes with turns of hue by 120 degrees; with `head: flatten`, not its scores."""

    axis = "hue"

    def __init__(self, separable: bool, head: str, padding: str) -> None:
        self.separable, self.pooling, self.padding = separable, head, padding

    def built(self, shape: Shape, side: int) -> nn.Module:
        if shape.lifts and shape.inputs != HUES:
            raise Infeasible(f"ceconv turns the hue of images with 3 channels, but got {shape.inputs}")
        check_padding(self.padding, shape.padding, side)
        layer = HueConv2d(
            1 if shape.lifts else shape.inputs,
            shape.outputs,
            shape.kernel,
            shape.stride,
            shape.padding,
            shape.bias,
            PAD_MODE[self.padding],
            is_separable=self.separable and not shape.lifts,
        )
        # The three colours of an image are an axis of hues already.
        return nn.Sequential(nn.Unflatten(1, (1, HUES)), layer) if shape.lifts else layer

    def norm(self, channels: int) -> nn.Module:
        return nn.BatchNorm3d(channels)

    def head(self, channels: int) -> tuple[nn.Module, int]:
        return CosetPool(self.pooling, self.axis), channels * (HUES if self.pooling == "flatten" else 1)


class HueConv2d(nn.Module):
    """out[o, r] = sum_i,s x[i, s] * psi[o, i, s - r]: maps (B, inputs, 3, H, W) -> (B, outputs, 3, H', W').

    Attributes:
        weight: psi, (outputs, inputs, 3, kernel, kernel); of a separable kernel its part in space, with 1 for the 3.
        hues: of a separable kernel the part in hue, (outputs, inputs, 3, 1, 1), that multiplies `weight`; or None.
        bias: (outputs,), or None.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int,
        padding: int,
        bias: bool,
        pad_mode: str,
        *,
        is_separable: bool,
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding, self.pad_mode = kernel, stride, padding, pad_mode
        bound = (inputs * HUES * kernel**2) ** -0.5  # as torch initialises a convolution of the same fan-in
        space = torch.empty(outputs, inputs, 1 if is_separable else HUES, kernel, kernel)
        self.weight = nn.Parameter(space.uniform_(-bound, bound))
        limit = 3**0.5  # variance 1
        self.hues = (
            nn.Parameter(torch.empty(outputs, inputs, HUES, 1, 1).uniform_(-limit, limit)) if is_separable else None
        )
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound)) if bias else None

    def breaks(self, symmetry: Symmetry, side: int) -> str | None:
        """Return the rule by which it fails to commute with a symmetry on maps of this side."""
        if symmetry == "hue":
            return None
        wraps = self.pad_mode == "circular"
        return of_free_kernels(symmetry, side, self.kernel_size, stride=self.stride, padding=self.padding, wraps=wraps)

    def kernel(self) -> Tensor:
        """Return the filter in each hue, (outputs * 3, inputs * 3, kernel, kernel)."""
        psi = self.weight if self.hues is None else self.weight * self.hues
        return torch.stack([psi.roll(hue, 2) for hue in range(HUES)], 1).flatten(0, 1).flatten(1, 2)

    def forward(self, maps: Tensor) -> Tensor:
        planes, padding = padded(maps.flatten(1, 2), self.padding, self.pad_mode)
        bias = None if self.bias is None else self.bias.repeat_interleave(HUES)
        found = functional.conv2d(planes, self.kernel(), bias, self.stride, padding)
        return found.view(found.shape[0], -1, HUES, *found.shape[2:])

"""Locally connected layers: the receptive fields of a convolution with a kernel of its own at each position.

No weight is shared, so equivariance to translation must be learned. H * W times the weights of `conv`, the same
number of multiply-adds. With all kernels tied it equals `conv`.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from equitune.groups.grid import Symmetry, out_side
from equitune.layers.padding import PAD_MODE, check_padding
from equitune.layers.plain import PlainPrior

FEATURES = "maps"


def build(*, padding: Literal["zero", "circular", "reflect"] = "zero") -> "Local":
    return Local(padding)


class Local(PlainPrior):
    """The layers of a network without weight sharing."""

    def __init__(self, padding: str) -> None:
        self.padding = padding

    def layer(
        self, inputs: int, outputs: int, kernel: int, side: int, stride: int, padding: int, bias: bool
    ) -> nn.Module:
        check_padding(self.padding, padding, side)
        return LocalConv2d(inputs, outputs, kernel, side, stride, padding, bias, PAD_MODE[self.padding])


class LocalConv2d(nn.Module):
    """A convolution with a kernel (and a bias, where asked for) of its own at each output position.

    Images (B, inputs, side, side) -> (B, outputs, side', side').

    Attributes:
        weight: (positions, outputs, inputs * kernel * kernel), positions in row-major order.
        bias: (outputs, positions), or None.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, side: int, stride: int, padding: int, bias: bool, pad_mode: str
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding, self.pad_mode = kernel, stride, padding, pad_mode
        self.side = out_side(side, kernel, stride=stride, padding=padding)
        fan_in = inputs * kernel * kernel
        bound = fan_in**-0.5  # as torch initialises a convolution of the same fan-in
        self.weight = nn.Parameter(torch.empty(self.side**2, outputs, fan_in).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(outputs, self.side**2).uniform_(-bound, bound)) if bias else None

    def breaks(self, symmetry: Symmetry, side: int) -> str | None:
        """Return the rule by which it fails to commute with a symmetry."""
        return "it has a kernel of its own at each position"

    def forward(self, images: Tensor) -> Tensor:
        maps = convolve_locally(images, self.weight, self.kernel, self.stride, self.padding, self.pad_mode)
        return maps if self.bias is None else maps + self.bias.view(-1, self.side, self.side)


def convolve_locally(
    images: Tensor, weight_POF: Tensor, kernel: int, stride: int, padding: int, pad_mode: str
) -> Tensor:
    """Images (B, C, H, W) under a kernel for each of the P positions of a square map: (B, O, H', W').

    The F weights of a kernel are in the order of torch's unfold: channel, row, column.
    """
    if padding:
        images = functional.pad(images, (padding,) * 4, mode=pad_mode)
    patches = functional.unfold(images, kernel, stride=stride)  # (B, F, P)
    out = torch.bmm(patches.permute(2, 0, 1), weight_POF.transpose(1, 2)).permute(1, 2, 0)
    side = math.isqrt(out.shape[2])
    return out.reshape(*out.shape[:2], side, side)

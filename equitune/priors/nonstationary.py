"""Non-stationary filters, factored: R convolutions, mixed by waves over the image (after 2204.07178).

y(v) = sum_r a_r(v) (W_r * x)(v), a_r(v) = sqrt(2 / R) cos(2 pi w2 B_r . v + b_r), with random B_r and b_r, and v in
[-1, 1]^2. w2 = 0 is one convolution, exactly; the larger it is, the faster the filter changes with its position.
`terms` (R) times the weights and multiply-adds of `conv`. With `learned`, w2 is a weight of each layer, without weight
decay.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from equitune.groups.grid import Symmetry, of_free_kernels, out_side
from equitune.layers.padding import PAD_MODE, check_padding
from equitune.layers.plain import PlainPrior, places, position_dependence
from equitune.layers.relaxable import Relaxable

FEATURES = "maps"


def build(
    *,
    w2: Annotated[float, Field(ge=0)] = 0.03,
    learned: bool = False,
    terms: Annotated[int, Field(ge=1, le=100)] = 4,
    padding: Literal["zero", "circular", "reflect"] = "zero",
) -> "NonStationary":
    return NonStationary(w2, learned, terms, padding)


class NonStationary(PlainPrior):
    """The layers of a network whose filters change with their position as fast as w2 lets them."""

    def __init__(self, w2: float, learned: bool, terms: int, padding: str) -> None:
        self.w2, self.learned, self.terms, self.padding = w2, learned, terms, padding

    def layer(
        self, inputs: int, outputs: int, kernel: int, side: int, stride: int, padding: int, bias: bool
    ) -> nn.Module:
        check_padding(self.padding, padding, side)
        layer = NonStationaryConv2d(
            inputs, outputs, kernel, side, stride, padding, bias, PAD_MODE[self.padding], self.w2, self.terms
        )
        layer.w2.requires_grad_(self.learned)
        return layer


class NonStationaryConv2d(nn.Module, Relaxable):
    """Images (B, inputs, side, side) -> (B, outputs, side', side').

    Attributes:
        weight: W, (terms, outputs, inputs, kernel, kernel).
        frequency, phase: B, (terms, 2), and b, (terms,): drawn once.
        w2: how fast the filter changes with its position, a scalar.
        bias: (outputs,), or None.
    """

    frequency: Tensor
    phase: Tensor
    places: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        side: int,
        stride: int,
        padding: int,
        bias: bool,
        pad_mode: str,
        w2: float,
        terms: int,
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding, self.pad_mode = kernel, stride, padding, pad_mode
        fan_in = inputs * kernel**2  # the waves have mean square 1 / R: the mixed filter has the variance of each W_r
        self.weight = nn.Parameter(torch.randn(terms, outputs, inputs, kernel, kernel) * (2 / fan_in) ** 0.5)
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-(fan_in**-0.5), fan_in**-0.5)) if bias else None
        self.w2, self.initial_w2 = nn.Parameter(torch.tensor(float(w2))), w2
        self.register_buffer("frequency", torch.randn(terms, 2))
        self.register_buffer("phase", torch.rand(terms) * 2 * math.pi)
        self.register_buffer("places", places(out_side(side, kernel, stride=stride, padding=padding)), persistent=False)

    def breaks(self, symmetry: Symmetry, side: int) -> str | None:
        """Return the rule by which it fails to commute with a symmetry on maps of this side, at the start."""
        if self.initial_w2 and symmetry != "hue":
            return f"its filters change with their position (w2 {self.initial_w2:g})"
        wraps = self.pad_mode == "circular"
        return of_free_kernels(symmetry, side, self.kernel_size, stride=self.stride, padding=self.padding, wraps=wraps)

    def loosens(self, symmetry: Symmetry) -> str | None:
        """Return what may break, in training, a symmetry that it has at the start."""
        return "w2, how fast its filters change with their position, is learned" if self.w2.requires_grad else None

    def waves(self) -> Tensor:
        """a_r(v): (terms, side', side')."""
        angle = 2 * math.pi * self.w2 * torch.einsum("rx,hwx->rhw", self.frequency, self.places)
        return (2 / len(self.phase)) ** 0.5 * torch.cos(angle + self.phase[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        if self.padding:
            images = functional.pad(images, (self.padding,) * 4, mode=self.pad_mode)
        maps = torch.zeros((), dtype=images.dtype, device=images.device)
        for kernel, wave in zip(self.weight, self.waves(), strict=True):  # faster than one convolution of all kernels
            maps = torch.addcmul(maps, functional.conv2d(images, kernel, stride=self.stride), wave)
        return maps if self.bias is None else maps + self.bias[:, None, None]

    def squared_amount(self) -> Tensor:
        """How much of the filter depends on its position (`position_dependence`): 0 at w2 = 0."""
        kernels = self.weight.flatten(1)
        return position_dependence(self.waves().flatten(1).T, kernels @ kernels.T)

"""Non-stationary filters, exact: a small network tells the kernel of every position (2204.07178).

y(v) = sum_u k(u - v, v) x(u), k(a, v) = NN([phi(w1 a), phi(w2 v)]), phi(z) = [cos 2 pi B z, sin 2 pi B z], where B is
random and a and v lie in [-1, 1]^2. w2 = 0 is a convolution; w1 = 0 weighs all that a kernel covers alike, so that one
covering a closed map is strictly invariant; both large give any linear map. The multiply-adds of `conv` and, once a
batch, those of the network; the table of kernels (positions, outputs, inputs, kernel, kernel) lies in memory. With
`learned`, w1 and w2 are weights of each layer, without weight decay.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from equitune.groups.grid import COLOURS, TURNS, Symmetry, of_free_kernels, out_side, uneven
from equitune.layers.padding import PAD_MODE, check_padding
from equitune.layers.plain import PlainPrior, places, position_dependence
from equitune.layers.relaxable import Relaxable
from equitune.priors.local import convolve_locally

FEATURES = "maps"
FREQUENCIES = 16
HIDDEN = 32


def build(
    *,
    w1: Annotated[float, Field(ge=0)] = 1.0,
    w2: Annotated[float, Field(ge=0)] = 0.03,
    learned: bool = False,
    padding: Literal["zero", "circular", "reflect"] = "zero",
) -> "NonStationaryExact":
    return NonStationaryExact(w1, w2, learned, padding)


class NonStationaryExact(PlainPrior):
    """The layers of a network whose kernels are functions of offset and position."""

    def __init__(self, w1: float, w2: float, learned: bool, padding: str) -> None:
        self.w1, self.w2, self.learned, self.padding = w1, w2, learned, padding

    def layer(
        self, inputs: int, outputs: int, kernel: int, side: int, stride: int, padding: int, bias: bool
    ) -> nn.Module:
        check_padding(self.padding, padding, side)
        layer = KernelFieldConv2d(
            inputs, outputs, kernel, side, stride, padding, bias, PAD_MODE[self.padding], self.w1, self.w2
        )
        layer.w1.requires_grad_(self.learned)
        layer.w2.requires_grad_(self.learned)
        return layer


class KernelFieldConv2d(nn.Module, Relaxable):
    """Images (B, inputs, side, side) -> (B, outputs, side', side').

    Attributes:
        w1, w2: how fast the kernel changes with the offset and with the position, scalars.
        offset_frequency, place_frequency: B of each, (FREQUENCIES, 2): drawn once.
        bias: (outputs,), or None.
    """

    offset_frequency: Tensor
    place_frequency: Tensor
    offsets: Tensor
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
        w1: float,
        w2: float,
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding, self.pad_mode = kernel, stride, padding, pad_mode
        self.inputs, self.outputs = inputs, outputs
        fan_in = inputs * kernel**2
        self.w1, self.w2 = nn.Parameter(torch.tensor(float(w1))), nn.Parameter(torch.tensor(float(w2)))
        self.initial_w1, self.initial_w2 = w1, w2
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-(fan_in**-0.5), fan_in**-0.5)) if bias else None
        self.hidden = nn.Linear(4 * FREQUENCIES, HIDDEN)
        self.out = nn.Linear(HIDDEN, outputs * inputs)
        nn.init.kaiming_normal_(self.hidden.weight, nonlinearity="relu")
        nn.init.zeros_(self.hidden.bias)
        # A hidden unit adds up 64 waves of mean square 1/2 under weights of variance 2/64; its ReLU halves the square.
        nn.init.normal_(self.out.weight, std=(2 / (fan_in * HIDDEN * 0.5)) ** 0.5)
        nn.init.zeros_(self.out.bias)
        self.register_buffer("offset_frequency", torch.randn(FREQUENCIES, 2))
        self.register_buffer("place_frequency", torch.randn(FREQUENCIES, 2))
        out = out_side(side, kernel, stride=stride, padding=padding)
        self.register_buffer("offsets", places(kernel).flatten(0, 1), persistent=False)
        self.register_buffer("places", places(out).flatten(0, 1), persistent=False)

    def breaks(self, symmetry: Symmetry, side: int) -> str | None:
        """Return the rule by which it fails to commute with a symmetry on maps of this side, at the start."""
        if symmetry == "hue":
            return COLOURS
        if self.initial_w2:
            return f"its kernels change with their position (w2 {self.initial_w2:g})"
        rule = uneven if self.initial_w1 == 0 else of_free_kernels  # at w1 = 0 all weights of a kernel are the same
        wraps = self.pad_mode == "circular"
        return rule(symmetry, side, self.kernel_size, stride=self.stride, padding=self.padding, wraps=wraps)

    def loosens(self, symmetry: Symmetry) -> str | None:
        """Return what may break, in training, a symmetry that it has at the start."""
        learned = "w1 and w2" if symmetry in TURNS else "w2"
        return f"{learned}, how fast its kernels change, is learned" if self.w2.requires_grad else None

    def kernels(self) -> Tensor:
        """Return the table of kernels, (positions, outputs, inputs * kernel * kernel)."""
        of_offset, of_place = self.hidden.weight.chunk(2, 1)
        offset_KH = self._waves(self.w1, self.offset_frequency, self.offsets) @ of_offset.T
        place_PH = self._waves(self.w2, self.place_frequency, self.places) @ of_place.T
        hidden_PKH = torch.relu(place_PH[:, None] + offset_KH + self.hidden.bias)
        table_PKOI = self.out(hidden_PKH).unflatten(2, (self.outputs, self.inputs))
        return table_PKOI.permute(0, 2, 3, 1).flatten(2)

    def forward(self, images: Tensor) -> Tensor:
        maps = convolve_locally(images, self.kernels(), self.kernel_size, self.stride, self.padding, self.pad_mode)
        return maps if self.bias is None else maps + self.bias[:, None, None]

    def squared_amount(self) -> Tensor:
        """How much of the kernel depends on its position (`position_dependence`): 0 at w2 = 0."""
        return position_dependence(self.kernels().flatten(1))

    @staticmethod
    def _waves(speed: Tensor, frequency: Tensor, points: Tensor) -> Tensor:
        """phi: points (n, 2) -> (n, 2 * FREQUENCIES)."""
        angle = 2 * math.pi * speed * points @ frequency.T
        return torch.cat([angle.cos(), angle.sin()], 1)

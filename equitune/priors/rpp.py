"""Residual pathway priors: a convolution beside a free path that decays faster (2112.01388).

y = conv(x) + a free(x). Each path has a Gaussian prior on its weights, that of the free path `decay_ratio` times as
narrow in variance: its weight decay is that many times the study's. How far it leaves zero is what training learns;
a = 0 is a convolution. With `learned`, a is a weight of each layer, without weight decay. `free: fc` is a full matrix,
Cin * Cout * HW_in * HW_out weights, as in the paper and for small maps alone; `local` gives it the receptive fields of
the convolution, HW_out times the weights of `conv`.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from equitune.groups.grid import Symmetry, of_free_kernels, out_side
from equitune.layers.padding import PAD_MODE
from equitune.layers.plain import PlainPrior
from equitune.layers.relaxable import Relaxable, share
from equitune.priors.conv import Conv
from equitune.priors.local import LocalConv2d

FEATURES = "maps"


def build(
    *,
    a: Annotated[float, Field(ge=0)] = 0.1,
    learned: bool = False,
    decay_ratio: Annotated[float, Field(ge=1)] = 100.0,
    free: Literal["local", "fc"] = "local",
    padding: Literal["zero", "circular", "reflect"] = "zero",
) -> "RPP":
    return RPP(a, learned, decay_ratio, free, padding)


class RPP(PlainPrior):
    """The layers of a network that may leave the convolution where the data ask for it."""

    def __init__(self, a: float, learned: bool, decay_ratio: float, free: str, padding: str) -> None:
        self.a, self.learned, self.decay_ratio, self.free, self.padding = a, learned, decay_ratio, free, padding

    def layer(
        self, inputs: int, outputs: int, kernel: int, side: int, stride: int, padding: int, bias: bool
    ) -> nn.Module:
        tied = Conv(self.padding).layer(inputs, outputs, kernel, side, stride, padding, bias)
        free = (
            LocalConv2d(inputs, outputs, kernel, side, stride, padding, True, PAD_MODE[self.padding])
            if self.free == "local"
            else FullyConnected(inputs, outputs, side, out_side(side, kernel, stride=stride, padding=padding))
        )
        layer = ResidualPathway(tied, free, self.a, self.decay_ratio)
        if self.learned:
            layer.a = nn.Parameter(torch.tensor(float(self.a)))
        return layer


class ResidualPathway(nn.Module, Relaxable):
    """conv(x) + a free(x): images (B, C, side, side) -> (B, C', side', side').

    Attributes:
        a: a scalar where it is learned.
    """

    free: "LocalConv2d | FullyConnected"
    a: float | nn.Parameter

    def __init__(self, tied: nn.Conv2d, free: "LocalConv2d | FullyConnected", a: float, decay_ratio: float) -> None:
        super().__init__()
        self.tied, self.free, self.a, self.initial_a = tied, free, a, a
        self.free.decay_factor = decay_ratio  # type: ignore[assignment]  # what `build_optimizer` multiplies weight decay by

    def breaks(self, symmetry: Symmetry, side: int) -> str | None:
        """Return the rule by which it fails to commute with a symmetry on maps of this side, at the start."""
        if self.initial_a:
            return f"its free path has weights of its own at each position (a {self.initial_a:g})"
        (kernel, _), (stride, _), wraps = self.tied.kernel_size, self.tied.stride, self.tied.padding_mode == "circular"
        padding = int(self.tied.padding[0])
        return of_free_kernels(symmetry, side, kernel, stride=stride, padding=padding, wraps=wraps)

    def loosens(self, symmetry: Symmetry) -> str | None:
        """Return what may break, in training, a symmetry that it has at the start."""
        return "a, the share of its free path, is learned" if isinstance(self.a, nn.Parameter) else None

    def forward(self, images: Tensor) -> Tensor:
        return self.tied(images) + self.a * self.free(images)

    def squared_amount(self) -> Tensor:
        """Return the mean square weight of the free path, a included, over that of both: 0 at a = 0, at most 1.

        The weights are those of the whole linear map, in which a convolution's kernel stands once a position.
        """
        free = self.a**2 * self.free.weight.square().sum()
        tied = self.tied.weight.square().sum() * self.free.side**2
        return share(free, free + tied)


class FullyConnected(nn.Module):
    """A full matrix between maps: images (B, inputs, side, side) -> (B, outputs, out, out).

    Attributes:
        weight: (outputs * out * out, inputs * side * side).
        bias: (outputs, out * out).
    """

    def __init__(self, inputs: int, outputs: int, side: int, out: int) -> None:
        super().__init__()
        self.side = out
        bound = (inputs * side**2) ** -0.5  # as torch initialises a linear layer
        self.weight = nn.Parameter(torch.empty(outputs * out**2, inputs * side**2).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(outputs, out**2).uniform_(-bound, bound))

    def forward(self, images: Tensor) -> Tensor:
        maps = images.flatten(1) @ self.weight.T + self.bias.flatten()
        return maps.reshape(-1, len(self.bias), self.side, self.side)

"""Softly isotropic kernels: what of a plain kernel changes under quarter turns is damped, with no group axis.

After 2603.26657. A kernel's parts are those on which rho(turn) - 1 has the singular values s = 0, sqrt 2 and 2; each is
multiplied by exp(-s / softness). At `softness: 0` only isotropic kernels are left, exactly equivariant to quarter
turns; at 1 the kernel is free: a jump, since below 1 the factors stay under .25 and .14. With `learned`, the softness
is a weight of each layer, within (0, 1). Weights and multiply-adds of `conv`.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from equitune.errors import Infeasible
from equitune.groups.grid import COLOURS, TURNS, Symmetry, uneven
from equitune.layers.padding import TORCH_PADDING, PadMode, check_padding
from equitune.layers.plain import PlainPrior
from equitune.layers.relaxable import Relaxable, share

FEATURES = "maps"


def build(
    *,
    softness: Annotated[float, Field(ge=0, le=1)] = 0.5,
    learned: bool = False,
    padding: Literal["zero", "circular", "reflect"] = "zero",
) -> "SoftEq":
    return SoftEq(softness, learned, padding)


class SoftEq(PlainPrior):
    """The layers of a network with softly isotropic kernels.

    Raises:
        Infeasible: a softness that is learned begins at a corner, from where no gradient leads away.
    """

    def __init__(self, softness: float, learned: bool, padding: str) -> None:
        if learned and softness in (0, 1):
            raise Infeasible(f"a softness that is learned begins between 0 and 1, but got {softness}")
        self.softness, self.learned, self.padding = softness, learned, padding

    def layer(
        self, inputs: int, outputs: int, kernel: int, side: int, stride: int, padding: int, bias: bool
    ) -> nn.Module:
        check_padding(self.padding, padding, side)
        layer = SoftConv2d(inputs, outputs, kernel, stride, padding, bias, TORCH_PADDING[self.padding], self.softness)
        if self.learned:
            layer.logit = nn.Parameter(torch.tensor(self.softness).logit())
        return layer


class SoftConv2d(nn.Conv2d, Relaxable):
    """A convolution by the damped kernel: images (B, inputs, H, W) -> (B, outputs, H', W').

    Attributes:
        logit: of the softness where it is learned, a scalar.
    """

    logit: nn.Parameter | None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int,
        padding: int,
        bias: bool,
        pad_mode: PadMode,
        softness: float,
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding, bias=bias, padding_mode=pad_mode)
        self.softness, self.logit = softness, None

    def breaks(self, symmetry: Symmetry, side: int) -> str | None:
        """Return the rule by which it fails to commute with a symmetry on maps of this side."""
        (kernel, _), (stride, _), padding = self.kernel_size, self.stride, int(self.padding[0])
        if symmetry == "hue":
            return COLOURS
        if symmetry in TURNS and kernel > 1 and any(damping(self.softness)):
            return f"its kernels keep parts that are not isotropic (softness {self.softness:g})"
        if symmetry == "d4" and kernel > 3:  # up to 3 x 3, what a quarter turn keeps a flip keeps, too
            return f"its kernels of {kernel} x {kernel} are isotropic under quarter turns alone"
        wraps = self.padding_mode == "circular"
        return uneven(symmetry, side, kernel, stride=stride, padding=padding, wraps=wraps)

    def kernel(self) -> Tensor:
        """Return the weight's parts on which a quarter turn is 1, i or -i, and -1; each with its factor."""
        half, other = self.weight + self.weight.rot90(2, (2, 3)), self.weight - self.weight.rot90(2, (2, 3))
        turned = half.rot90(1, (2, 3))
        middle, last = damping(self.softness if self.logit is None else self.logit.sigmoid())
        return (half + turned) / 4 + middle * other / 2 + last * (half - turned) / 4

    def squared_amount(self) -> Tensor:
        """|K - Pi K|^2 / |K|^2, Pi the mean over quarter turns: how much of the damped kernels is not isotropic."""
        kernel = self.kernel()
        mean = torch.stack([kernel.rot90(turn, (2, 3)) for turn in range(4)]).mean(0)
        return share((kernel - mean).square().sum(), kernel.square().sum())

    def forward(self, images: Tensor) -> Tensor:
        return self._conv_forward(images, self.kernel(), self.bias)


def damping(softness: float | Tensor) -> tuple[float | Tensor, float | Tensor]:
    """Return the factors of the parts with the singular values sqrt 2 and 2."""
    if isinstance(softness, Tensor):
        return (-math.sqrt(2) / softness).exp(), (-2 / softness).exp()
    if softness in (0, 1):
        return float(softness), float(softness)
    return math.exp(-math.sqrt(2) / softness), math.exp(-2 / softness)

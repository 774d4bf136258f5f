"""Plain convolution: one kernel shared by all positions, hence equivariant to translation but for its border.

With `padding: circular` and stride 1 it is exactly equivariant to circular shifts.
"""

from typing import Literal

from torch import nn

from equitune.errors import Infeasible
from equitune.priors._plain import Lifted, OnMaps, PlainNorm

PadMode = Literal["zeros", "circular", "reflect"]
TORCH_PADDING: dict[str, PadMode] = {"zero": "zeros", "circular": "circular", "reflect": "reflect"}


def build(*, padding: Literal["zero", "circular", "reflect"] = "zero") -> "Conv":
    return Conv(padding)


class Conv(PlainNorm):
    """The layers of a plain convolutional network."""

    def __init__(self, padding: str) -> None:
        self.padding = padding

    def lift(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        side: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = False,
    ) -> nn.Module:
        return Lifted(self._layer(inputs, outputs, kernel, side, stride, padding, bias))

    def conv(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        side: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = False,
    ) -> nn.Module:
        return OnMaps(self._layer(inputs, outputs, kernel, side, stride, padding, bias))

    def _layer(
        self, inputs: int, outputs: int, kernel: int, side: int, stride: int, padding: int, bias: bool
    ) -> nn.Module:
        if padding >= side and self.padding == "reflect":
            raise Infeasible(f"reflect padding of {padding} needs a map larger than {side} x {side}")
        mode = TORCH_PADDING[self.padding]
        return nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=bias, padding_mode=mode)

"""Plain convolution: one kernel shared by all positions, hence equivariant to translation but for its border.

With `padding: circular` and stride 1 it is exactly equivariant to circular shifts.
"""

from typing import Literal

from torch import nn

from equitune.layers.padding import TORCH_PADDING, check_padding
from equitune.layers.plain import PlainPrior

FEATURES = "maps"


def build(*, padding: Literal["zero", "circular", "reflect"] = "zero") -> "Conv":
    return Conv(padding)


class Conv(PlainPrior):
    """The layers of a plain convolutional network."""

    def __init__(self, padding: str) -> None:
        self.padding = padding

    def layer(
        self, inputs: int, outputs: int, kernel: int, side: int, stride: int, padding: int, bias: bool
    ) -> nn.Conv2d:
        check_padding(self.padding, padding, side)
        mode = TORCH_PADDING[self.padding]
        return nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=bias, padding_mode=mode)

"""The convolution that begins a stage moves in strides of two.

With an odd kernel and half as much padding it commutes with quarter turns and flips on maps of odd side alone.
"""

from dataclasses import dataclass


def build() -> "Stride":
    return Stride()


@dataclass(frozen=True)
class Stride:
    """Nothing is left to halve."""

    conv_stride = 2

    def halving(self, channels: int, side: int) -> None:
        return None

"""The largest value of each 2 x 2 window. It commutes with quarter turns and flips on maps of even side alone."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from equitune.groups.grid import Symmetry, out_side, uneven
from equitune.layers.downsampler import Halving


def build() -> "Pool2":
    return Pool2()


@dataclass(frozen=True)
class Pool2:
    """Max-pooling behind the convolution."""

    conv_stride = 1

    def halving(self, channels: int, side: int) -> Halving:
        return MaxPool(kernel=2, side=out_side(side, 2, stride=2))


class MaxPool(Halving):
    """(B, C, G, H, W) -> (B, C, G, H / 2, W / 2), the last row and column of an odd side left out."""

    def forward(self, *maps: Tensor) -> tuple[Tensor, ...]:
        return tuple(functional.max_pool3d(each, (1, 2, 2)) for each in maps)

    def breaks(self, symmetry: Symmetry, side: int) -> str | None:
        return uneven(symmetry, side, 2, stride=2, padding=0, wraps=False)

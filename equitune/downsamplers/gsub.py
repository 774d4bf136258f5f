"""Group-equivariant subsampling: the grid of every second pixel through the place where the map stands out most.

The place is the maximum, over the group axis and the plane, of |x - mean| summed over channels, after a 5 x 5 box and a
15 x 15 Gaussian of sigma 5, all circular (2106.05886). There a softmax of temperature 1e-3 stands for the maximum.
With circular padding the class scores do not change under any shift.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from equitune.groups.grid import Symmetry
from equitune.layers.downsampler import Halving
from equitune.layers.polyphase import half, taken

BOX = [1 / 5] * 5
SIGMA_PX, REACH_PX = 5.0, 7


def build() -> "GSub":
    return GSub()


@dataclass(frozen=True)
class GSub:
    """A choice of grid behind the convolution, shared with the shortcut."""

    conv_stride = 1

    def halving(self, channels: int, side: int) -> Halving:
        return SalientComponent(kernel=2, side=half("gsub", side))


class SalientComponent(Halving):
    """(B, C, G, H, W) -> (B, C, G, H / 2, W / 2): the grid is one for all channels and entries of G."""

    is_adaptive = True

    def forward(self, *maps: Tensor) -> tuple[Tensor, ...]:
        place_B = salient(maps[0])
        return tuple(taken(each, place_B) for each in maps)

    def breaks(self, symmetry: Symmetry, side: int) -> str | None:
        return None


def salient(maps_BCGHW: Tensor) -> Tensor:
    """Which component of each image holds its most salient place, (B)."""
    height, width = maps_BCGHW.shape[-2:]
    precise = maps_BCGHW.to(torch.promote_types(maps_BCGHW.dtype, torch.float32))
    energy_BGHW = (precise - precise.mean((2, 3, 4), keepdim=True)).abs().sum(1)
    gaussian = torch.arange(-REACH_PX, REACH_PX + 1).div(SIGMA_PX).square().div(-2).exp()
    smooth_BGHW = _smoothed(_smoothed(energy_BGHW, BOX), (gaussian / gaussian.sum()).tolist())
    place_B = smooth_BGHW.flatten(1).argmax(1) % (height * width)
    return place_B // width % 2 * 2 + place_B % width % 2


def _smoothed(planes: Tensor, taps: list[float]) -> Tensor:
    """Return a symmetric filter along rows and columns, circularly and however small the plane."""
    for dim in (-2, -1):
        reach = len(taps) // 2
        planes = sum((weight * planes.roll(k - reach, dim) for k, weight in enumerate(taps)), torch.zeros_like(planes))
    return planes

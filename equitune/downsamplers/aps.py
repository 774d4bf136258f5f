"""Adaptive polyphase sampling: of the four grids of every second pixel, for each image the one of largest l2 norm.

With circular padding the class scores do not change under any shift; on maps of even side it commutes with quarter
turns and flips (2011.14214). `blur` is the length of a circular binomial filter before it; 1 is none.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from equitune.groups.grid import Symmetry
from equitune.layers.blur import binomial, blurred, pads, require_room
from equitune.layers.downsampler import Halving
from equitune.layers.polyphase import components, half, taken


def build(*, blur: Literal[1, 3, 5] = 1) -> "APS":
    return APS(blur)


@dataclass(frozen=True)
class APS:
    """A choice of grid behind the convolution, shared with the shortcut."""

    blur: int
    conv_stride = 1

    def halving(self, channels: int, side: int) -> Halving:
        return LargestComponent(self.blur, side)


class LargestComponent(Halving):
    """(B, C, G, H, W) -> (B, C, G, H / 2, W / 2): the grid is one for all channels and entries of G."""

    is_adaptive = True

    def __init__(self, taps: int, side: int) -> None:
        require_room(pads(taps)[1], "circular", side)
        super().__init__(kernel=2, side=half("aps", side))
        self.register_buffer("filter", binomial(taps) if taps > 1 else None, persistent=False)

    def forward(self, *maps: Tensor) -> tuple[Tensor, ...]:
        if self.filter is not None:
            maps = tuple(blurred(each, self.get_buffer("filter"), "circular") for each in maps)
        place_B = largest(maps[0])
        return tuple(taken(each, place_B) for each in maps)

    def breaks(self, symmetry: Symmetry, side: int) -> str | None:
        return None


def largest(maps_BCGHW: Tensor) -> Tensor:
    """Which component of each image has the largest l2 norm over (C, G, H, W), (B)."""
    precise = torch.promote_types(maps_BCGHW.dtype, torch.float32)
    return components(maps_BCGHW).square().sum((3, 4, 5, 6), dtype=precise).flatten(1).argmax(1)

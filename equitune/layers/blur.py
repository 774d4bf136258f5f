"""Binomial low-pass filters, after 1904.11486."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from equitune.errors import Infeasible
from equitune.groups.grid import BORDER, Symmetry, uneven
from equitune.layers.downsampler import Halving


@dataclass(frozen=True)
class Blur:
    """A blur in strides of two behind the convolution, whose ReLU it follows."""

    taps: int
    padding: str  # reflect or circular
    conv_stride = 1

    def halving(self, channels: int, side: int) -> Halving:
        return BlurPool(self.taps, self.padding, side)


class BlurPool(Halving):
    """(B, C, G, H, W) -> (B, C, G, H / 2, W / 2), rounded up; each channel and entry of G by itself."""

    def __init__(self, taps: int, mode: str, side: int) -> None:
        before, after = pads(taps)
        require_room(after, mode, side)
        super().__init__(kernel=taps, side=(side + 1) // 2, padding=before)
        self.mode = mode
        self.register_buffer("filter", binomial(taps), persistent=False)

    def forward(self, *maps: Tensor) -> tuple[Tensor, ...]:
        return tuple(blurred(each, self.get_buffer("filter"), self.mode, stride=2) for each in maps)

    def breaks(self, symmetry: Symmetry, side: int) -> str | None:
        if symmetry in ("translation", "translation_substride"):  # of the filtered map, as large as the one before
            return BORDER if self.mode != "circular" else uneven(symmetry, side, 1, stride=2, padding=0, wraps=True)
        return uneven(symmetry, side, self.kernel_size, stride=2, padding=self.padding, wraps=False)


def binomial(taps: int) -> Tensor:
    """Return the outer product of a row of Pascal's triangle with itself, of sum 1: (taps, taps)."""
    row = [math.comb(taps - 1, k) for k in range(taps)]  # in Python: on the meta device torch would import a compiler
    return torch.tensor([[one * other / sum(row) ** 2 for other in row] for one in row])


def pads(taps: int) -> tuple[int, int]:
    """How far a filter reaches over either border: before and after."""
    return (taps - 1) // 2, taps // 2


def require_room(pad: int, mode: str, side: int) -> None:
    """Raise Infeasible where a map is too small to be continued so far over its border."""
    if mode == "reflect" and pad >= side:
        raise Infeasible(f"reflect padding of {pad} needs a map larger than {side} x {side}")
    if pad > side:
        raise Infeasible(f"{mode} padding of {pad} needs a map of at least {pad} x {pad}, but got {side} x {side}")


def blurred(maps_BCGHW: Tensor, filter_KK: Tensor, mode: str, stride: int = 1) -> Tensor:
    """Each plane under the same filter, continued over its border by `mode`."""
    before, after = pads(len(filter_KK))
    planes = functional.pad(maps_BCGHW.flatten(0, 2).unsqueeze(1), (before, after, before, after), mode=mode)
    filtered = functional.conv2d(planes, filter_KK[None, None], stride=stride)
    return filtered.view(*maps_BCGHW.shape[:3], *filtered.shape[2:])

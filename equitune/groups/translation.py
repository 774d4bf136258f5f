"""Translations of the pixel grid, circular at the border (protocol `roll`)."""

import math
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from equitune.groups.layout import Layout
from equitune.groups.resample import shift_circular


@dataclass(frozen=True)
class Shift:
    """A translation, in pixels of the image; positive is down and right."""

    dy_px: float
    dx_px: float
    protocol = "roll"

    @property
    def label(self) -> str:
        return f"shift ({self.dy_px:g}, {self.dx_px:g}) px"

    def inverse(self) -> Self:
        return type(self)(-self.dy_px, -self.dx_px)

    def after(self, first: Self) -> Self:
        return type(self)(self.dy_px + first.dy_px, self.dx_px + first.dx_px)

    def on_images(self, images_BCHW: Tensor) -> Tensor:
        """T_g x: exact for whole pixels, a Fourier shift otherwise."""
        return _roll(images_BCHW, self.dy_px, self.dx_px)

    def on_features(self, features_BCGHW: Tensor, layout: Layout) -> Tensor:
        """The same translation on a map of a layer, d pixels of the image being d / stride of the map.

        The output shift follows from the input shift once, unrounded. Class scores do not move.
        """
        if not layout.is_spatial:
            return features_BCGHW
        return _roll(features_BCGHW, self.dy_px / layout.stride, self.dx_px / layout.stride)

    def permutes(self, layout: Layout, height: int, width: int) -> bool:
        if not layout.is_spatial:
            return True
        return all(float(d / layout.stride).is_integer() for d in (self.dy_px, self.dx_px))

    def visible(self, layout: Layout, height: int, width: int) -> None:
        return None


IDENTITY = Shift(0, 0)


def sets(strides: list[int], side_px: int, *, multiples: int = 1) -> dict[str, list[Shift]]:
    """`lattice`, by the total stride, under which every grid maps to itself; `substride`, by one pixel.

    Args:
        strides: of the measured layers that have a grid.
        side_px: of the images.
        multiples: the lattice set goes up to this multiple of the total stride, either way on both axes.

    Returns:
        Set name -> elements; a set without elements cannot be measured on these layers.
    """
    total_stride = math.lcm(*strides)
    distances = [
        sign * factor * total_stride
        for factor in range(1, multiples + 1)
        for sign in (1, -1)
        if factor * total_stride < side_px
    ]
    return {
        "lattice": [Shift(d, 0) for d in distances] + [Shift(0, d) for d in distances],
        "substride": [Shift(1, 0), Shift(0, 1)] if total_stride > 1 else [],
    }


def _roll(maps: Tensor, rows: float, cols: float) -> Tensor:
    for shift, dim in ((rows, -2), (cols, -1)):
        if shift:
            maps = shift_circular(maps, shift, dim)
    return maps

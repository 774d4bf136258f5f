"""Translations of the pixel grid: circular (protocol `roll`), or cropped from a reflected surround (`crop`)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor
from torch.nn import functional

from equitune.errors import Unmeasurable
from equitune.groups.axis import move_planes, see_planes
from equitune.groups.element import Element
from equitune.groups.layout import Layout
from equitune.groups.resample import shift_circular, shift_edge

CROP_PAD_PX = 4  # how far a crop may move: what is reflected into the image stays a thin border
MIN_POSITIONS = 9  # fewer are too few to compare


@dataclass(frozen=True)
class Shift:
    """A circular translation, in pixels of the image; positive is down and right."""

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
        """T_g x: exact for whole pixels, a Fourier shift otherwise.

        On an even side a Fourier shift keeps only the cosine of the Nyquist frequency's phase. Fractional shifts are
        a group on images of odd sides, and of even ones below that frequency.
        """
        return _along_both(shift_circular, images_BCHW, self.dy_px, self.dx_px)

    def on_features(self, features_BCGHW: Tensor, layout: Layout) -> Tensor:
        """Return the same translation on a map of a layer, d pixels of the image being d / stride of the map.

        The output shift follows from the input shift once, unrounded. Class scores do not move.
        """
        if not layout.is_spatial:
            return features_BCGHW
        rows, cols = self.dy_px / layout.stride, self.dx_px / layout.stride
        return move_planes(features_BCGHW, layout, lambda maps: _along_both(shift_circular, maps, rows, cols))

    def permutes(self, layout: Layout, height: int, width: int) -> bool:
        return _is_whole_on_map(self.dy_px, self.dx_px, layout)

    def visible(self, layout: Layout, height: int, width: int) -> None:
        return None


@dataclass(frozen=True)
class CropShift:
    """A translation by whole pixels with the reflected image beyond its border; positive is down and right.

    Images padded by reflection and cropped at another offset. It acts as a group on what stays in view.

    Attributes:
        margin_px: how far from both grids' borders features are compared, as long as 9 positions are left; the radius
            of the receptive field excludes whatever a border has touched.
    """

    dy_px: int
    dx_px: int
    margin_px: int = 0
    protocol = "crop"

    @property
    def label(self) -> str:
        return f"shift ({self.dy_px}, {self.dx_px}) px, cropped"

    def inverse(self) -> Self:
        return type(self)(-self.dy_px, -self.dx_px, self.margin_px)

    def after(self, first: Self) -> Self:
        margin_px = max(self.margin_px, first.margin_px)
        return type(self)(self.dy_px + first.dy_px, self.dx_px + first.dx_px, margin_px)

    def on_images(self, images_BCHW: Tensor) -> Tensor:
        """T_g x, exactly.

        Raises:
            Unmeasurable: the image is no longer than the shift.
        """
        height, width = images_BCHW.shape[-2:]
        if abs(self.dy_px) >= height or abs(self.dx_px) >= width:
            raise Unmeasurable("too_small", f"{self.label} leaves nothing of an image of {height} x {width} px")
        top, left = max(self.dy_px, 0), max(self.dx_px, 0)
        bottom, right = top - self.dy_px, left - self.dx_px
        padded = functional.pad(images_BCHW, (left, right, top, bottom), mode="reflect")
        return padded[..., bottom : bottom + height, right : right + width]

    def on_features(self, features_BCGHW: Tensor, layout: Layout) -> Tensor:
        """Return the same translation on a map of a layer: exact for whole positions of it, bicubic otherwise."""
        if not layout.is_spatial:
            return features_BCGHW
        rows, cols = self.dy_px / layout.stride, self.dx_px / layout.stride
        return move_planes(features_BCGHW, layout, lambda maps: _along_both(shift_edge, maps, rows, cols))

    def permutes(self, layout: Layout, height: int, width: int) -> bool:
        """Whether values move without mixing; at the border some leave and none enter, `visible` says where."""
        return _is_whole_on_map(self.dy_px, self.dx_px, layout)

    def visible(self, layout: Layout, height: int, width: int) -> Tensor | None:
        """Return the overlap of both grids, without the margin.

        Raises:
            Unmeasurable: fewer than 9 positions overlap.
        """
        if not layout.is_spatial:
            return None
        for margin in range(math.ceil(self.margin_px / layout.stride), -1, -1):
            rows = _overlap(height, self.dy_px / layout.stride, margin)
            cols = _overlap(width, self.dx_px / layout.stride, margin)
            overlap_HW = see_planes(rows[:, None] & cols, layout)
            if overlap_HW.sum() >= MIN_POSITIONS:
                return overlap_HW
        raise Unmeasurable(
            "empty_mask", f"{self.label} leaves fewer than {MIN_POSITIONS} positions of a map of {height} x {width}"
        )


def sets(
    strides: list[int], side_px: int, *, multiples: int = 1, protocol: Literal["roll", "crop"] = "roll"
) -> dict[str, list[Element]]:
    """`lattice`, by the total stride, under which every grid maps to itself; `substride`, by one pixel.

    Under the protocol `roll` there is also `fractional`: by half a pixel, a Fourier shift of the image itself.

    Args:
        strides: of the measured layers that have a grid.
        side_px: of the images.
        multiples: the lattice set goes up to this multiple of the total stride, either way on both axes.
        protocol: what happens at the image's border; cropped shifts reach at most 4 px.

    Returns:
        Set name -> elements; a set without elements cannot be measured on these layers.
    """
    total_stride = math.lcm(*strides)
    farthest_px = side_px - 1 if protocol == "roll" else min(CROP_PAD_PX, side_px - 1)
    distances = [
        sign * factor * total_stride
        for factor in range(1, multiples + 1)
        for sign in (1, -1)
        if factor * total_stride <= farthest_px
    ]
    shifts = {
        "lattice": [(d, 0) for d in distances] + [(0, d) for d in distances],
        "substride": [(1, 0), (0, 1)] if total_stride > 1 else [],
    }
    if protocol == "crop":
        return {name: [CropShift(*shift) for shift in members] for name, members in shifts.items()}
    fractional = {"fractional": [(0.5, 0), (0, 0.5)]}
    return {name: [Shift(*shift) for shift in members] for name, members in (shifts | fractional).items()}


def _is_whole_on_map(dy_px: float, dx_px: float, layout: Layout) -> bool:
    return not layout.is_spatial or all((d / layout.stride).is_integer() for d in (dy_px, dx_px))


def _overlap(side: int, shift: float, margin: int) -> Tensor:
    """Return the positions of one axis that lie, as do their sources, at least the margin within the
    map, (side) bool.
    """
    place = torch.arange(side)
    source = place - shift
    return (torch.minimum(place, source) >= margin) & (torch.maximum(place, source) <= side - 1 - margin)


def _along_both(shift: Callable[[Tensor, float, int], Tensor], maps: Tensor, rows: float, cols: float) -> Tensor:
    for distance, dim in ((rows, -2), (cols, -1)):
        if distance:
            maps = shift(maps, distance, dim)
    return maps

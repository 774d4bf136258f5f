"""Translations of the pixel grid, circular at the border (protocol `roll`)."""

from dataclasses import dataclass

from torch import Tensor

from equitune.groups.layout import Layout
from equitune.groups.resample import shift_circular, shift_each


@dataclass(frozen=True)
class Shift:
    """A translation, in pixels of the image; positive is down and right."""

    dy_px: float
    dx_px: float


IDENTITY = Shift(0, 0)


def compose(first: Shift, second: Shift) -> Shift:
    """The element that acts like `second` followed by `first`."""
    return Shift(first.dy_px + second.dy_px, first.dx_px + second.dx_px)


def inverse(element: Shift) -> Shift:
    return Shift(-element.dy_px, -element.dx_px)


def act_on_images(element: Shift, images_BCHW: Tensor) -> Tensor:
    """T_g x: exact for whole pixels, a Fourier shift otherwise."""
    return _roll(images_BCHW, element.dy_px, element.dx_px)


def act_on_each_image(shifts_B2: Tensor, images_BCHW: Tensor) -> Tensor:
    """T_g x with an element of its own for each image: whole pixels (rows, columns), int64."""
    return shift_each(images_BCHW, shifts_B2, fill="circular")


def act_on_features(element: Shift, features_BCGHW: Tensor, layout: Layout) -> Tensor:
    """rho(g) f: the same translation on a map of a layer, d pixels of the image being d / stride of the map.

    The output shift follows from the input shift once, unrounded. Features without a grid stay as they are: class
    scores do not move.
    """
    if not layout.is_spatial:
        return features_BCGHW
    return _roll(features_BCGHW, element.dy_px / layout.stride, element.dx_px / layout.stride)


def permutes_positions(element: Shift, layout: Layout) -> bool:
    """Whether the action on a layer's map moves values without mixing them: its shift is whole there, or trivial."""
    if not layout.is_spatial:
        return True
    return all(float(d / layout.stride).is_integer() for d in (element.dy_px, element.dx_px))


def _roll(maps: Tensor, rows: float, cols: float) -> Tensor:
    for shift, dim in ((rows, -2), (cols, -1)):
        if shift:
            maps = shift_circular(maps, shift, dim)
    return maps

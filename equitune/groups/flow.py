"""One-parameter groups t -> g_t, by their derivative at t = 0: the directions of Lie derivatives.

The unit of t is a pixel of the image: the displacement of every pixel under a translation; that at the edge of the
image's inscribed disc under rotation, scaling and shear. Under a rotation of hue t is an angle in radians.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from equitune.errors import Unmeasurable
from equitune.groups import hue, rotation, scale, shear
from equitune.groups.affine import CENTRAL, MIN_SIDE
from equitune.groups.axis import move_planes
from equitune.groups.layout import Axis, Layout
from equitune.groups.resample import derivative_circular, gradient, shift_circular


class Flow(Protocol):
    """One t -> g_t: how images and features begin to move."""

    @property
    def label(self) -> str:
        """For people: `shift y`, `rotation`."""

    @property
    def unit(self) -> str:
        """Of t: `px` or `rad`."""

    @property
    def protocol(self) -> str:
        """What happens at the image's border, as for a group's elements: `roll`, `disc` or `none`."""

    def moves(self, layout: Layout) -> bool:
        """Whether it moves the features of a layer; else it acts trivially on them.

        Raises:
            Unmeasurable: the group acts on these features, but not by a flow.
        """

    def on_images(self, images_BCHW: Tensor) -> Tensor:
        """d/dt T_t x at t = 0.

        Raises:
            Unmeasurable: it cannot act on images of this shape.
        """

    def images_at(self, images_BCHW: Tensor, t: float) -> Tensor:
        """T_t x, for a small t; at 0 x itself, or what a `disc` leaves of it. Always a new tensor."""

    def on_features(self, features_BCGHW: Tensor, layout: Layout) -> Tensor:
        """d/dt rho(g_t) f at t = 0, for features that move; linear in f."""

    def features_at(self, features_BCGHW: Tensor, layout: Layout, t: float) -> Tensor:
        """rho(g_t) f, for features that move and a small t."""

    def visible(self, layout: Layout, height: int, width: int) -> Tensor | None:
        """Return the positions that can be compared, (height, width) bool; None: all of them.

        Raises:
            Unmeasurable: the flow has no derivative on such a map.
        """


@dataclass(frozen=True)
class Translation:
    """Circular, along one dimension of (..., H, W), towards higher indices."""

    label: str
    dim: int
    unit = "px"
    protocol = "roll"

    def moves(self, layout: Layout) -> bool:
        return layout.is_spatial

    def on_images(self, images_BCHW: Tensor) -> Tensor:
        return -derivative_circular(images_BCHW, self.dim)

    def images_at(self, images_BCHW: Tensor, t: float) -> Tensor:
        return shift_circular(images_BCHW, t, self.dim)

    def on_features(self, features_BCGHW: Tensor, layout: Layout) -> Tensor:
        return move_planes(features_BCGHW, layout, self.on_images) / layout.stride

    def features_at(self, features_BCGHW: Tensor, layout: Layout, t: float) -> Tensor:
        return move_planes(features_BCGHW, layout, lambda planes: self.images_at(planes, t / layout.stride))

    def visible(self, layout: Layout, height: int, width: int) -> None:
        return None


@dataclass(frozen=True)
class Linear:
    """A linear map of the plane about the image's centre, as the vector field v(u) = A u.

    An image is its inscribed disc, 0 outside. Images and maps are differentiated by central differences: neither is
    periodic under such a field, and a spectral derivative would carry the seam to every position.

    Attributes:
        matrix: A = ((xx, xy), (yx, yy)), x to the right and y down.
        side_px: of the images.
        refused_axes: the group axes whose declaration contradicts it; it leaves every other as it is.
    """

    label: str
    matrix: tuple[tuple[float, float], tuple[float, float]]
    side_px: int
    refused_axes: tuple[Axis, ...] = ()
    unit = "px"
    protocol = "disc"

    def moves(self, layout: Layout) -> bool:
        if layout.axis in self.refused_axes:
            raise Unmeasurable("undefined", f"{self.label} has no derivative on a group axis {layout.axis}")
        return layout.is_spatial

    def on_images(self, images_BCHW: Tensor) -> Tensor:
        return self._derivative(images_BCHW) * _disc(*images_BCHW.shape[-2:]).to(images_BCHW.device)

    def images_at(self, images_BCHW: Tensor, t: float) -> Tensor:
        """To first order, along the derivative: a finite one would interpolate."""
        return (images_BCHW + t * self._derivative(images_BCHW)) * _disc(*images_BCHW.shape[-2:]).to(images_BCHW.device)

    def on_features(self, features_BCGHW: Tensor, layout: Layout) -> Tensor:
        return move_planes(features_BCGHW, layout, self._derivative)

    def features_at(self, features_BCGHW: Tensor, layout: Layout, t: float) -> Tensor:
        return features_BCGHW + t * self.on_features(features_BCGHW, layout)

    def visible(self, layout: Layout, height: int, width: int) -> Tensor | None:
        if not layout.is_spatial:
            return None
        disc = _disc(height, width, CENTRAL)
        if height < MIN_SIDE:
            raise Unmeasurable("too_small", f"a map of side {height}; to differentiate, {MIN_SIDE} are needed")
        return disc

    def _derivative(self, maps: Tensor) -> Tensor:
        """-v . grad, per pixel of displacement at the edge of the image's inscribed disc, on a grid of any stride."""
        y, x = (torch.arange(side).to(maps) - (side - 1) / 2 for side in maps.shape[-2:])
        (xx, xy), (yx, yy) = self.matrix
        along_rows, along_cols = gradient(maps)
        moved = (xx * x + xy * y[:, None]) * along_cols + (yx * x + yy * y[:, None]) * along_rows
        return -moved / (self.side_px / 2)


@dataclass(frozen=True)
class Hue:
    """Turns colours about the grey axis of RGB; a third of the circle is R -> G -> B (2310.19368).

    On a hue axis of G steps it is a Fourier shift: exact for features that are linear in the image, G being 3 or more.
    """

    label = "hue"
    unit = "rad"
    protocol = "none"

    def moves(self, layout: Layout) -> bool:
        return layout.axis == "hue"

    def on_images(self, images_BCHW: Tensor) -> Tensor:
        red, green, blue = self.images_at(images_BCHW, 0).unbind(1)
        return torch.stack([blue - green, red - blue, green - red], 1) / math.sqrt(3)

    def images_at(self, images_BCHW: Tensor, t: float) -> Tensor:
        return hue.Hue(math.degrees(t)).on_images(images_BCHW).clone()

    def on_features(self, features_BCGHW: Tensor, layout: Layout) -> Tensor:
        return -derivative_circular(features_BCGHW, 2) * (_hue_steps(features_BCGHW) / (2 * math.pi))

    def features_at(self, features_BCGHW: Tensor, layout: Layout, t: float) -> Tensor:
        return shift_circular(features_BCGHW, t * _hue_steps(features_BCGHW) / (2 * math.pi), 2)

    def visible(self, layout: Layout, height: int, width: int) -> None:
        return None


def flows(group: str, side_px: int) -> list[Flow]:
    """Return the flows that generate a group, for images of a side."""
    match group:
        case "translation":
            return [Translation("shift y", -2), Translation("shift x", -1)]
        case "rotation":
            return [Linear("rotation", ((0, 1), (-1, 0)), side_px, rotation.Rotation.refused_axes)]
        case "scale":
            return [Linear("scaling", ((1, 0), (0, 1)), side_px, scale.Scale.refused_axes)]
        case "shear":
            refused = shear.Shear.refused_axes
            matrices = {"shear y": ((0, 0), (1, 0)), "shear x": ((0, 1), (0, 0))}
            return [Linear(label, matrix, side_px, refused) for label, matrix in matrices.items()]
        case "hue":
            return [Hue()]
    raise ValueError(f"group '{group}' has no flow")


def _disc(height: int, width: int, share: float = 1) -> Tensor:
    """Return the positions within a share of the inscribed disc's radius, (H, W) bool."""
    if height != width:
        raise Unmeasurable("non_square", f"a disc needs a square grid, not {height} x {width}")
    place = torch.arange(height) - (height - 1) / 2
    return place[:, None].square() + place.square() <= (share * height / 2) ** 2


def _hue_steps(features_BCGHW: Tensor) -> int:
    steps = features_BCGHW.shape[2]
    if steps < 3:
        raise Unmeasurable("undefined", f"a hue axis of {steps} steps has no derivative: 3 or more are needed")
    return steps

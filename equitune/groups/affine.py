"""Linear maps of the plane about the image's centre, interpolated bicubically (protocol `disc`).

The image is its inscribed disc: T_g x shows a pixel where both it and its source lie there, and 0 elsewhere, so that
T_e x is the image outside whose disc all is 0. That is what T_g x must be compared with, not x itself.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from equitune.errors import Unmeasurable
from equitune.groups.axis import move_planes, see_planes
from equitune.groups.layout import Axis, Layout
from equitune.groups.resample import affine

Matrix = tuple[tuple[float, float], tuple[float, float]]

CENTRAL = 0.6  # of the inscribed disc's radius: where features are compared, away from its edge
MIN_SIDE = 8  # on smaller maps an interpolated score is mostly interpolation


class Warp(ABC):
    """A linear map of the plane. What follows from its matrix is here; a group says which matrices are its own.

    Attributes:
        refused_axes: the group axes whose declaration contradicts these maps; they leave every other as it is.
    """

    protocol = "disc"
    refused_axes: tuple[Axis, ...] = ()

    @property
    @abstractmethod
    def label(self) -> str:
        """For people, with units."""

    @property
    @abstractmethod
    def to_source(self) -> Matrix:
        """Maps a position (x, y), from the centre and down, to the place whose value comes to it."""

    def on_images(self, images_BCHW: Tensor) -> Tensor:
        """T_g x on the inscribed disc.

        Raises:
            Unmeasurable: an image that is not square.
        """
        height, width = images_BCHW.shape[-2:]
        _check_square(height, width)
        radius, source_radius = self._radii(width)
        shown = (radius <= width / 2) & (source_radius <= width / 2)
        return self._sampled(images_BCHW) * shown.to(images_BCHW.device)

    def on_features(self, features_BCGHW: Tensor, layout: Layout) -> Tensor:
        """rho(g) f on the whole square, its edge repeated; `visible` says where it means something.

        Raises:
            Unmeasurable: no such action is declared for the group axis.
        """
        self._check_axis(layout)
        return move_planes(features_BCGHW, layout, self._on_maps) if layout.is_spatial else features_BCGHW

    def permutes(self, layout: Layout, height: int, width: int) -> bool:
        return not layout.is_spatial

    def visible(self, layout: Layout, height: int, width: int) -> Tensor | None:
        """Return the central disc, without positions whose source lies outside the inscribed one.

        Raises:
            Unmeasurable: a map that is not square or too small, or no such action for its group axis.
        """
        self._check_axis(layout)
        if not layout.is_spatial:
            return None
        _check_square(height, width)
        if width < MIN_SIDE:
            raise Unmeasurable("too_small", f"a map of side {width}; to interpolate, {MIN_SIDE} are needed")
        radius, source_radius = self._radii(width)
        return see_planes((radius <= CENTRAL * width / 2) & (source_radius <= width / 2), layout)

    def _check_axis(self, layout: Layout) -> None:
        if layout.axis in self.refused_axes:
            raise Unmeasurable("undefined", f"a group axis {layout.axis} does not say what {self.label} does to it")

    def _on_maps(self, features_BCGHW: Tensor) -> Tensor:
        channels_BCHW = features_BCGHW.flatten(1, 2)
        return self._sampled(channels_BCHW).view(features_BCGHW.shape)

    def _sampled(self, maps_BCHW: Tensor) -> Tensor:
        to_source_123 = maps_BCHW.new_tensor([[(*row, 0.0) for row in self.to_source]])
        return affine(maps_BCHW, to_source_123, fill="edge", mode="bicubic")

    def _radii(self, side: int) -> tuple[Tensor, Tensor]:
        """Return the distance from the centre, of each position and of its source, (side, side) each."""
        offset = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
        y, x = offset[:, None], offset
        (xx, xy), (yx, yy) = self.to_source
        return torch.hypot(x, y), torch.hypot(xx * x + xy * y, yx * x + yy * y)


def _check_square(height: int, width: int) -> None:
    if height != width:
        raise Unmeasurable("non_square", f"a disc needs a square grid, not {height} x {width}")

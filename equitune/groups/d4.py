"""Quarter turns and mirrors of the square: all eight are lattice-exact, on images, on maps and on a group axis."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import torch
from torch import Tensor

from equitune.errors import Unmeasurable
from equitune.groups.axis import ENTRIES, check_entries
from equitune.groups.element import Element
from equitune.groups.layout import Axis, Layout

_MIRRORS = ("left and right", "the main diagonal", "top and bottom", "the other diagonal")


@dataclass(frozen=True)
class Turn:
    """R^quarters, or R^quarters F: left and right are exchanged (F) first, then quarter turns (R) follow.

    R is counter-clockwise, F R = R^-1 F. Features on a regular axis follow (L_g f)(h, u) = f(g^-1 h, g^-1 u)
    (1602.07576): the plane moves and the axis is permuted by left multiplication.
    """

    quarters: int
    is_mirrored: bool = False
    protocol = "none"

    @property
    def label(self) -> str:
        quarters = self.quarters % 4
        return f"mirror across {_MIRRORS[quarters]}" if self.is_mirrored else f"turn by {90 * quarters}°"

    def inverse(self) -> Self:
        return type(self)(self.quarters if self.is_mirrored else -self.quarters % 4, self.is_mirrored)

    def after(self, first: Self) -> Self:
        quarters = self.quarters + (-first.quarters if self.is_mirrored else first.quarters)
        return type(self)(quarters % 4, self.is_mirrored != first.is_mirrored)

    def on_images(self, images_BCHW: Tensor) -> Tensor:
        """T_g x, exactly.

        Raises:
            Unmeasurable: an odd number of quarter turns of an image that is not square.
        """
        self._check_square(*images_BCHW.shape[-2:])
        return self._on_plane(images_BCHW)

    def on_features(self, features_BCGHW: Tensor, layout: Layout) -> Tensor:
        """rho(g) f: one gather, whatever moves.

        Raises:
            Unmeasurable: as `visible`, or a group axis that is not as long as was declared.
        """
        self.visible(layout, *features_BCGHW.shape[-2:])
        check_entries(layout, features_BCGHW.shape[2])
        is_identity = self.quarters % 4 == 0 and not self.is_mirrored
        if is_identity or not (layout.is_spatial or layout.axis in ENTRIES):
            return features_BCGHW
        maps_BCP = features_BCGHW.flatten(2)
        shape = tuple(features_BCGHW.shape[2:])
        sources_P = _sources(self, layout.axis, layout.is_spatial, shape, features_BCGHW.device)
        return maps_BCP.gather(2, sources_P.expand_as(maps_BCP)).view(features_BCGHW.shape)

    def permutes(self, layout: Layout, height: int, width: int) -> bool:
        return True

    def visible(self, layout: Layout, height: int, width: int) -> None:
        """All positions.

        Raises:
            Unmeasurable: an odd number of quarter turns of a map that is not square, or a mirror on an axis of turns:
                networks with such an axis say nothing about mirrors.
        """
        if self.is_mirrored and layout.axis in ("c4", "orbit_c4"):
            raise Unmeasurable("undefined", f"a group axis {layout.axis} does not say what a mirror does to it")
        if layout.is_spatial:
            self._check_square(height, width)

    def _check_square(self, height: int, width: int) -> None:
        if self.quarters % 2 and height != width:
            raise Unmeasurable("non_square", f"a quarter turn needs a square grid, not {height} x {width}")

    def _on_plane(self, maps: Tensor) -> Tensor:
        if self.is_mirrored:
            maps = maps.flip(-1)
        return maps.rot90(self.quarters, (-2, -1)) if self.quarters % 4 else maps

    def _axis_sources(self, axis: Axis, entries: int) -> list[int]:
        """g^-1 h for each entry h: where its values come from."""
        if axis in ("c4", "orbit_c4"):
            return [(turn - self.quarters) % 4 for turn in range(4)]
        if axis == "d4":
            # F^s R^(r - k) F^m = R^(±(r - k)) F^(m + s)
            sign, other = (-1, 1) if self.is_mirrored else (1, 0)
            return [
                4 * (mirror ^ other) + sign * (turn - self.quarters) % 4 for mirror in range(2) for turn in range(4)
            ]
        return list(range(entries))


@lru_cache(maxsize=512)
@torch.inference_mode(False)  # what is kept must serve where gradients flow, too
def _sources(turn: Turn, axis: Axis, is_spatial: bool, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the index, within (G, H, W), of the value that comes to each place, (G * H * W)."""
    places_GHW = torch.arange(shape[0] * shape[1] * shape[2], device=device).view(shape)
    moved = places_GHW[turn._axis_sources(axis, shape[0])]
    if is_spatial and axis != "orbit_c4":  # the planes of an orbit do not turn
        moved = turn._on_plane(moved)
    return moved.flatten()


def sets(strides: list[int], side_px: int) -> dict[str, list[Element]]:
    """`d4`: the seven elements besides the identity."""
    return {"d4": [Turn(quarters, mirror) for mirror in (False, True) for quarters in range(4) if mirror or quarters]}

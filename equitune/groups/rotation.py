"""Rotations about the image's centre: quarter turns exactly, other angles interpolated on the inscribed disc."""

import math
from dataclasses import dataclass
from typing import Self

from equitune.groups.affine import Matrix, Warp
from equitune.groups.d4 import Turn
from equitune.groups.element import Element


@dataclass(frozen=True)
class Rotation(Warp):
    """A rotation by any angle, counter-clockwise; interpolated even where `Turn` would be exact."""

    angle_deg: float
    # No action of all rotations on finitely many entries agrees with that of the quarter turns.
    refused_axes = ("c4", "d4", "orbit_c4")

    @property
    def label(self) -> str:
        return f"rotation by {self.angle_deg:g}°"

    def inverse(self) -> Self:
        return type(self)(-self.angle_deg)

    def after(self, first: Self) -> Self:
        return type(self)(self.angle_deg + first.angle_deg)

    @property
    def to_source(self) -> Matrix:
        angle = math.radians(self.angle_deg)
        return (math.cos(angle), -math.sin(angle)), (math.sin(angle), math.cos(angle))


def sets(strides: list[int], side_px: int) -> dict[str, list[Element]]:
    """`quarter`: the three exact turns; `interpolated`: ±15° and ±45°."""
    return {
        "quarter": [Turn(quarters) for quarters in (1, 2, 3)],
        "interpolated": [Rotation(angle_deg) for angle_deg in (15, -15, 45, -45)],
    }

"""Horizontal shears about the image's centre, interpolated on the inscribed disc."""

from dataclasses import dataclass
from typing import Self

from equitune.groups.affine import Matrix, Warp
from equitune.groups.element import Element


@dataclass(frozen=True)
class Shear(Warp):
    """Moves each row sideways, to the right by `slope` pixels for each pixel that it lies below the centre.

    A connected group has no choice on finitely many entries: a group axis stays.
    """

    slope: float

    @property
    def label(self) -> str:
        return f"shear by {self.slope:g}"

    def inverse(self) -> Self:
        return type(self)(-self.slope)

    def after(self, first: Self) -> Self:
        return type(self)(self.slope + first.slope)

    @property
    def to_source(self) -> Matrix:
        return (1.0, -self.slope), (0.0, 1.0)


def sets(strides: list[int], side_px: int) -> dict[str, list[Element]]:
    """`shear`: by a fifth of a pixel a pixel, either way."""
    return {"shear": [Shear(0.2), Shear(-0.2)]}

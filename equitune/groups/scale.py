"""Scalings about the image's centre, interpolated on the inscribed disc."""

from dataclasses import dataclass
from typing import Self

from equitune.groups.affine import Matrix, Warp
from equitune.groups.element import Element


@dataclass(frozen=True)
class Scale(Warp):
    """Enlarges by a factor above 1, shrinks by one below. It commutes with turns and mirrors: a group axis stays."""

    factor: float

    @property
    def label(self) -> str:
        return f"scaling by {self.factor:g}"

    def inverse(self) -> Self:
        return type(self)(1 / self.factor)

    def after(self, first: Self) -> Self:
        return type(self)(self.factor * first.factor)

    @property
    def to_source(self) -> Matrix:
        return (1 / self.factor, 0.0), (0.0, 1 / self.factor)


def sets(strides: list[int], side_px: int) -> dict[str, list[Element]]:
    """`scale`: by 4/5 and by 5/4."""
    return {"scale": [Scale(0.8), Scale(1.25)]}

"""What every element of a group can do; each group is one file beside this one.

A group's file holds frozen dataclasses that are elements, and one function `sets(strides, side_px, ...)` that names
the elements to measure with: set name -> elements, the headline set first.
"""

from typing import Any, Protocol, Self

from torch import Tensor

from equitune import catalog
from equitune.groups.layout import Layout


class Element(Protocol):
    """One g: how it moves images, and the features of a layer."""

    @property
    def label(self) -> str:
        """For people, with units: `shift (4, 0) px`, `turn by 90°`."""

    @property
    def protocol(self) -> str:
        """What happens at the image's border: `roll`, `crop`, `disc`, or `none` where nothing enters or leaves."""

    def inverse(self) -> Self:
        """Return the element that undoes this one."""

    def after(self, first: Self) -> Self:
        """Return the element that acts like `first` followed by this one."""

    def on_images(self, images_BCHW: Tensor) -> Tensor:
        """T_g x. It is compared with T_e x, e the identity: x itself, or what a `disc` leaves of it.

        Raises:
            Unmeasurable: it cannot act on images of this shape.
        """

    def on_features(self, features_BCGHW: Tensor, layout: Layout) -> Tensor:
        """rho(g) f: linear; a group axis is permuted as the layout declares; features without a grid do not move.

        Raises:
            Unmeasurable: the group axis does not say what this element does to it.
        """

    def permutes(self, layout: Layout, height: int, width: int) -> bool:
        """Whether rho(g) moves the values of a (height, width) map without mixing them; else it interpolates."""

    def visible(self, layout: Layout, height: int, width: int) -> Tensor | None:
        """Return the positions that can be compared, (height, width) bool; None: all of them.

        Raises:
            Unmeasurable: the element cannot act on such a map, or no position is left.
        """


def sets(group: str, strides: list[int], side_px: int, **options: Any) -> dict[str, list[Element]]:
    """Return the elements of a group to measure with, by set; the headline set first. A set may be empty.

    Args:
        group: the name of a file beside this one.
        strides: of the measured layers that have a grid.
        side_px: of the images.
    """
    found: dict[str, list[Element]] = catalog.group(group).sets(strides, side_px, **options)
    return found

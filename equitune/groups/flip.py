"""Mirrors across the image's vertical and horizontal midline, exactly."""

from equitune.groups.d4 import Turn
from equitune.groups.element import Element

LEFT_RIGHT = Turn(0, is_mirrored=True)
TOP_BOTTOM = Turn(2, is_mirrored=True)


def sets(strides: list[int], side_px: int) -> dict[str, list[Element]]:
    """`flip`: left and right exchanged, and top and bottom. Both may act on one map: together they turn it by 180°."""
    return {"flip": [LEFT_RIGHT, TOP_BOTTOM]}

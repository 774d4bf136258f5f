"""When a layer that moves in strides commutes with the symmetries of its grid."""

from typing import Literal

from equitune.errors import Infeasible
from equitune.groups.layout import Axis

# translation: circular shifts by multiples of the total stride; translation_substride: by any number of pixels, of the
# class scores alone; c4: quarter turns; d4: with flips; hue: the cyclic exchanges of the channels of RGB.
Symmetry = Literal["translation", "translation_substride", "c4", "d4", "hue"]
TURNS: tuple[Symmetry, ...] = ("c4", "d4")
PERMUTED_BY: dict[Axis, tuple[Symmetry, ...]] = {
    "none": (),
    "c4": TURNS,
    "d4": TURNS,
    "orbit_c4": TURNS,
    "hue": ("hue",),
}

BORDER = "what lies beyond the border is not the other side of the map"
COLOURS = "its kernels tell red, green and blue apart"


def grid_exact(side: int, kernel: int, *, stride: int = 1, padding: int = 0) -> bool:
    """Whether a convolution or a pooling on a map of this side commutes with quarter turns and flips.

    It does if its windows lie evenly between both ends: (side + 2 padding - kernel) mod stride = 0 (2308.11316). Only
    then does a mirrored map have mirrored windows. Of weights it asks the symmetry that they need at stride 1.

    Raises:
        Infeasible: nothing is left of the map.
    """
    reached = (out_side(side, kernel, stride=stride, padding=padding) - 1) * stride + kernel
    return reached == side + 2 * padding


def uneven(symmetry: Symmetry, side: int, kernel: int, *, stride: int, padding: int, wraps: bool) -> str | None:
    """Return the rule by which the windows of a layer fail to commute with a symmetry of its grid; None: they do not
    fail.

    Args:
        symmetry: of the grid.
        side: of the map that the windows lie on.
        kernel: the side of a window.
        stride: between windows.
        padding: in front of the map.
        wraps: whether the map goes on circularly beyond its border.
    """
    if symmetry == "hue":
        return None
    if symmetry in TURNS:
        is_even = grid_exact(side, kernel, stride=stride, padding=padding)
        said = f"{side} + 2 * {padding} - {kernel} is not a multiple of its stride of {stride}"
        return None if is_even else said
    if side % stride:
        return f"its stride of {stride} does not divide the side of {side}"
    if out_side(side, kernel, stride=stride, padding=padding) != side // stride:
        return f"its windows of {kernel} with padding {padding} do not go round a side of {side}"
    if padding and not wraps:
        return BORDER
    moves = symmetry == "translation_substride" and stride > 1
    return "its strides do not follow a shift by one pixel" if moves else None


def of_free_kernels(
    symmetry: Symmetry, side: int, kernel: int, *, stride: int, padding: int, wraps: bool
) -> str | None:
    """Return the same of a convolution whose kernels are not tied to each other, with the arguments of `uneven`."""
    if symmetry == "hue":
        return COLOURS
    if symmetry in TURNS and kernel > 1:
        return f"its kernels of {kernel} x {kernel} are free to point anywhere"
    return uneven(symmetry, side, kernel, stride=stride, padding=padding, wraps=wraps)


def out_side(side: int, kernel: int, *, stride: int = 1, padding: int = 0) -> int:
    """Return the side of a map after a convolution or a pooling.

    Raises:
        Infeasible: nothing is left of the map.
    """
    after = (side + 2 * padding - kernel) // stride + 1
    if side + 2 * padding < kernel or after < 1:
        raise Infeasible(f"a map of {side} x {side} shrinks to nothing under kernel {kernel}, padding {padding}")
    return after

"""When a layer that moves in strides commutes with the symmetries of its grid."""

from equitune.groups.prior import out_side


def grid_exact(side: int, kernel: int, *, stride: int = 1, padding: int = 0) -> bool:
    """Whether a convolution or a pooling on a map of this side commutes with quarter turns and flips.

    It does if its windows lie evenly between both ends: (side + 2 padding - kernel) mod stride = 0 (2308.11316). Only
    then does a mirrored map have mirrored windows. Of weights it asks the symmetry that they need at stride 1.

    Raises:
        Infeasible: nothing is left of the map.
    """
    reached = (out_side(side, kernel, stride=stride, padding=padding) - 1) * stride + kernel
    return reached == side + 2 * padding

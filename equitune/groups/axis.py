"""What a declared group axis asks of every action: that it is what was declared, and in which frame its planes lie."""

from collections.abc import Callable

import torch
from torch import Tensor

from equitune.errors import Unmeasurable
from equitune.groups.layout import Layout

ENTRIES = {"c4": 4, "orbit_c4": 4, "d4": 8}


def check_entries(layout: Layout, entries: int) -> None:
    """Whether the group axis is as long as its declaration says.

    Raises:
        Unmeasurable: it is not.
    """
    expected = ENTRIES.get(layout.axis, entries)
    if entries != expected:
        raise Unmeasurable(
            "undefined", f"a layer declared with a group axis {layout.axis} has {entries} entries, not {expected}"
        )


def move_planes(features_BCGHW: Tensor, layout: Layout, move: Callable[[Tensor], Tensor]) -> Tensor:
    """Move the planes of features as one moves the image; the group axis stays.

    Entry r of an orbit is computed from the image turned by -r quarters: its plane is moved in that frame.
    """
    if layout.axis != "orbit_c4":
        return move(features_BCGHW)
    check_entries(layout, features_BCGHW.shape[2])
    return _turned(move(_turned(features_BCGHW, 1)), -1)


def see_planes(visible_HW: Tensor, layout: Layout) -> Tensor:
    """Return the positions that are visible in every plane, from those visible in the image's frame."""
    if layout.axis != "orbit_c4":
        return visible_HW
    return torch.stack([visible_HW.rot90(turn) for turn in range(4)]).all(0)


def _turned(features_BCGHW: Tensor, direction: int) -> Tensor:
    planes = features_BCGHW.unbind(2)
    return torch.stack([plane.rot90(direction * turn, (2, 3)) for turn, plane in enumerate(planes)], 2)

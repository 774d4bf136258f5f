"""The four grids of every second row and column, of which an adaptive downsampler takes one for each image."""

import torch
from torch import Tensor

from equitune.errors import Infeasible


def half(name: str, side: int) -> int:
    """Half of an even side.

    Raises:
        Infeasible: the side is odd, so that the four grids differ in size.
    """
    if side % 2:
        raise Infeasible(f"{name} needs maps of even side, but got {side} x {side}: choose another size or downsampler")
    return side // 2


def components(maps_BCGHW: Tensor) -> Tensor:
    """Return a view of maps as (B, 2, 2, C, G, H / 2, W / 2): which rows, which columns."""
    *images, height, width = maps_BCGHW.shape
    split = maps_BCGHW.reshape(*images, height // 2, 2, width // 2, 2)
    return split.permute(0, 4, 6, 1, 2, 3, 5)


def taken(maps_BCGHW: Tensor, place_B: Tensor) -> Tensor:
    """Of each image its own component, 0 to 3 in row-major order."""
    # Here and elsewhere not len(maps): torch.export would fix the number of images.
    image_B = torch.arange(maps_BCGHW.shape[0], device=maps_BCGHW.device)
    return components(maps_BCGHW)[image_B, place_B // 2, place_B % 2]

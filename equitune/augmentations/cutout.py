"""Covers a square of each image with zeros (1708.04552)."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from equitune.layers.draw import uniform

STRENGTH = "side_px"


def augment(
    images_BCHW: Tensor, generator: torch.Generator, *, side_px: Annotated[int, Field(ge=0, le=1024)] = 4
) -> Tensor:
    """Return the square's centre is drawn uniformly over the image; what lies outside is cut off."""
    if side_px == 0:
        return images_BCHW
    height, width = images_BCHW.shape[-2:]
    centre_B2 = uniform(images_BCHW, generator, 0, 1, 2)
    top_B = (centre_B2[:, 0] * height).floor() - side_px // 2
    left_B = (centre_B2[:, 1] * width).floor() - side_px // 2
    rows, cols = torch.arange(height, device=images_BCHW.device), torch.arange(width, device=images_BCHW.device)
    covered_BH = (rows >= top_B[:, None]) & (rows < top_B[:, None] + side_px)
    covered_BW = (cols >= left_B[:, None]) & (cols < left_B[:, None] + side_px)
    return images_BCHW.masked_fill((covered_BH[:, :, None] & covered_BW[:, None, :])[:, None], 0)

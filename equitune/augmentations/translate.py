"""Shifts each image by a whole number of pixels in each direction, exactly."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from equitune.groups.resample import shift_each
from equitune.layers.draw import uniform

STRENGTH = "max_px"


def augment(
    images_BCHW: Tensor,
    generator: torch.Generator,
    *,
    max_px: Annotated[float, Field(ge=0, le=1024)] = 2.0,
    fill: Literal["zero", "edge", "reflect"] = "zero",
) -> Tensor:
    """Rows and columns are each drawn from U(-max_px, max_px) and rounded: below 0.5 px nothing moves."""
    if max_px == 0:
        return images_BCHW
    shifts_B2 = uniform(images_BCHW, generator, -max_px, max_px, 2).round().long()
    return shift_each(images_BCHW, shifts_B2, fill=fill)

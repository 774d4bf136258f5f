"""Enlarges or shrinks each image about its centre, bilinearly."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from equitune.groups.resample import affine
from equitune.layers.draw import uniform

STRENGTH = "max_octaves"


def augment(
    images_BCHW: Tensor,
    generator: torch.Generator,
    *,
    max_octaves: Annotated[float, Field(ge=0, le=3)] = 0.3,
    fill: Literal["zero", "edge", "reflect"] = "zero",
) -> Tensor:
    """Return the factor is 2^u with u drawn from U(-max_octaves, max_octaves), so that half and double
    are equally far.
    """
    if max_octaves == 0:
        return images_BCHW
    shrink_B = torch.exp2(-uniform(images_BCHW, generator, -max_octaves, max_octaves))
    zero = torch.zeros_like(shrink_B)
    inverse_B23 = torch.stack([torch.stack([shrink_B, zero, zero], 1), torch.stack([zero, shrink_B, zero], 1)], 1)
    return affine(images_BCHW, inverse_B23, fill=fill)

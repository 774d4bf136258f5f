"""Mirrors images left to right, exactly."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from equitune.layers.draw import chosen, per_image

STRENGTH = "probability"


def augment(
    images_BCHW: Tensor, generator: torch.Generator, *, probability: Annotated[float, Field(ge=0, le=1)] = 0.5
) -> Tensor:
    if probability == 0:
        return images_BCHW
    return torch.where(per_image(chosen(images_BCHW, generator, probability)), images_BCHW.flip(-1), images_BCHW)

"""Adds independent normal noise to every pixel, then clips to [0, 1]."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

STRENGTH = "std"


def augment(images_BCHW: Tensor, generator: torch.Generator, *, std: Annotated[float, Field(ge=0)] = 0.05) -> Tensor:
    """`std` is in units of the image's range, 0 to 1."""
    if std == 0:
        return images_BCHW
    noise = torch.empty_like(images_BCHW).normal_(0, std, generator=generator)
    return (images_BCHW + noise).clamp(0, 1)

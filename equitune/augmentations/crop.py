"""Random resized crop: a window of random area and aspect, enlarged to the whole image, bilinearly."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from equitune.groups.resample import affine
from equitune.layers.draw import uniform

STRENGTH = "max_area_loss"


def augment(
    images_BCHW: Tensor,
    generator: torch.Generator,
    *,
    max_area_loss: Annotated[float, Field(ge=0, lt=1)] = 0.3,
    max_aspect: Annotated[float, Field(ge=1, le=4)] = 1.33,
) -> Tensor:
    """Return the window keeps an area of U(1 - max_area_loss, 1); its aspect is log-uniform up to max_aspect either
    way.

    A side that would leave the image is cut to it, so the window always lies inside.
    """
    if max_area_loss == 0:
        return images_BCHW
    height, width = images_BCHW.shape[-2:]
    area_B = uniform(images_BCHW, generator, 1 - max_area_loss, 1)
    aspect_B = torch.exp(uniform(images_BCHW, generator, -1, 1) * torch.tensor(max_aspect).log())
    tall_B, wide_B = ((area_B / aspect_B).sqrt().clamp(max=1), (area_B * aspect_B).sqrt().clamp(max=1))
    place_B2 = uniform(images_BCHW, generator, -0.5, 0.5, 2)  # of the window's centre, within the room it has
    zero = torch.zeros_like(area_B)
    right = torch.stack([wide_B, zero, place_B2[:, 0] * (1 - wide_B) * width], 1)
    down = torch.stack([zero, tall_B, place_B2[:, 1] * (1 - tall_B) * height], 1)
    return affine(images_BCHW, torch.stack([right, down], 1), fill="edge")

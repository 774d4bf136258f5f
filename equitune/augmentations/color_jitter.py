"""Changes brightness, contrast, saturation and hue of each image; on images without three channels, the first two."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from equitune.layers.draw import per_image, uniform

STRENGTH = "strength"

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_GREY_AXIS_OCTANT = 3**-0.5


def augment(
    images_BCHW: Tensor,
    generator: torch.Generator,
    *,
    strength: Annotated[float, Field(ge=0, le=1)] = 0.2,
    max_hue_deg: Annotated[float, Field(ge=0, le=180)] = 0.0,
) -> Tensor:
    """Brightness, contrast and saturation are each scaled by U(1 - strength, 1 + strength), then clipped to [0, 1].

    Hue turns by U(-max_hue_deg, max_hue_deg) * strength about the grey axis of RGB.
    """
    if strength == 0:
        return images_BCHW
    brightness, contrast, saturation, turn = uniform(images_BCHW, generator, -1, 1, 4).unbind(1)
    images = images_BCHW * per_image(1 + strength * brightness)
    grey = _grey(images).mean((1, 2, 3), keepdim=True)
    images = grey + (images - grey) * per_image(1 + strength * contrast)
    if images.shape[1] == 3:
        grey = _grey(images)
        images = grey + (images - grey) * per_image(1 + strength * saturation)
        if max_hue_deg:
            images = torch.einsum("bij,bjhw->bihw", hue_rotation(turn * strength * max_hue_deg), images)
    return images.clamp(0, 1)


def hue_rotation(angles_B: Tensor) -> Tensor:
    """Rotations of RGB space about the grey axis (B, 3, 3); angles in degrees. 120 deg permutes the channels."""
    angle = angles_B.deg2rad()
    cos, sin = angle.cos(), angle.sin() * _GREY_AXIS_OCTANT
    third = (1 - cos) / 3
    same, before, after = cos + third, third - sin, third + sin
    return torch.stack([same, before, after, after, same, before, before, after, same], 1).view(-1, 3, 3)


def _grey(images: Tensor) -> Tensor:
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    return (images * images.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)

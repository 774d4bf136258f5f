"""Rotates each image about its centre: by any angle (bilinear), or by exact quarter turns."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from equitune.groups.resample import affine
from equitune.layers.draw import uniform

STRENGTH = "max_deg"


def augment(
    images_BCHW: Tensor,
    generator: torch.Generator,
    *,
    max_deg: Annotated[float, Field(ge=0, le=180)] = 15.0,
    quarter_turns: bool = False,
    fill: Literal["zero", "edge", "reflect"] = "zero",
) -> Tensor:
    """Angles are drawn from U(-max_deg, max_deg), counter-clockwise.

    With `quarter_turns` they are drawn from the multiples of 90 deg within these bounds, and no pixel is
    interpolated; the images are then square.
    """
    if max_deg == 0 or (quarter_turns and max_deg < 90):
        return images_BCHW
    if quarter_turns:
        most = int(max_deg // 90)
        turns_B = uniform(images_BCHW, generator, -most, most + 1).floor().long() % 4
        return turn_each(images_BCHW, turns_B)
    angles_B = uniform(images_BCHW, generator, -max_deg, max_deg).deg2rad()
    cos, sin, zero = angles_B.cos(), angles_B.sin(), torch.zeros_like(angles_B)
    # Rows run downwards, so this takes the input's value from the place turned clockwise: the image turns back.
    inverse_B23 = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    return affine(images_BCHW, inverse_B23, fill=fill)


def turn_each(images_BCHW: Tensor, turns_B: Tensor) -> Tensor:
    """Turn each square image by its own number (0 to 3) of quarter turns, counter-clockwise, exactly."""
    turned = images_BCHW.clone()
    for turns in range(1, 4):
        which = turns_B == turns
        turned[which] = images_BCHW[which].rot90(turns, (-2, -1))
    return turned

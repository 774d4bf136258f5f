"""Random numbers of a batch, from the trial's generator and on its device."""

import torch
from torch import Tensor


def uniform(images_BCHW: Tensor, generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    """(B, *shape) numbers from [low, high), in the images' dtype and on their device."""
    size = (images_BCHW.shape[0], *shape)
    drawn = torch.rand(size, generator=generator, device=images_BCHW.device, dtype=images_BCHW.dtype)
    return drawn * (high - low) + low


def chosen(images_BCHW: Tensor, generator: torch.Generator, probability: float) -> Tensor:
    """(B,) booleans, true with the given probability."""
    return uniform(images_BCHW, generator, 0, 1) < probability


def per_image(values_B: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1), to meet a batch of images."""
    return values_B[:, None, None, None]

"""The side of images as an axis of a study: data are loaded once, and a trial sees them at its own size."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from equitune.datasets._splits import moments
from equitune.spec.trial import InputConfig
from equitune.trial.build import DeviceData, DeviceSplit

CHUNK = 4096  # images that are floating-point numbers at a time


def at_size(data: DeviceData, given: InputConfig) -> DeviceData:
    """The data as a trial sees them; the very same where they have its size already.

    Mean and deviation are those of the resized training pixels: what the network is given has mean 0 and deviation 1
    at every size, as if the data had been of that size from the start.
    """
    shape = given.shape_of(data.shape)
    if shape == data.shape:
        return data
    train, validation = (split_at_size(split, given) for split in (data.train, data.validation))
    mean, std = moments(train.pixels.cpu().numpy())
    return replace(data, train=train, validation=validation, shape=shape, mean=mean, std=std)


def split_at_size(split: DeviceSplit, given: InputConfig) -> DeviceSplit:
    """One part of the data as a trial sees it."""
    channels, height, width = split.pixels.shape[1:]
    _, side, _ = shape = given.shape_of((channels, height, width))
    return split if shape == (channels, height, width) else replace(split, pixels=resized(split.pixels, side))


def resized(pixels_NCHW: Tensor, side: int) -> Tensor:
    """uint8 images -> uint8 images (N, C, side, side): bilinear, smoothed first where they shrink, rounded."""
    out = pixels_NCHW.new_empty((*pixels_NCHW.shape[:2], side, side))
    for start in range(0, len(out), CHUNK):
        part = pixels_NCHW[start : start + CHUNK].to(torch.float32)
        part = functional.interpolate(part, (side, side), mode="bilinear", align_corners=False, antialias=True)
        out[start : start + CHUNK] = part.round_().clamp_(0, 255).to(torch.uint8)
    return out

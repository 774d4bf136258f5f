"""One part of the data as a trial uses it: on its device, or in files that are decoded ahead of it."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from equitune.config.trial import InputConfig
from equitune.data.decoders import decoders, usable_cores
from equitune.data.files import READ, Files, Pixels, histogram, kept
from equitune.data.splits import Split, moments, moments_of

CHUNK = 4096  # images that are floating-point numbers at a time
Moments = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation of each channel


@dataclass(frozen=True)
class DeviceSplit:
    """Pixels (n, C, H, W) uint8 and labels (n,) int64, both on the device."""

    pixels: Tensor
    labels: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.pixels.shape
        return channels, height, width

    def batches(self, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images in [0, 1], (B, C, H, W), with their labels (B,), in an order (m,) of places in the split."""
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            yield as_float(self.pixels[batch]), self.labels[batch]

    def moments(self) -> Moments:
        """Of all pixels, in [0, 1]."""
        return moments(self.pixels.cpu().numpy())

    def at_size(self, side: int) -> "DeviceSplit":
        """Return the images, resized to a square."""
        return replace(self, pixels=resized(self.pixels, side))


@dataclass(frozen=True)
class StreamedSplit:
    """The same of images that stay in their files; none but those in use are in memory.

    Attributes:
        files: the images.
        labels: (n,) int64, on the device.
        folder: that the files lie in, on this node.
        side: of the images that a trial sees, in px.
        processes: that decode them. What they give does not depend on their number.
    """

    files: Files
    labels: Tensor
    folder: str
    side: int
    processes: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.files.shape[1], self.side, self.side

    def batches(self, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images in [0, 1], (B, C, H, W), with their labels (B,), in an order (m,) of places in the split.

        While one batch is in use the next ones are decoded.

        Raises:
            BrokenImage: an image cannot be decoded; names it.
        """
        parts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        places = iter([part.numpy() for part in order.cpu().split(batch_size)])  # type: ignore[no-untyped-call]
        decoded = self.files.read(self.folder, places, batch_size, decoders(self.processes))
        for part, pixels in zip(parts, decoded, strict=True):
            yield as_float(self._seen(self._moved(pixels))), self.labels[part]

    @cached_property
    def pixels(self) -> Tensor:
        """Of all images, (n, C, H, W) uint8, in their order: on this node's disk, mapped into the CPU's memory."""
        return shared(kept(self.files, self.folder, self.side, self._read))

    def moments(self) -> Moments:
        """Of a sample of the images, in [0, 1]."""
        by = decoders(self.processes)
        return moments_of(histogram(self.files, self.folder, by, self._seen_array))

    def at_size(self, side: int) -> "StreamedSplit":
        """Return the images, resized to a square."""
        return replace(self, side=side)

    def _read(self, first: int) -> Iterator[Pixels]:
        places = self.files.in_order(first)
        yield from map(self._seen_array, self.files.read(self.folder, places, READ, decoders(self.processes)))

    def _moved(self, pixels: Pixels) -> Tensor:
        images = torch.from_numpy(pixels)
        if self.labels.device.type == "cuda":  # through pinned memory, so that the copy runs beside the last step
            return images.pin_memory().to(self.labels.device, non_blocking=True)
        return images

    def _seen(self, images: Tensor) -> Tensor:
        return images if self.side == self.files.size else resized(images, self.side)

    def _seen_array(self, pixels: Pixels) -> Pixels:
        return self._seen(torch.from_numpy(pixels)).numpy()


AnySplit = DeviceSplit | StreamedSplit


def move(split: Split, device: str, processes: int | None = None) -> AnySplit:
    """One split on a device; on the CPU its tensors share the arrays' memory, which nobody writes to.

    Args:
        split: arrays, or files, which stay where they are on this node, or are copied to it.
        device: where its tensors are wanted.
        processes: that decode files; None: as many as there are cores.

    Raises:
        UserError: the files cannot be had.
    """
    labels = shared(split.labels).to(device)
    if isinstance(split.pixels, Files):
        files = split.pixels
        return StreamedSplit(files, labels, files.fetch(), files.size, processes or usable_cores())
    return DeviceSplit(shared(split.pixels).to(device), labels)


def split_at_size(split: AnySplit, given: InputConfig) -> AnySplit:
    """One part of the data as a trial sees it."""
    _, side, _ = shape = given.shape_of(split.shape)
    return split if shape == split.shape else split.at_size(side)


def resized(pixels_NCHW: Tensor, side: int) -> Tensor:
    """uint8 images -> uint8 images (N, C, side, side): bilinear, smoothed first where they shrink, rounded."""
    out = pixels_NCHW.new_empty((*pixels_NCHW.shape[:2], side, side))
    for start in range(0, len(out), CHUNK):
        part = pixels_NCHW[start : start + CHUNK].to(torch.float32)
        part = functional.interpolate(part, (side, side), mode="bilinear", align_corners=False, antialias=True)
        out[start : start + CHUNK] = part.round_().clamp_(0, 255).to(torch.uint8)
    return out


def shared(array: np.ndarray[Any, Any]) -> Tensor:
    """Return a tensor of an array's own memory."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def as_float(pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 pixels -> images in [0, 1]; floating ones are in that range already."""
    return pixels.to(dtype) if pixels.is_floating_point() else pixels.to(dtype).div_(255)

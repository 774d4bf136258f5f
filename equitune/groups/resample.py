"""The one place that interpolates. Everything elsewhere is lattice-exact or comes through here.

Coordinates: pixel centres lie at 0 .. H-1 and 0 .. W-1; rotations and scalings are about the image's centre.
"""

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Fill = Literal["zero", "edge", "reflect"]
LatticeFill = Literal["zero", "edge", "reflect", "circular"]
Interpolation = Literal["bilinear", "bicubic"]
_GRID_SAMPLE_FILL = {"zero": "zeros", "edge": "border", "reflect": "reflection"}


def shift_circular(maps: Tensor, shift_px: float, dim: int) -> Tensor:
    """Shifts circularly along one dimension, towards higher indices.

    A whole number of pixels is a roll, hence exact. A fraction is the Fourier shift: exact below the Nyquist
    frequency, which on an even side keeps only the cosine of its phase.

    Args:
        maps: real tensor.
        shift_px: in pixels of this tensor.
        dim: the dimension to shift.
    """
    if float(shift_px).is_integer():
        return maps.roll(int(shift_px), dim)
    return _along(maps, _fourier_shift(maps.shape[dim], float(shift_px)), dim)


def shift_edge(maps: Tensor, shift_px: float, dim: int) -> Tensor:
    """Shifts along one dimension, towards higher indices, the edge repeated where something enters.

    Exact for a whole number of pixels, bicubic for a fraction.

    Args:
        maps: real tensor.
        shift_px: in pixels of this tensor.
        dim: the dimension to shift.
    """
    side = maps.shape[dim]
    if not float(shift_px).is_integer():
        return _along(maps, _bicubic_shift(side, float(shift_px)), dim)
    shift = max(-side, min(side, int(shift_px)))
    shifted = maps.roll(shift, dim)
    entered, edge = (slice(shift), 0) if shift > 0 else (slice(side + shift, side), side - 1)
    shifted.movedim(dim, -1)[..., entered] = maps.select(dim, edge).unsqueeze(-1)
    return shifted


def _along(maps: Tensor, matrix: Tensor, dim: int) -> Tensor:
    """Return a linear map (side, side) of one dimension."""
    matrix = matrix.to(maps)
    if dim % maps.ndim == maps.ndim - 2:
        return matrix @ maps  # the same, and contiguous
    return (maps.transpose(dim, -1) @ matrix.T).transpose(dim, -1)


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # what is kept must serve where gradients flow, too
def _fourier_shift(side: int, shift_px: float) -> Tensor:
    """Return the Fourier shift as a matrix (side, side) in float64; at the sides of feature maps it beats an FFT."""
    frequency = torch.arange(side // 2 + 1, dtype=torch.float64)
    phase = torch.exp(-2j * torch.pi * frequency * (shift_px / side))
    impulses = torch.eye(side, dtype=torch.float64)
    shifted: Tensor = torch.fft.irfft(torch.fft.rfft(impulses, dim=0) * phase[:, None], n=side, dim=0)
    return shifted


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _bicubic_shift(side: int, shift_px: float) -> Tensor:
    """Return the bicubic shift as a matrix (side, side) in float64: what becomes of each impulse."""
    impulses = torch.eye(side, dtype=torch.float64).view(1, 1, side, side)
    to_source = torch.tensor([[[1, 0, -shift_px], [0, 1, 0]]], dtype=torch.float64)
    return affine(impulses, to_source, fill="edge", mode="bicubic")[0, 0].T


def affine(
    images_BCHW: Tensor, inverse_B23: Tensor, *, fill: Fill = "zero", mode: Interpolation = "bilinear"
) -> Tensor:
    """Sample each image at affinely mapped pixels.

    Args:
        images_BCHW: floating-point images.
        inverse_B23: one matrix an image, or a single one (1, 2, 3) for all, mapping an output pixel's (x, y, 1),
            measured from the image's centre in pixels, to the place in the input whose value it takes (the inverse of
            what the image seems to undergo).
        fill: what lies outside the image.
        mode: how values between pixels are had.
    """
    height, width = images_BCHW.shape[-2:]
    # grid_sample with align_corners=False has its edges at -1 and 1, so a pixel is 2/side wide.
    to_px = images_BCHW.new_tensor([width / 2, height / 2])
    normalised = inverse_B23.to(images_BCHW.dtype).clone()
    normalised[:, :, :2] *= to_px / to_px[:, None]
    normalised[:, :, 2] /= to_px
    grid = functional.affine_grid(normalised, [normalised.shape[0], 1, height, width], align_corners=False)
    return functional.grid_sample(
        images_BCHW,
        grid.expand(images_BCHW.shape[0], -1, -1, -1),
        mode=mode,
        padding_mode=_GRID_SAMPLE_FILL[fill],
        align_corners=False,
    )


def shift_each(images_BCHW: Tensor, shifts_B2: Tensor, *, fill: LatticeFill = "zero") -> Tensor:
    """Shifts each image by its own whole number of pixels (rows, columns), exactly.

    Args:
        images_BCHW: images.
        shifts_B2: int64, in pixels; positive is down and right.
        fill: what enters at the border.
    """
    batch, _, height, width = images_BCHW.shape
    device = images_BCHW.device
    rows_BH = torch.arange(height, device=device) - shifts_B2[:, :1]
    cols_BW = torch.arange(width, device=device) - shifts_B2[:, 1:]
    picked = images_BCHW[
        torch.arange(batch, device=device)[:, None, None],
        :,
        _inside(rows_BH, height, fill)[:, :, None],
        _inside(cols_BW, width, fill)[:, None, :],
    ].permute(0, 3, 1, 2)
    if fill != "zero":
        return picked.contiguous()
    visible_BHW = ((rows_BH >= 0) & (rows_BH < height))[:, :, None] & ((cols_BW >= 0) & (cols_BW < width))[:, None, :]
    return (picked * visible_BHW[:, None]).contiguous()


def _inside(index: Tensor, side: int, fill: LatticeFill) -> Tensor:
    if fill == "circular":
        return index.remainder(side)
    if fill != "reflect":
        return index.clamp(0, side - 1)
    folded = index.remainder(2 * side)  # half-sample reflection, as grid_sample's with align_corners=False
    return torch.where(folded < side, folded, 2 * side - 1 - folded)


def warp(images_BCHW: Tensor, displacements_B2HW: Tensor) -> Tensor:
    """Move each image by its own displacement field, bilinearly; beyond the border lie the border's pixels.

    Args:
        images_BCHW: floating-point images.
        displacements_B2HW: in pixels (rows, columns); positive is down and right. The pixel at s takes the value at
            s - displacement(s), as 2105.02468 defines it.
    """
    height, width = images_BCHW.shape[-2:]
    displacements_B2HW = displacements_B2HW.to(images_BCHW)
    rows_BHW = torch.arange(height, device=images_BCHW.device)[:, None] - displacements_B2HW[:, 0]
    cols_BHW = torch.arange(width, device=images_BCHW.device) - displacements_B2HW[:, 1]
    # grid_sample with align_corners=False has its edges at -1 and 1, half a pixel outside the first and last centre.
    grid = torch.stack([(2 * cols_BHW + 1) / width - 1, (2 * rows_BHW + 1) / height - 1], -1)
    return functional.grid_sample(images_BCHW, grid, mode="bilinear", padding_mode="border", align_corners=False)


def derivative_circular(maps: Tensor, dim: int) -> Tensor:
    """Return the derivative along one dimension, per pixel: that of the Fourier shift, with the opposite sign.

    Exact below the Nyquist frequency; at it, on an even side, the derivative is 0.

    Args:
        maps: real tensor, periodic along the dimension.
        dim: the dimension to differentiate along.
    """
    lines = maps.transpose(dim, -1)
    matrix = _fourier_derivative(maps.shape[dim]).to(maps)
    # One product of two matrices, whatever the shape, so that equal numbers have equal derivatives to the last bit.
    return (lines.reshape(-1, maps.shape[dim]) @ matrix.T).view(lines.shape).transpose(dim, -1)


@lru_cache(maxsize=256)
def _fourier_derivative(side: int) -> Tensor:
    """Return the spectral derivative as a matrix (side, side) in float64."""
    frequency = torch.arange(side // 2 + 1, dtype=torch.float64)
    factor = 2j * torch.pi / side * frequency * (2 * frequency != side)
    impulses = torch.eye(side, dtype=torch.float64)
    derivative: Tensor = torch.fft.irfft(torch.fft.rfft(impulses, dim=0) * factor[:, None], n=side, dim=0)
    return derivative


def gradient(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return the derivatives of (..., H, W) along rows and columns, per pixel, without wrapping around; sides of 3 or
    more.

    Central differences, one-sided at the border: local, and exact for polynomials of degree 2.
    """
    along_rows, along_cols = torch.gradient(maps, dim=(-2, -1), edge_order=2)
    return along_rows, along_cols

"""The first layer of every model: images in [0, 1] -> zero mean and unit variance."""

import torch
from torch import Tensor, nn

from equitune.groups.grid import Symmetry


class Normalise(nn.Module):
    """Subtracts the mean and divides by the standard deviation; kept with the weights.

    Args:
        channels: of the images.
        is_shared: one mean and one deviation for all channels, so that exchanging channels commutes with it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, *, is_shared: bool = False) -> None:
        super().__init__()
        self.is_shared = is_shared
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))

    def use(self, mean: Tensor, std: Tensor) -> None:
        """Set the statistics, one value a channel (C,); shared ones are those of all channels' pixels together."""
        if self.is_shared:
            variance = (std**2 + mean**2).mean() - mean.mean() ** 2
            mean, std = mean.mean().expand_as(mean), variance.sqrt().expand_as(std)
        self.mean.copy_(mean.view_as(self.mean))
        self.std.copy_(std.view_as(self.std))

    def breaks(self, symmetry: Symmetry, side: int) -> str | None:
        """Return the rule by which it fails to commute with a symmetry."""
        is_apart = symmetry == "hue" and not self.is_shared
        return "each channel has a mean and a deviation of its own" if is_apart else None

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std

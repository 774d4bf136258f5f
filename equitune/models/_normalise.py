"""The first layer of every model: images in [0, 1] -> zero mean and unit variance."""

import torch
from torch import Tensor, nn


class Normalise(nn.Module):
    """Subtracts the mean and divides by the standard deviation, per channel; kept with the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))

    def use(self, mean: Tensor, std: Tensor) -> None:
        """Sets the statistics, one value a channel (C,)."""
        self.mean.copy_(mean.view_as(self.mean))
        self.std.copy_(std.view_as(self.std))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std

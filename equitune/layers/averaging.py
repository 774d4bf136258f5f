"""What an averaging provides: a model around a model, whose scores are a mean over transformations of the image."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from equitune.groups.layout import Layout, Vector


class Averaging(nn.Module, ABC):
    """Images (B, C, H, W) in [0, 1] -> class scores (B, classes).

    Only the averaged scores can be measured: the layers within see images that have already been moved.

    Args:
        model: what is averaged.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.output = nn.Identity()
        self.layers: dict[str, Layout] = {"output": Vector()}

    @property
    def normalise(self) -> nn.Module:
        """The model's first layer, which a trial sets to the data's statistics."""
        return self.model.normalise  # type: ignore[return-value]

    def forward(self, images: Tensor) -> Tensor:
        return self.output(self.averaged(images))

    @abstractmethod
    def averaged(self, images: Tensor) -> Tensor:
        """Return the averaged scores (B, classes); those of an image do not depend on the others of its batch."""

    def widths(self) -> dict[str, tuple[float, str]]:
        """How far each kind of transformation reaches, where that is learned: its full width and the unit."""
        return {}

    def width_penalty(self) -> Tensor:
        """Return what a loss may add (`training.symmetry_penalty`) so that the widths grow; 0 where none is learned."""
        return torch.zeros(())

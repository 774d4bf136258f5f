"""What the priors without a group (|G| = 1) share: maps (B, C, 1, H, W) around layers of images (B, C, H, W)."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from equitune.layers.prior import MapPrior, Shape
from equitune.layers.relaxable import share


class OnMaps(nn.Module):
    """A layer of images, applied to maps whose group axis has length 1."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, maps: Tensor) -> Tensor:
        return self.layer(maps.squeeze(2)).unsqueeze(2)


class Lifted(nn.Module):
    """A layer of images whose output gains a group axis of length 1."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images).unsqueeze(2)


class PlainPrior(MapPrior):
    """A prior with |G| = 1: one kind of layer on images, used for the first layer and for all others."""

    axis = "none"

    @abstractmethod
    def layer(
        self, inputs: int, outputs: int, kernel: int, side: int, stride: int, padding: int, bias: bool
    ) -> nn.Module:
        """Images (B, inputs, side, side) -> images (B, outputs, side', side')."""

    def built(self, shape: Shape, side: int) -> nn.Module:
        layer = self.layer(shape.inputs, shape.outputs, shape.kernel, side, shape.stride, shape.padding, shape.bias)
        return Lifted(layer) if shape.lifts else OnMaps(layer)

    def norm(self, channels: int) -> nn.Module:
        return OnMaps(nn.BatchNorm2d(channels))

    def head(self, channels: int) -> tuple[nn.Module, int]:
        return nn.Flatten(), channels


def places(side: int) -> Tensor:
    """Where the positions of a square map lie: (side, side, 2), row and column in [-1, 1]."""
    along = torch.linspace(-1, 1, side)
    return torch.stack(torch.meshgrid(along, along, indexing="ij"), 2)


def position_dependence(kernels_PF: Tensor, products_FF: Tensor | None = None) -> Tensor:
    """How far the kernels of P positions are from one kernel: 0 where all are the same, at most 1.

    The mean square of their distance to their mean, over that of the kernels themselves.

    Args:
        kernels_PF: the kernels' weights, or their coordinates.
        products_FF: the inner products of what the coordinates are of.
    """

    def squares(kernels_PF: Tensor) -> Tensor:
        moved = kernels_PF if products_FF is None else kernels_PF @ products_FF
        return (moved * kernels_PF).sum()

    return share(squares(kernels_PF - kernels_PF.mean(0)), squares(kernels_PF))

"""What a convolution prior provides, and the arithmetic of sides that every model needs.

Feature maps carry the group axis from the first layer on: (B, C, G, H, W), with G = 1 for plain networks.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from equitune.groups.layout import Axis


@dataclass(frozen=True)
class Shape:
    """What a model asks a layer to be."""

    inputs: int
    outputs: int
    kernel: int
    stride: int
    padding: int
    bias: bool
    lifts: bool  # images (B, C, H, W) to maps
    pad_mode: str = "constant"  # torch's word for what the border is filled with: the prior's to say


class MapPrior(ABC):
    """A prior over feature maps: the layers of a convolutional network.

    Attributes:
        axis: what the group axis of its maps is, and so how a group permutes it.
    """

    axis: Axis

    def lift(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        side: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = False,
    ) -> nn.Module:
        """Images (B, inputs, H, W) -> maps (B, outputs, G, H', W'). `side` is H = W, in pixels."""
        return self.built(Shape(inputs, outputs, kernel, stride, padding, bias, lifts=True), side)

    def conv(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        side: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = False,
    ) -> nn.Module:
        """Return maps (B, inputs, G, H, W) -> maps (B, outputs, G, H', W')."""
        return self.built(Shape(inputs, outputs, kernel, stride, padding, bias, lifts=False), side)

    @abstractmethod
    def built(self, shape: Shape, side: int) -> nn.Module:
        """Return the layer of that shape, for maps of that side."""

    @abstractmethod
    def norm(self, channels: int) -> nn.Module:
        """Batch normalisation of maps, its statistics shared over G."""

    @abstractmethod
    def head(self, channels: int) -> tuple[nn.Module, int]:
        """Pooled maps (B, channels, G) -> features (B, D) that a classifier reads, and D."""


class TokenPrior(Protocol):
    """A prior over the tokens (B, T, D) of a transformer on a square grid of T = grid * grid patches."""

    def position(self, width: int, grid: int) -> nn.Module:
        """Add what a token knows of its place: (B, T, D) -> (B, T, D)."""

    def mix(self, width: int, heads: int, grid: int, *, block: int) -> nn.Module:
        """Exchanges information between tokens in a block, the first one being 0: (B, T, D) -> (B, T, D)."""

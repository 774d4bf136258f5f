"""What a downsampler provides: how a network halves its maps where a stage begins.

A stage begins with a convolution, normalisation and ReLU. Either that convolution moves in strides of two, or a
`Halving` follows the ReLU. A shortcut around it must take the same positions, so it passes through the same halving.
"""

from abc import ABC, abstractmethod
from typing import Protocol

from torch import Tensor, nn

from equitune.groups.grid import Symmetry


class Halving(nn.Module, ABC):
    """Takes maps to a grid of half their side.

    Its windows stand in its attributes kernel_size, stride and padding (in front), as those of a convolution do.

    Args:
        kernel: the side of its windows.
        side: of the maps that it gives.
        padding: in front.
    """

    stride = 2
    is_adaptive = False  # whether it finds the same positions on an image that has moved by a single pixel

    def __init__(self, kernel: int, side: int, padding: int = 0) -> None:
        super().__init__()
        self.kernel_size, self.side, self.padding = kernel, side, padding

    @abstractmethod
    def forward(self, *maps: Tensor) -> tuple[Tensor, ...]:
        """Return maps (B, C, G, H, W) and others beside them -> each at half the side, all at the same positions.

        The first alone decide which positions these are, for each image by itself.
        """

    def breaks(self, symmetry: Symmetry, side: int) -> str | None:
        """Return the rule by which it fails to commute with a symmetry on maps of this side; None: it commutes."""
        return f"nothing is known of {type(self).__name__}"


class Downsampler(Protocol):
    """How a stage begins."""

    @property
    def conv_stride(self) -> int:
        """Of its first convolution, and of a 1 x 1 shortcut: 2 where they halve the maps themselves, else 1."""

    def halving(self, channels: int, side: int) -> Halving | None:
        """Return what follows that convolution's ReLU, on maps of `channels` and this side; None: nothing.

        Raises:
            Infeasible: such maps cannot be halved.
        """

"""What the output of a layer is: declared by the model, never guessed from a shape."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from equitune.errors import Infeasible


class Layout(Protocol):
    """How to read a layer's output as features (B, C, G, H, W)."""

    @property
    def stride(self) -> int:
        """Pixels of the image between neighbouring positions of the map."""

    @property
    def is_spatial(self) -> bool:
        """Whether the features have a grid on which a group can act."""

    def read(self, output: Tensor) -> Tensor:
        """The layer's output as (B, C, G, H, W).

        Raises:
            Infeasible: the output is not what was declared.
        """


@dataclass(frozen=True)
class Grid:
    """Feature maps: (B, C, G, H, W), (B, C, H, W), or channels last (B, H, W, C)."""

    stride: int
    channels_last: bool = False
    is_spatial: bool = True

    def read(self, output: Tensor) -> Tensor:
        if self.channels_last and output.ndim == 4:
            output = output.movedim(-1, 1)
        if output.ndim == 4:
            output = output.unsqueeze(2)
        if output.ndim != 5:
            raise Infeasible(f"a layer declared as a grid gave shape {tuple(output.shape)}")
        return output


@dataclass(frozen=True)
class Tokens:
    """Transformer tokens (B, special + H * W, D), the special ones (class, distillation) in front."""

    stride: int
    height: int
    width: int
    special: int = 0
    is_spatial: bool = True

    def read(self, output: Tensor) -> Tensor:
        if output.ndim != 3 or output.shape[1] != self.special + self.height * self.width:
            raise Infeasible(
                f"a layer declared as {self.special} + {self.height} x {self.width} tokens gave {tuple(output.shape)}"
            )
        patches = output[:, self.special :].transpose(1, 2)
        return patches.reshape(*patches.shape[:2], 1, self.height, self.width)


@dataclass(frozen=True)
class Vector:
    """Features without a grid (B, D): class scores, pooled features. Every spatial group acts trivially."""

    stride: int = 1
    is_spatial: bool = False

    def read(self, output: Tensor) -> Tensor:
        if output.ndim != 2:
            raise Infeasible(f"a layer declared as a vector gave shape {tuple(output.shape)}")
        return output[:, :, None, None, None]

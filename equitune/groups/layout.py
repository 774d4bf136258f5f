"""What the output of a layer is: declared by the model, never guessed from a shape."""

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from equitune.errors import Unmeasurable

# What the group axis of feature maps (B, C, G, H, W) is, and so how a group permutes it.
# c4: four quarter turns r, entry r; d4: elements R^r F^m, entry 4 m + r (turn r, mirror m), both regular: the plane
# moves and the axis is permuted. orbit_c4: four quarter turns whose planes do not move. hue: G equal steps of hue.
Axis = Literal["none", "c4", "d4", "orbit_c4", "hue"]


class Layout(Protocol):
    """How to read a layer's output as features (B, C, G, H, W)."""

    @property
    def stride(self) -> int:
        """Pixels of the image between neighbouring positions of the map."""

    @property
    def is_spatial(self) -> bool:
        """Whether the features have a grid on which a group can act."""

    @property
    def axis(self) -> Axis:
        """What the group axis is; `none`: each entry is a channel of its own."""

    def read(self, output: Tensor) -> Tensor:
        """Return the layer's output as (B, C, G, H, W).

        Raises:
            Unmeasurable: the output is not what was declared.
        """


@dataclass(frozen=True)
class Grid:
    """Feature maps: (B, C, G, H, W), (B, C, H, W), or channels last (B, H, W, C)."""

    stride: int
    channels_last: bool = False
    axis: Axis = "none"
    is_spatial: bool = True

    def read(self, output: Tensor) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim not in (4, 5):
            raise Unmeasurable("non_spatial", f"a layer declared as a grid gave {_said(output)}")
        if self.channels_last and output.ndim == 4:
            output = output.movedim(-1, 1)
        return output.unsqueeze(2) if output.ndim == 4 else output


@dataclass(frozen=True)
class Tokens:
    """Transformer tokens (B, special + H * W, D), the special ones (class, distillation) in front."""

    stride: int
    height: int
    width: int
    special: int = 0
    is_spatial: bool = True
    axis: Axis = "none"

    def read(self, output: Tensor) -> Tensor:
        count = self.special + self.height * self.width
        if not isinstance(output, Tensor) or output.ndim != 3 or output.shape[1] != count:
            declared = f"{self.special} + {self.height} x {self.width} tokens"
            raise Unmeasurable("non_spatial", f"a layer declared as {declared} gave {_said(output)}")
        patches = output[:, self.special :].transpose(1, 2)
        return patches.reshape(*patches.shape[:2], 1, self.height, self.width)


@dataclass(frozen=True)
class Vector:
    """Features without a grid (B, D): class scores, pooled features. Every spatial group acts trivially."""

    stride: int = 1
    is_spatial: bool = False
    axis: Axis = "none"

    def read(self, output: Tensor) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != 2:
            raise Unmeasurable("non_spatial", f"a layer declared as a vector gave {_said(output)}")
        return output[:, :, None, None, None]


@dataclass(frozen=True)
class Opaque:
    """An output that cannot be read, and why."""

    reason: str
    stride: int = 1
    is_spatial: bool = False
    axis: Axis = "none"

    def read(self, output: Tensor) -> Tensor:
        raise Unmeasurable("non_spatial", self.reason)


def _said(output: object) -> str:
    return f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"

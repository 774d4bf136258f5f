"""What lies beyond the border of a map: a study's word for it, torch's words, and the padding itself."""

from typing import Literal

from torch import Tensor
from torch.nn import functional

from equitune.errors import Infeasible

PadMode = Literal["zeros", "circular", "reflect"]
TORCH_PADDING: dict[str, PadMode] = {"zero": "zeros", "circular": "circular", "reflect": "reflect"}  # of nn.Conv2d
PAD_MODE = {"zero": "constant", "circular": "circular", "reflect": "reflect"}  # of functional.pad


def check_padding(kind: str, padding: int, side: int) -> None:
    """Whether a map of this side has the pixels to pad with.

    Raises:
        Infeasible: it has not.
    """
    if kind == "reflect" and padding >= side:
        raise Infeasible(f"reflect padding of {padding} needs a map larger than {side} x {side}")


def padded(maps: Tensor, padding: int, mode: str) -> tuple[Tensor, int]:
    """Rows and columns padded with what is not zero, and the zero padding that is left to a convolution."""
    if mode == "constant" or not padding:
        return maps, padding
    sides = (padding,) * 4 + (0, 0) * (maps.ndim - 4)
    return functional.pad(maps, sides, mode=mode), 0

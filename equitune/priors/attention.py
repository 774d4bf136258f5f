"""Self-attention over patches: no locality and no weight tied to a place, but for what `position` adds.

With `position: none` the network does not know where a patch lies, so it commutes exactly with every shift by whole
patches; `learned` and `sincos` let it learn, or make it know, absolute places.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from equitune.errors import Infeasible
from equitune.groups.grid import Symmetry

FEATURES = "tokens"


def build(*, position: Literal["learned", "sincos", "none"] = "learned") -> "Attention":
    return Attention(position)


class Attention:
    """The token layers of a vision transformer."""

    def __init__(self, position: str) -> None:
        self.encoding = position

    def position(self, width: int, grid: int) -> nn.Module:
        if self.encoding == "none":
            return nn.Identity()
        if self.encoding == "learned":
            return AddPosition(nn.Parameter(torch.randn(grid * grid, width) * 0.02))
        return AddPosition(nn.Parameter(sincos(width, grid), requires_grad=False))

    def mix(self, width: int, heads: int, grid: int, *, block: int) -> nn.Module:
        return SelfAttention(width, heads)


class AddPosition(nn.Module):
    """Adds one vector per place: (B, T, D) -> (B, T, D)."""

    def __init__(self, table: nn.Parameter) -> None:
        super().__init__()
        self.table = table

    def breaks(self, symmetry: Symmetry, side: int) -> str | None:
        """Return the rule by which it fails to commute with a symmetry."""
        return None if symmetry == "hue" else "it adds another vector at each place"

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.table


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product attention: (B, T, D) -> (B, T, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise Infeasible(f"width {width} is not divisible by {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def breaks(self, symmetry: Symmetry, side: int) -> None:
        """Nothing: it commutes with every permutation of its tokens."""

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def sincos(width: int, grid: int) -> Tensor:
    """Return fixed sine and cosine codes of row and column (T, D), after Vaswani et al. (1706.03762), half of D an
    axis.

    Raises:
        Infeasible: the width is not a multiple of 4.
    """
    if width % 4:
        raise Infeasible(f"position: sincos needs a width that is a multiple of 4, but got {width}")
    frequency = 10_000.0 ** -(torch.arange(width // 4) / (width // 4))
    angle = torch.arange(grid)[:, None] * frequency
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)  # (grid, D / 2)
    rows = axis[:, None].expand(grid, grid, -1)
    cols = axis[None].expand(grid, grid, -1)
    return torch.cat([rows, cols], dim=2).reshape(grid * grid, width)

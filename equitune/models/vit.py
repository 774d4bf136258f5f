"""A small vision transformer: patches, pre-norm blocks of token mixing and an MLP, mean pooling (2010.11929).

It has no class token: the scores come from the mean of all patches.
"""

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from equitune.errors import Infeasible
from equitune.groups.layout import Layout, Tokens, Vector
from equitune.groups.prior import TokenPrior
from equitune.models._normalise import Normalise

PRIOR = "attention"


def build(
    shape: tuple[int, int, int],
    classes: int,
    prior: TokenPrior,
    *,
    depth: Annotated[int, Field(ge=1)] = 4,
    width: Annotated[int, Field(ge=1)] = 64,
    heads: Annotated[int, Field(ge=1)] = 4,
    patch: Annotated[int, Field(ge=1)] = 4,
) -> "ViT":
    if shape[1] % patch:
        raise Infeasible(f"an image of side {shape[1]} does not divide into patches of {patch}")
    return ViT(shape, classes, prior, depth, width, heads, patch)


class ViT(nn.Module):
    """Images (B, C, H, W) in [0, 1] -> class scores (B, classes)."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        prior: TokenPrior,
        depth: int,
        width: int,
        heads: int,
        patch: int,
    ) -> None:
        super().__init__()
        grid = shape[1] // patch
        tokens = Tokens(patch, grid, grid)
        self.layers: dict[str, Layout] = {"embedded": tokens}
        self.normalise = Normalise(shape[0])
        self.patches = nn.Conv2d(shape[0], width, patch, patch)
        self.embedded = prior.position(width, grid)
        self.blocks = nn.Sequential(*(Block(prior, width, heads, grid, index) for index in range(depth)))
        self.layers |= {f"blocks.{index}": tokens for index in range(depth)}
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, classes)
        self.layers["output"] = Vector()

    def forward(self, images: Tensor) -> Tensor:
        tokens_BTD = self.patches(self.normalise(images)).flatten(2).transpose(1, 2)
        tokens_BTD = self.norm(self.blocks(self.embedded(tokens_BTD)))
        return self.output(tokens_BTD.mean(1))


class Block(nn.Module):
    """(B, T, D) -> (B, T, D)."""

    def __init__(self, prior: TokenPrior, width: int, heads: int, grid: int, index: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.mix = prior.mix(width, heads, grid, block=index)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.mix(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))

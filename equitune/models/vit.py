"""A small vision transformer: patches, pre-norm blocks of token mixing and an MLP, mean pooling (2010.11929).

It has no class token: the scores come from the mean of all patches. The stem, which makes tokens of patches, is the
lifting layer of a prior over maps, in strides of a patch; its group axis is pooled by the prior's own head, at each
position by itself.
"""

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from equitune import catalog
from equitune.errors import Infeasible
from equitune.groups.layout import Layout, Tokens, Vector
from equitune.layers.normalise import Normalise
from equitune.layers.prior import MapPrior, TokenPrior

PRIOR = "attention"
STEM = "conv"
NO_STEM = ["orbit_c4", "partial_p4", "separable_p4"]  # the planes of the first lie apart; the others lift as p4 does


def build(
    shape: tuple[int, int, int],
    classes: int,
    prior: TokenPrior,
    stem: MapPrior | None = None,
    *,
    depth: Annotated[int, Field(ge=1, le=512)] = 4,
    width: Annotated[int, Field(ge=1, le=16384)] = 64,
    heads: Annotated[int, Field(ge=1, le=1024)] = 4,
    patch: Annotated[int, Field(ge=1, le=1024)] = 4,
) -> "ViT":
    if shape[1] % patch:
        raise Infeasible(f"an image of side {shape[1]} does not divide into patches of {patch}")
    return ViT(shape, classes, prior, stem or catalog.entry("prior", STEM)(), depth, width, heads, patch)


class ViT(nn.Module):
    """Images (B, C, H, W) in [0, 1] -> class scores (B, classes)."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        prior: TokenPrior,
        stem: MapPrior,
        depth: int,
        width: int,
        heads: int,
        patch: int,
    ) -> None:
        super().__init__()
        grid = shape[1] // patch
        tokens = Tokens(patch, grid, grid)
        self.layers: dict[str, Layout] = {"embedded": tokens}
        self.normalise = Normalise(shape[0], is_shared=stem.axis == "hue")
        lifting = stem.lift(shape[0], width, patch, side=shape[1], stride=patch, bias=True)
        self.patches = getattr(lifting, "layer", lifting)  # a layer of images stands for itself
        self.pool, features = stem.head(width)
        self.project = nn.Linear(features, width) if features != width else nn.Identity()
        self.embedded = prior.position(width, grid)
        self.blocks = nn.Sequential(*(Block(prior, width, heads, grid, index) for index in range(depth)))
        self.layers |= {f"blocks.{index}": tokens for index in range(depth)}
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, classes)
        self.layers["output"] = Vector()

    def forward(self, images: Tensor) -> Tensor:
        tokens_BTD = self.tokens(self.patches(self.normalise(images)))
        tokens_BTD = self.norm(self.blocks(self.embedded(tokens_BTD)))
        return self.output(tokens_BTD.mean(1))

    def tokens(self, maps: Tensor) -> Tensor:
        """Return maps (B, D, H, W), or (B, D, G, H, W) of a group, -> (B, H * W, D)."""
        if maps.ndim == 4:
            return maps.flatten(2).transpose(1, 2)
        entries_BTDG = maps.flatten(3).permute(0, 3, 1, 2)
        return self.project(self.pool(entries_BTDG.flatten(0, 1))).unflatten(0, entries_BTDG.shape[:2])


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

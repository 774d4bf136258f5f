"""Cohen and Welling's Z2CNN in the padded form of 2308.11316: six 3 x 3 layers, one pooling, a 4 x 4 top layer.

Each layer is followed by normalisation and ReLU; a downsampler follows the second, a 2 x 2 max-pooling where none is
named. 25,570 parameters at width 20 on three channels. With `width_rule: equal_parameters` the width is the one that
comes nearest to the parameters of plain convolutions at `width`.
"""

from functools import partial
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from equitune import catalog
from equitune.groups.grid import out_side
from equitune.groups.layout import Grid, Layout, Vector
from equitune.layers.downsampler import Downsampler, Halving
from equitune.layers.normalise import Normalise
from equitune.layers.prior import MapPrior
from equitune.layers.width import equal_width, num_parameters

PRIOR = "conv"
DOWNSAMPLER = "pool2"


def build(
    shape: tuple[int, int, int],
    classes: int,
    prior: MapPrior,
    downsampler: Downsampler | None = None,
    *,
    width: Annotated[int, Field(ge=1, le=4096)] = 20,
    width_rule: Literal["as_given", "equal_parameters"] = "as_given",
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
) -> "CNN":
    down = downsampler or catalog.entry("downsampler", DOWNSAMPLER)()

    def network(prior: MapPrior, width: int) -> CNN:
        return CNN(shape, classes, prior, down, width, dropout)

    def count(prior: MapPrior, width: int) -> int:
        return num_parameters(partial(network, prior, width))

    return network(prior, equal_width(count, prior, width) if width_rule == "equal_parameters" else width)


class CNN(nn.Module):
    """Images (B, C, H, W) in [0, 1] -> class scores (B, classes)."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        prior: MapPrior,
        down: Downsampler,
        width: int,
        dropout: float,
    ) -> None:
        super().__init__()
        channels, side, _ = shape
        self.width = width
        self.layers: dict[str, Layout] = {}
        self.normalise = Normalise(channels, is_shared=prior.axis == "hue")
        self.convs = nn.ModuleList()
        total_stride = 1
        for index in range(6):
            layer = prior.lift if index == 0 else prior.conv
            stride = down.conv_stride if index == 1 else 1
            conv = layer(channels if index == 0 else width, width, 3, side=side, stride=stride, padding=1, bias=True)
            self.convs.append(nn.Sequential(conv, prior.norm(width), nn.ReLU()))
            side, total_stride = out_side(side, 3, stride=stride, padding=1), total_stride * stride
            self.layers[f"convs.{index}"] = Grid(total_stride, axis=prior.axis)
            if index == 1:
                self.halving: Halving | None = down.halving(width, side)
                side, total_stride = self.halving.side if self.halving else side, 2
        out_side(side, 4)  # refuses what the top layer cannot cover
        # The top layer is unpadded: its map is no multiple of the image's grid, so it is not measured.
        self.top = nn.Sequential(prior.conv(width, width, 4, side=side, bias=True), prior.norm(width), nn.ReLU())
        self.dropout = nn.Dropout(dropout)
        self.head, features = prior.head(width)
        self.output = nn.Linear(features, classes)
        self.layers["output"] = Vector()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.normalise(images)
        for index, conv in enumerate(self.convs):
            maps = conv(maps)
            if index == 1 and self.halving is not None:
                (maps,) = self.halving(maps)
            if index in (0, 2, 3, 4):  # where Cohen and Welling's network has its dropout
                maps = self.dropout(maps)
        return self.output(self.head(self.top(maps).mean((3, 4))))

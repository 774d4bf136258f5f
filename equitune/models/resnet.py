"""CIFAR ResNet with pre-activation blocks: depth 6n + 2 in three stages of width w, 2w and 4w, or as many as asked for.

A 3 x 3 stem; all stages but the first begin with a downsampler, a convolution in strides of two where none is named;
1 x 1 shortcuts with normalisation where the shape changes (He et al., 1512.03385 and 1603.05027). In four stages, depth
18 and width 64 are ResNet-18. With `width_rule: equal_parameters` the width is the one that comes nearest to the
parameters of plain convolutions at `width`.
"""

from functools import partial
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from equitune import catalog
from equitune.errors import Infeasible
from equitune.groups.grid import out_side
from equitune.groups.layout import Grid, Layout, Vector
from equitune.layers.downsampler import Downsampler, Halving
from equitune.layers.normalise import Normalise
from equitune.layers.prior import MapPrior
from equitune.layers.width import equal_width, num_parameters

PRIOR = "conv"
DOWNSAMPLER = "stride"
ALIKE = 2  # blocks of a stage: those beyond the first have equally many parameters, so that depth need not be built


def build(
    shape: tuple[int, int, int],
    classes: int,
    prior: MapPrior,
    downsampler: Downsampler | None = None,
    *,
    depth: Annotated[int, Field(ge=4, le=1202)] = 20,
    width: Annotated[int, Field(ge=1, le=4096)] = 16,
    width_rule: Literal["as_given", "equal_parameters"] = "as_given",
    stages: Annotated[int, Field(ge=1, le=4)] = 3,
) -> "ResNet":
    blocks, rest = divmod(depth - 2, 2 * stages)  # of two layers each, in a stage
    if rest or not blocks:
        step = 2 * stages
        known = f"{step + 2}, {2 * step + 2}, {3 * step + 2}, ..."
        many = "stages" if stages > 1 else "stage"
        raise Infeasible(f"the depth of a resnet in {stages} {many} is {step}n + 2 ({known}), but got {depth}")
    down = downsampler or catalog.entry("downsampler", DOWNSAMPLER)()

    def network(prior: MapPrior, width: int, blocks: int = blocks) -> ResNet:
        return ResNet(shape, classes, prior, down, blocks, stages, width)

    def count(prior: MapPrior, width: int) -> int:
        if blocks <= ALIKE:
            return num_parameters(partial(network, prior, width))
        few, more = (num_parameters(partial(network, prior, width, ALIKE + extra)) for extra in (0, 1))
        return few + (blocks - ALIKE) * (more - few)

    return network(prior, equal_width(count, prior, width) if width_rule == "equal_parameters" else width)


class ResNet(nn.Module):
    """Images (B, C, H, W) in [0, 1] -> class scores (B, classes)."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        prior: MapPrior,
        down: Downsampler,
        blocks: int,
        num_stages: int,
        width: int,
    ) -> None:
        super().__init__()
        channels, side, _ = shape
        self.width = width
        self.layers: dict[str, Layout] = {"stem": Grid(1, axis=prior.axis)}
        self.normalise = Normalise(channels, is_shared=prior.axis == "hue")
        self.stem = prior.lift(channels, width, 3, side=side, padding=1)
        stages: list[nn.Sequential] = []
        inputs, total_stride = width, 1
        for stage in range(num_stages):
            outputs = width * 2**stage
            stages.append(nn.Sequential())
            for index in range(blocks):
                halves = stage > 0 and index == 0
                block = Block(prior, inputs, outputs, side, down if halves else None)
                stages[stage].append(block)
                inputs, side, total_stride = outputs, block.side, total_stride * (2 if halves else 1)
                self.layers[f"stages.{stage}.{index}"] = Grid(total_stride, axis=prior.axis)
        self.stages = nn.Sequential(*stages)
        self.last = nn.Sequential(prior.norm(inputs), nn.ReLU())
        self.layers["last"] = Grid(total_stride, axis=prior.axis)
        self.head, features = prior.head(inputs)
        self.output = nn.Linear(features, classes)
        self.layers["output"] = Vector()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.last(self.stages(self.stem(self.normalise(images))))
        return self.output(self.head(maps.mean((3, 4))))


class Block(nn.Module):
    """Two 3 x 3 layers, each after normalisation and ReLU, beside a shortcut: (B, C, G, H, W) -> the same kind.

    Attributes:
        side: of the maps that it gives: half of what it takes, where it has a downsampler.
    """

    def __init__(self, prior: MapPrior, inputs: int, outputs: int, side: int, down: Downsampler | None) -> None:
        super().__init__()
        stride = down.conv_stride if down else 1
        self.side = out_side(side, 3, stride=stride, padding=1)
        self.norm1 = prior.norm(inputs)
        self.conv1 = prior.conv(inputs, outputs, 3, side=side, stride=stride, padding=1)
        self.norm2 = prior.norm(outputs)
        self.halving: Halving | None = down.halving(outputs, self.side) if down else None
        if self.halving is not None:
            side = self.side = self.halving.side
        self.conv2 = prior.conv(outputs, outputs, 3, side=self.side, padding=1)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module | None = None
        if down or inputs != outputs:
            self.shortcut = nn.Sequential(prior.conv(inputs, outputs, 1, side=side, stride=stride), prior.norm(outputs))

    def forward(self, maps: Tensor) -> Tensor:
        active = self.relu(self.norm1(maps))
        inner = self.relu(self.norm2(self.conv1(active)))
        if self.halving is not None:
            inner, active = self.halving(inner, active)
        beside = maps if self.shortcut is None else self.shortcut(active)
        return beside + self.conv2(inner)

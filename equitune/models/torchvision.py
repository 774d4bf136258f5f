"""Any torchvision classifier by its name, randomly initialised, adapted to the data's channels, classes and size.

Measured are its blocks, the layout of whose output follows from their type; their strides are those that it applies.
"""

import difflib
import re
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from equitune.errors import Infeasible
from equitune.groups.layout import Grid, Layout, Tokens, Vector
from equitune.importing.probe import held, outputs, strides
from equitune.layers.normalise import Normalise

# What the blocks of torchvision's networks give, by the name of their class.
MAPS = re.compile(
    "BasicBlock|BasicConv2d|Bottleneck|CNBlock|Conv2dNormActivation|Fire|(Fused)?MBConv|Inception[A-E]?|MaxPool2d"
    "|_?InvertedResidual|MaxVitLayer|ReLU|ResBottleneckBlock|SimpleStemIN|_DenseLayer|_Transition"
)
CHANNELS_LAST = re.compile("(PatchMerging|SwinTransformerBlock)(V2)?")
TOKENS = re.compile("EncoderBlock")
HEAD = re.compile("classifier|fc|heads?")  # the name of what stands behind the last map


def build(shape: tuple[int, int, int], classes: int, prior: None, *, architecture: str) -> "TorchvisionModel":
    from torchvision import models  # a second to import

    if not knows(architecture):
        near = difflib.get_close_matches(architecture, models.list_models(module=models), n=3, cutoff=0.5)
        guess = f"nearest: {', '.join(near)}" if near else "torchvision.models.list_models() lists them all"
        raise Infeasible(f"torchvision has no classifier '{architecture}': {guess}")
    options: dict[str, Any] = {"weights": None, "num_classes": classes}
    if architecture.startswith("vit_"):
        options["image_size"] = shape[1]
    elif architecture.startswith("maxvit_"):
        options["input_size"] = shape[1:]
    elif architecture in ("googlenet", "inception_v3"):
        options["init_weights"] = True
    try:
        network = models.get_model(architecture, **options)
        _take_channels(network, shape[0])
        return TorchvisionModel(network, shape, _statistics(architecture))
    except NotImplementedError:
        raise  # torch's meta device, not the network
    except (AssertionError, ValueError, RuntimeError) as error:
        size = f"{shape[1]} x {shape[2]}"
        raise Infeasible(f"torchvision's {architecture} cannot take images of {size}: {error}") from error


def knows(architecture: str) -> bool:
    """Whether torchvision has a classifier of this name."""
    from torchvision import models

    return architecture in models.list_models(module=models)


class TorchvisionModel(nn.Module):
    """Images (B, C, H, W) in [0, 1] -> class scores (B, classes)."""

    def __init__(self, network: Any, shape: tuple[int, int, int], statistics: tuple[list[float], list[float]]) -> None:
        super().__init__()
        self.normalise = Normalise(shape[0])
        self.statistics = statistics  # mean and standard deviation of the images of torchvision's own weights
        self.network = network
        self.layers: dict[str, Layout] = {f"network.{path}": each for path, each in _layers(network, shape).items()}
        self.layers["network"] = Vector()

    def forward(self, images: Tensor) -> Tensor:
        scores = self.network(self.normalise(images))
        return scores if isinstance(scores, Tensor) else scores.logits  # while it trains, some have scores beside them


def _layers(network: Any, shape: tuple[int, int, int]) -> dict[str, Layout]:
    """Return the blocks, in the order of depth, each with its layout."""
    declared = dict(_blocks(network, shape))
    steps = strides(network, {path: each for path, each in declared.items() if isinstance(each, Grid)}, shape)
    seen = outputs(network, declared, shape)
    return {path: held(declared[path], steps.get(path), output, shape) for path, output in seen.items()}


def _blocks(network: Any, shape: tuple[int, int, int]) -> Iterator[tuple[str, Grid | Tokens]]:
    """Yield the outermost modules of a known type, with what they give; the stride of a grid is found later."""
    pending = list(network.named_children())
    for path, module in pending:
        kind = type(module).__name__
        if MAPS.fullmatch(kind):
            yield path, Grid(1)
        elif CHANNELS_LAST.fullmatch(kind):
            yield path, Grid(1, channels_last=True)
        elif TOKENS.fullmatch(kind):
            patch = network.patch_size
            yield path, Tokens(patch, shape[1] // patch, shape[2] // patch, special=1)
        elif not HEAD.fullmatch(path):
            pending += [(f"{path}.{name}", child) for name, child in module.named_children()]


def _take_channels(network: nn.Module, channels: int) -> None:
    """Give the first convolution as many inputs as the images have channels."""
    path, first = next((path, module) for path, module in network.named_modules() if isinstance(module, nn.Conv2d))
    if first.in_channels == channels:
        return
    parent, _, name = path.rpartition(".")
    adapted = nn.Conv2d(
        channels,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]
        first.stride,  # type: ignore[arg-type]
        first.padding,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    setattr(network.get_submodule(parent), name, adapted)


def _statistics(architecture: str) -> tuple[list[float], list[float]]:
    from torchvision import models

    if architecture in ("googlenet", "inception_v3"):  # their weights were trained on images in [-1, 1]
        return [0.5] * 3, [0.5] * 3
    preset = models.get_model_weights(architecture).DEFAULT.transforms()
    return list(preset.mean), list(preset.std)

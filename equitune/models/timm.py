"""Any timm model by its name, randomly initialised, adapted to the data's channels, classes and size.

Measured are the blocks of the stages that timm itself names in the model's `feature_info`, or the stages where their
blocks are not read as they are, with the layout and the stride that timm declares.
"""

import difflib
import math
import re
from typing import Any

from torch import Tensor, nn

from equitune.errors import Infeasible
from equitune.groups.layout import Grid, Layout, Tokens, Vector
from equitune.importing.probe import held, outputs, strides
from equitune.layers.normalise import Normalise


def build(shape: tuple[int, int, int], classes: int, prior: None, *, architecture: str) -> "TimmModel":
    import timm  # a second to import

    if not knows(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.5)
        guess = f"nearest: {', '.join(near)}" if near else "timm.list_models() lists them all"
        raise Infeasible(f"timm has no architecture '{architecture}': {guess}")
    options: dict[str, Any] = {"pretrained": False, "in_chans": shape[0], "num_classes": classes}
    try:
        try:
            network = timm.create_model(architecture, img_size=shape[1:], **options)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            network = timm.create_model(architecture, **options)  # takes any size
        return TimmModel(network, shape)
    except NotImplementedError:
        raise  # torch's meta device, not the network
    except (AssertionError, TypeError, ValueError, RuntimeError) as error:
        raise Infeasible(f"timm cannot build {architecture} for images of {shape[1]} x {shape[2]}: {error}") from error


def knows(architecture: str) -> bool:
    """Whether timm has a model of this name."""
    import timm

    return bool(timm.is_model(architecture))


class TimmModel(nn.Module):
    """Images (B, C, H, W) in [0, 1] -> class scores (B, classes)."""

    def __init__(self, network: Any, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.normalise = Normalise(shape[0])
        trained_on = getattr(network, "pretrained_cfg", {})
        # Mean and standard deviation of the images of timm's own weights.
        self.statistics = (list(trained_on.get("mean", [0.0])), list(trained_on.get("std", [1.0])))
        self.network = network
        self.layers: dict[str, Layout] = {f"network.{path}": each for path, each in _layers(network, shape).items()}
        self.layers["network"] = Vector()

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.normalise(images))


def _layers(network: Any, shape: tuple[int, int, int]) -> dict[str, Layout]:
    """Return the blocks or stages, in the order of depth, each with its layout."""
    stages = _stages(network)
    blocks = {stage: _blocks(network, stage) for stage in stages}
    seen = outputs(network, {*stages, *(path for paths in blocks.values() for path in paths)}, shape)
    stage_of: dict[str, str] = {}
    for stage, paths in blocks.items():
        # A block is read as its stage is where the last one's output is the stage's own.
        is_same = bool(paths) and paths[-1] in seen and seen[paths[-1]] is seen.get(stage)
        stage_of |= dict.fromkeys(paths if is_same else [stage], stage)
    is_sequence = _gives_tokens(network, stages)
    declared = {path: _layout(network, stages[stage], is_sequence, shape) for path, stage in stage_of.items()}
    unknown = {p: each for p, each in declared.items() if isinstance(each, Grid) and stages[stage_of[p]] is None}
    steps = strides(network, unknown, shape) if unknown else {}
    return {
        path: held(declared[path], stages[stage_of[path]] or steps.get(path), output, shape)
        for path, output in seen.items()
        if path in declared
    }


def _stages(network: Any) -> dict[str, int | None]:
    """Return the modules of `feature_info` with their strides, and the others of their kind beside them without."""
    info = getattr(network, "feature_info", [])
    modules = dict(network.named_modules())
    listed = {entry["module"]: entry["reduction"] for entry in getattr(info, "info", info)}
    listed = {path: stride for path, stride in listed.items() if path in modules}
    beside: dict[str, int | None] = {}
    for parent in {path.rpartition(".")[0] for path in listed if "." in path}:
        kinds = {type(modules[path]) for path in listed if path.rpartition(".")[0] == parent}
        if isinstance(modules[parent], nn.Sequential | nn.ModuleList):
            beside |= {
                f"{parent}.{name}": None for name, child in modules[parent].named_children() if type(child) in kinds
            }
    return beside | listed


def _blocks(network: nn.Module, stage: str) -> list[str]:
    """Return the modules of a stage that are of the same type as its last, if there are several."""
    module, path = network.get_submodule(stage), stage
    if isinstance(getattr(module, "blocks", None), nn.Sequential | nn.ModuleList):
        module, path = module.blocks, f"{stage}.blocks"  # type: ignore[assignment]
    children = list(module.named_children())
    alike = [f"{path}.{name}" for name, child in children if type(child) is type(children[-1][1])]
    return alike if len(alike) > 1 else []


def _layout(network: Any, stride: int | None, is_sequence: bool, shape: tuple[int, int, int]) -> Grid | Tokens:
    """Return what timm declares of the output of a stage; stride 1 stands for one that is not declared."""
    if stride and is_sequence:
        height, width = (math.ceil(side / stride) for side in shape[1:])
        return Tokens(stride, height, width, getattr(network, "num_prefix_tokens", 0))
    return Grid(stride or 1, channels_last=getattr(network, "output_fmt", "NCHW") == "NHWC")


def _gives_tokens(network: Any, stages: dict[str, int | None]) -> bool:
    """Whether the stages give sequences, row by row: isotropic transformers, mixers, LeViT with linear layers."""
    if type(network).__name__ in ("Levit", "LevitDistilled"):
        return not network.use_conv
    embedding = getattr(network, "patch_embed", None) or getattr(network, "stem", None)
    return hasattr(embedding, "grid_size") and all(re.fullmatch(r"blocks\.\d+", path) for path in stages)

"""Any timm model by its name, randomly initialised, adapted to the data's channels, classes and size.

Measured are the modules that timm itself names in the model's `feature_info`, with the layout timm declares.
"""

import difflib
from typing import Any

from torch import Tensor, nn

from equitune.errors import Infeasible
from equitune.groups.layout import Grid, Layout, Tokens, Vector
from equitune.models._normalise import Normalise

PRIORS: list[str] = []


def build(shape: tuple[int, int, int], classes: int, prior: None, *, architecture: str) -> "TimmModel":
    import timm  # a second to import

    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.5)
        guess = f"nearest: {', '.join(near)}" if near else "timm.list_models() lists them all"
        raise Infeasible(f"timm has no architecture '{architecture}': {guess}")
    options: dict[str, Any] = {"pretrained": False, "in_chans": shape[0], "num_classes": classes}
    try:
        network = timm.create_model(architecture, img_size=shape[1:], **options)
    except TypeError as error:
        if "img_size" not in str(error):
            raise Infeasible(f"timm cannot build {architecture}: {error}") from error
        network = timm.create_model(architecture, **options)  # takes any size
    except (AssertionError, ValueError, RuntimeError) as error:
        raise Infeasible(f"timm cannot build {architecture} for images of {shape[1]} x {shape[2]}: {error}") from error
    return TimmModel(network, shape)


class TimmModel(nn.Module):
    """Images (B, C, H, W) in [0, 1] -> class scores (B, classes)."""

    def __init__(self, network: Any, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.normalise = Normalise(shape[0])
        self.network = network
        self.layers: dict[str, Layout] = {f"network.{path}": layout for path, layout in _declared(network)}
        self.layers["network"] = Vector()

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.normalise(images))


def _declared(network: Any) -> list[tuple[str, Layout]]:
    """The layers that timm names, in the order of depth, each with its layout."""
    info = getattr(network, "feature_info", [])
    embedding = getattr(network, "patch_embed", None) or getattr(network, "stem", None)
    grid = getattr(embedding, "grid_size", None)
    channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
    modules = dict(network.named_modules())
    found: dict[str, Layout] = {}
    for entry in getattr(info, "info", info):
        if entry["module"] in modules:
            if grid and not channels_last:
                special = getattr(network, "num_prefix_tokens", 0)
                found[entry["module"]] = Tokens(entry["reduction"], grid[0], grid[1], special)
            else:
                found[entry["module"]] = Grid(entry["reduction"], channels_last=channels_last)
    return list(found.items())

"""torchvision and timm, importable even where torchvision's compiled operators cannot load.

A CUDA wheel of torchvision beside a CPU torch (or the other way round) cannot load its compiled operators; its import
then fails while describing two of them. Declaring those two mends the import: datasets, transforms and models work,
while `torchvision.ops.nms` and the image decoders of `torchvision.io` stay unavailable. Import this module before
torchvision or timm, in every process; where the operators load it changes nothing.
"""

import importlib
import sys
import types

import torch

_MISSING = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_declared: list[torch.library.Library] = []  # the declarations live as long as their library object


def torchvision() -> types.ModuleType:
    """The torchvision module, mended where it has to be."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # what the failed import left behind
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for schema in _MISSING.values():
        library.define(schema)  # type: ignore[no-untyped-call]
    _declared.append(library)
    return importlib.import_module("torchvision")


def timm() -> types.ModuleType:
    """The timm module."""
    torchvision()
    return importlib.import_module("timm")

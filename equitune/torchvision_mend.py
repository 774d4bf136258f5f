"""torchvision, and timm with it, imports where its compiled operators cannot load.

A CUDA wheel of torchvision beside a CPU torch (or the other way round) cannot load its compiled operators; its import
then fails while describing two of them. Declaring those two lets it go on: data sets, transforms and models work,
while `torchvision.ops.nms` and the decoders of `torchvision.io` stay unavailable. Once equitune is imported, in any
process, `import torchvision` is tried as it is and mended only where that fails; nothing is imported before its use.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

MISSING = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
declared: list[Any] = []  # the declarations live as long as their library object


class Finder(importlib.abc.MetaPathFinder):
    """Finds torchvision where Python would, and hands it to the mending loader."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "torchvision":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = Loader(spec.loader)
        return spec


class Loader(importlib.abc.Loader):
    """Runs a module's own loader; declares the missing operators and runs it again where it fails for want of them."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        created: ModuleType | None = self._real.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        try:
            self._real.exec_module(module)
        except RuntimeError as error:
            if "operator torchvision::" not in str(error):
                raise
            for name in [name for name in sys.modules if name.startswith("torchvision.")]:
                del sys.modules[name]  # what the failed import left behind
            declare_missing()
            self._real.exec_module(module)


def declare_missing() -> None:
    """Tells torch that the operators exist, without saying how to compute them."""
    import torch

    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for schema in MISSING:
        library.define(schema)  # type: ignore[no-untyped-call]
    declared.append(library)


def install() -> None:
    """Make every later `import torchvision` of this process a mended one."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())

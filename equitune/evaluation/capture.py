"""One forward pass, all layers: the declared layers' outputs, read as features (B, C, G, H, W) as they appear."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from equitune.errors import Unmeasurable
from equitune.groups.layout import Layout

OnFeatures = Callable[[str, Tensor], None]
OnUnreadable = Callable[[str, Unmeasurable], None]


@contextmanager
def capturing(
    model: nn.Module,
    layers: Mapping[str, Layout],
    on_features: OnFeatures,
    on_unreadable: OnUnreadable | None = None,
    clone: Collection[str] = (),
) -> Iterator[None]:
    """While open, each forward pass calls `on_features(layer, features)` for every declared layer in turn.

    An output that is not what its layout declares goes to `on_unreadable`; without it, Unmeasurable is raised. Features
    may be kept beyond the call of a layer whose output nothing writes over, and of those in `clone`.
    """

    def hook(name: str, output: Any) -> None:
        try:
            features = layers[name].read(output)
        except Unmeasurable as error:
            if on_unreadable is None:
                raise
            on_unreadable(name, error)
        else:
            on_features(name, features.clone() if name in clone else features)

    with _hooked(model, layers, hook):
        yield


def modified_in_place(model: nn.Module, layers: Collection[str], images: Tensor) -> set[str]:
    """Return the layers whose output a later module of the same forward pass writes over, such as an in-place ReLU."""
    seen: list[tuple[str, Tensor, int]] = []

    def note(name: str, output: Any) -> None:
        if isinstance(output, Tensor):
            seen.append((name, output, output._version))

    model.eval()
    with torch.no_grad(), _hooked(model, layers, note):  # tensors of inference mode count no versions
        model(images)
    return {name for name, output, version in seen if output._version != version}


@contextmanager
def _hooked(model: nn.Module, names: Collection[str], hook: Callable[[str, Any], None]) -> Iterator[None]:
    """While open, each forward pass calls `hook(name, output)` for each of these submodules."""
    handles = [
        model.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: hook(name, output))
        for name in names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

"""Which layers a network's strides leave commuting with quarter turns and flips: found on one forward pass."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from equitune.errors import Infeasible
from equitune.groups.grid import grid_exact


def uneven_windows(model: nn.Module, layers: Collection[str], image: Tensor) -> dict[str, str | None]:
    """For each layer the first module up to it whose windows lie unevenly on its map, which breaks these symmetries.

    Only modules that say their kernel_size, stride and padding are seen; a layer without such a module before it is
    left out: of it nothing is known.

    Args:
        model: runs once.
        layers: paths of submodules.
        image: (1, C, H, W).
    """
    first: str | None = None
    found: dict[str, str | None] = {}
    seen = 0

    def check(name: str, module: nn.Module, given: Any) -> None:
        nonlocal first, seen
        if isinstance(given, Tensor) and given.ndim >= 4:
            seen += 1
            if first is None and not _is_even(module, given.shape[-2:]):
                first = name

    def note(name: str) -> None:
        if seen:
            found[name] = first

    handles = [
        module.register_forward_hook(lambda module, args, _, name=name: check(name, module, args[0] if args else None))
        for name, module in model.named_modules()
        if hasattr(module, "kernel_size") and hasattr(module, "stride")
    ]
    handles += [model.get_submodule(name).register_forward_hook(lambda *_, name=name: note(name)) for name in layers]
    try:
        with torch.inference_mode():
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _is_even(module: Any, sides: torch.Size) -> bool:
    kernel, stride = _pair(module.kernel_size), _pair(module.stride)
    padding, dilation = _pair(getattr(module, "padding", 0)), _pair(getattr(module, "dilation", 1))
    try:
        return all(
            isinstance(pad, str) or grid_exact(side, wide * (size - 1) + 1, stride=step, padding=pad)
            for side, size, step, pad, wide in zip(sides, kernel, stride, padding, dilation, strict=True)
        )
    except Infeasible:
        return False


def _pair(value: Any) -> tuple[Any, Any]:
    """Return a setting for rows and columns; `same` padding (a word) comes with stride 1 alone."""
    return (value, value) if isinstance(value, int | str) else (value[0], value[1])

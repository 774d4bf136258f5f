"""Layers of networks that others wrote: met by running one image, and held to what was declared of them."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from equitune.errors import Unmeasurable
from equitune.groups.layout import Grid, Layout, Opaque

PROBE_SIDE_PX = 256  # a multiple of every usual stride


def outputs(network: nn.Module, paths: Collection[str], shape: Sequence[int], on_meta: bool = False) -> dict[str, Any]:
    """Return what submodules give for one black image (C, H, W), in the order of depth; a list, of one that is called
    often.

    Args:
        network: runs in eval mode, and is left as it was.
        paths: of the submodules; those that are not called are left out.
        shape: (C, H, W).
        on_meta: shapes alone, without computing.
    """
    seen: dict[str, Any] = {}

    def note(path: str, output: Any) -> None:
        seen[path] = [seen[path], output] if path in seen else output

    handles = [
        network.get_submodule(path).register_forward_hook(lambda _, __, output, path=path: note(path, output))
        for path in paths
    ]
    was_training = network.training
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    device = "meta" if on_meta else next(iter(state.values())).device
    network.eval()
    try:
        with torch.no_grad():
            moved = {name: tensor.to(device) for name, tensor in state.items()}
            torch.func.functional_call(network, moved, (torch.zeros(1, *shape, device=device),))
    finally:
        network.train(was_training)
        for handle in handles:
            handle.remove()
    return seen


def strides(network: nn.Module, layouts: Mapping[str, Grid], shape: Sequence[int]) -> dict[str, int]:
    """Return the strides that a network applies, of those layers where they are whole: an image's side over its map's.

    Args:
        network: tried on a large image, or, where it takes one size only, on images of that.
        layouts: the layers, with how to read them.
        shape: of the images, (C, H, W).
    """
    for sides in ((PROBE_SIDE_PX, PROBE_SIDE_PX), tuple(shape[1:])):
        try:
            seen = outputs(network, layouts, (shape[0], *sides), on_meta=True)
        except (RuntimeError, ValueError, AssertionError, IndexError):
            continue
        found = {path: _ratio(layouts[path], output, sides) for path, output in seen.items()}
        return {path: stride for path, stride in found.items() if stride}
    return {}


def _ratio(layout: Grid, output: Any, sides: Sequence[int]) -> int | None:
    try:
        height, width = layout.read(output).shape[-2:]
    except Unmeasurable:
        return None
    is_whole = sides[0] % height == 0 and sides[1] % width == 0 and sides[0] // height == sides[1] // width
    return sides[0] // height if is_whole else None


def held(layout: Layout, stride: int | None, output: Any, shape: Sequence[int]) -> Layout:
    """Return the layout with its stride, where the output is so: one position every `stride` pixels; else why it is not
    read.

    Args:
        layout: what is declared; a grid's own stride is not looked at.
        stride: in pixels; None: it is not known.
        output: of one image.
        shape: of that image, (C, H, W).
    """
    if isinstance(output, list):
        return Opaque("it is called more than once for an image")
    if not isinstance(layout, Grid):
        return layout
    try:
        height, width = layout.read(output).shape[-2:]
    except Unmeasurable as error:
        return Opaque(str(error))
    if stride is None:
        return Opaque("no stride is declared, and its map's side is no whole fraction of the image's")
    if (height, width) != tuple(math.ceil(side / stride) for side in shape[1:]):
        of = " x ".join(str(side) for side in shape[1:])
        return Opaque(f"its map of {height} x {width} has not one position every {stride} px of {of}")
    return replace(layout, stride=stride)

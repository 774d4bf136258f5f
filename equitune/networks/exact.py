"""Whether a network will commute with a symmetry whatever its weights: told from its layers, before it trains.

One rule a layer. A module of this program says itself what breaks it, `breaks(symmetry, side)`, and what training may
break in it later, `loosens(symmetry)`; the rules of torch's modules stand here. Whatever is not known counts as broken,
never as exact.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from equitune import catalog
from equitune.config.trial import TrialConfig
from equitune.groups.grid import PERMUTED_BY, Symmetry, of_free_kernels
from equitune.groups.layout import Layout, Tokens
from equitune.layers.downsampler import Halving
from equitune.layers.plain import Lifted, OnMaps
from equitune.results.values import Verdict

# What treats every position, channel and entry of a group axis alike, in evaluation, or gives an axis another name.
POINTWISE = (nn.BatchNorm2d, nn.BatchNorm3d, nn.ReLU, nn.GELU, nn.Dropout, nn.Identity, nn.Unflatten)
HOLDERS = (nn.Sequential, nn.ModuleList, OnMaps, Lifted)  # what only hands on to the modules in it
SYMMETRIES: tuple[Symmetry, ...] = get_args(Symmetry)


@dataclass(frozen=True)
class Exactness:
    """What is known of one network and one symmetry.

    Attributes:
        layers: each measured layer, in the order of depth, with what has broken the symmetry there at random weights,
            if anything has: the first such module and its rule. Of a network that is not known, one entry for all.
        loosened_by: of a network that has the symmetry at random weights, the first module that may lose it in
            training, and how. None: training cannot break it.
    """

    layers: dict[str, str | None]
    loosened_by: str | None = None

    @property
    def broken_by(self) -> str | None:
        """Of the network: the first module that breaks the symmetry, and its rule."""
        return next((rule for rule in self.layers.values() if rule), None)

    @property
    def verdict(self) -> Verdict:
        """Of the network, as it is recorded."""
        return Verdict(broken_by=self.broken_by, loosened_by=self.loosened_by)


def predict_exact(config: TrialConfig, network: nn.Module, image: tuple[int, int, int]) -> dict[str, Exactness]:
    """Each symmetry, and whether the configured network commutes with it at random weights.

    Of `translation_substride`, shifts by any number of pixels, only the class scores are judged. `hue` is left out
    where images have not three channels.

    Args:
        config: names the parts of the network.
        network: on the current default device; it is left in evaluation mode.
        image: the shape (C, H, W) of what it sees.
    """
    symmetries = [symmetry for symmetry in SYMMETRIES if symmetry != "hue" or image[0] == 3]
    if not catalog.parts(config.model.name, "prior"):  # this program's own do nothing else between their modules
        rule = f"network: nothing is known of model {config.model.name}"
        return {symmetry: Exactness({"network": rule}) for symmetry in symmetries}
    if config.averaging:
        rule = f"network: nothing is known of averaging {config.averaging.name}"
        return {symmetry: Exactness({"network": rule}) for symmetry in symmetries}
    layers: dict[str, Layout] = network.layers  # type: ignore[assignment]
    features = next(iter(layers.values()))
    broken: dict[Symmetry, str | None] = dict.fromkeys(symmetries)
    loosened: dict[Symmetry, str | None] = dict.fromkeys(symmetries)
    found: dict[Symmetry, dict[str, str | None]] = {symmetry: {} for symmetry in symmetries}

    def check(name: str, module: nn.Module, given: Tensor) -> None:
        for symmetry in symmetries:
            rule = _rule(module, symmetry, given, features)
            broken[symmetry] = broken[symmetry] or (f"{name}: {rule}" if rule else None)
            later = module.loosens(symmetry) if hasattr(module, "loosens") else None  # type: ignore[operator]
            loosened[symmetry] = loosened[symmetry] or (f"{name}: {later}" if later else None)

    def note(layer: str) -> None:
        for symmetry, rule in broken.items():
            found[symmetry][layer] = rule

    with ExitStack() as hooks, torch.inference_mode():
        for name, module in _parts(network):
            hook = module.register_forward_hook(lambda module, args, _, name=name: check(name, module, args[0]))
            hooks.enter_context(hook)
        for layer in layers:
            hook = network.get_submodule(layer).register_forward_hook(lambda *_, layer=layer: note(layer))
            hooks.enter_context(hook)
        network.eval()(torch.zeros(1, *image))
    output = list(layers)[-1]
    found["translation_substride"] = {output: found["translation_substride"][output]}
    return {
        symmetry: Exactness(rules, None if broken[symmetry] else loosened[symmetry])
        for symmetry, rules in found.items()
    }


def _parts(model: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that have a rule, or of which nothing is known."""
    for name, module in model.named_children():
        own = f"{path}{name}"
        is_holder = isinstance(module, HOLDERS) or type(module).__module__.startswith("equitune.models.")
        if is_holder and not hasattr(module, "breaks"):
            yield from _parts(module, f"{own}.")
        else:
            yield own, module


def _rule(module: Any, symmetry: Symmetry, given: Tensor, features: Layout) -> str | None:
    """Return what breaks a symmetry in a module that is given this; `features` says what those of the network are."""
    side = given.shape[-1]
    if isinstance(module, Halving):
        return _of_halving(module, symmetry, side, features)
    if hasattr(module, "breaks"):
        said: str | None = module.breaks(symmetry, side)
        return said
    if isinstance(module, POINTWISE):
        return None
    if isinstance(module, nn.Conv2d):
        return _of_convolution(module, symmetry, side)
    if isinstance(module, nn.Linear | nn.LayerNorm) and (given.ndim == 2 or isinstance(features, Tokens)):
        return None
    if isinstance(module, nn.Flatten):
        is_flat = given.ndim > 3 or symmetry in PERMUTED_BY[features.axis]
        return "it flattens what the symmetry permutes" if is_flat else None
    return f"nothing is known of {type(module).__name__}"


def _of_halving(module: Halving, symmetry: Symmetry, side: int, features: Layout) -> str | None:
    """Return None: it takes all planes at the same positions, and a quarter turn exchanges the planes of an orbit."""
    if features.axis == "orbit_c4" and symmetry == "c4":
        return None
    if features.axis == "orbit_c4" and symmetry == "translation_substride" and module.is_adaptive:
        return "its one grid cannot follow planes that move in four directions"
    return module.breaks(symmetry, side)


def _of_convolution(module: nn.Conv2d, symmetry: Symmetry, side: int) -> str | None:
    kernel, stride, padding = module.kernel_size[0], module.stride[0], module.padding[0]
    if isinstance(padding, str) or module.dilation != (1, 1) or module.kernel_size != (kernel, kernel):
        return f"nothing is known of {module}"
    wraps = module.padding_mode == "circular"
    return of_free_kernels(symmetry, side, kernel, stride=stride, padding=padding, wraps=wraps)

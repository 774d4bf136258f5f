"""Whether a network will commute with a symmetry whatever its weights are: told from its layers, before it trains.

One rule a layer. A module of this program says itself what breaks it, `breaks(symmetry, side)`; the rules of torch's
modules stand here. Whatever is not known counts as broken, never as exact.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from equitune import catalog
from equitune.groups.downsampler import Halving
from equitune.groups.grid import Symmetry, uneven
from equitune.models._normalise import Normalise
from equitune.priors._plain import Lifted, OnMaps
from equitune.spec.trial import TrialConfig
from equitune.trial.build import initial_model

POINTWISE = (Normalise, nn.BatchNorm2d, nn.BatchNorm3d, nn.ReLU, nn.Dropout, nn.Identity)  # in eval mode
HOLDERS = (nn.Sequential, nn.ModuleList, OnMaps, Lifted)  # what only hands on to the modules in it
SYMMETRIES: tuple[Symmetry, ...] = get_args(Symmetry)
SUBSTRIDE = "translation_substride"


@dataclass(frozen=True)
class Exactness:
    """What is known of one network and one symmetry.

    Attributes:
        layers: each measured layer, in the order of depth, with what has broken the symmetry there, if anything has:
            the first such module and its rule. Of a network that is not known, one entry for all of it.
    """

    layers: dict[str, str | None]

    @property
    def broken_by(self) -> str | None:
        """Of the network: the first module that breaks the symmetry, and its rule."""
        return next((rule for rule in self.layers.values() if rule), None)


def predict_exact(config: TrialConfig, shape: tuple[int, int, int], classes: int) -> dict[str, Exactness]:
    """Each symmetry, and whether the configured network commutes with it at random weights.

    Beside `translation` and `d4` there is `translation_substride`: whether the class scores keep under shifts by any
    number of pixels, which takes halvings that move with the image.

    Raises:
        Infeasible: no such network can exist.
    """
    try:
        with torch.device("meta"):
            return _predicted(config, shape, classes)
    except (NotImplementedError, RuntimeError):
        return _predicted(config, shape, classes)


def _predicted(config: TrialConfig, shape: tuple[int, int, int], classes: int) -> dict[str, Exactness]:
    if not catalog.parts(config.model.name, "downsampler"):  # a network of maps does nothing else between its modules
        rule = f"nothing is known of model {config.model.name}"
        return dict.fromkeys((*SYMMETRIES, SUBSTRIDE), Exactness({"network": rule}))
    model = initial_model(config, shape, classes).eval()
    layers: list[str] = list(model.layers)  # type: ignore[arg-type]
    broken: dict[str, str | None] = dict.fromkeys((*SYMMETRIES, SUBSTRIDE))
    found: dict[str, dict[str, str | None]] = {name: {} for name in broken}

    def check(name: str, module: nn.Module, given: Any) -> None:
        rules: dict[str, str | None] = {symmetry: _rule(module, symmetry, given) for symmetry in SYMMETRIES}
        step = getattr(module, "stride", 1)
        is_adaptive = isinstance(module, Halving) and module.is_adaptive
        moves = None if step in (1, (1, 1)) or is_adaptive else "its strides do not follow a shift by one pixel"
        for symmetry, rule in {**rules, SUBSTRIDE: rules["translation"] or moves}.items():
            if rule and broken[symmetry] is None:
                broken[symmetry] = f"{name}: {rule}"

    def note(layer: str) -> None:
        for symmetry, rule in broken.items():
            found[symmetry][layer] = rule

    for name, module in _parts(model):
        module.register_forward_hook(lambda module, args, _, name=name: check(name, module, args[0]))
    for layer in layers:
        model.get_submodule(layer).register_forward_hook(lambda *_, layer=layer: note(layer))
    with torch.inference_mode():
        model(torch.zeros(1, *config.input.shape_of(shape)))
    found[SUBSTRIDE] = {layers[-1]: found[SUBSTRIDE][layers[-1]]}
    return {symmetry: Exactness(rules) for symmetry, rules in found.items()}


def _parts(model: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules that have a rule, or of which nothing is known."""
    for name, module in model.named_children():
        own = f"{path}{name}"
        is_holder = isinstance(module, HOLDERS) or type(module).__module__.startswith("equitune.models.")
        if is_holder and not isinstance(module, Normalise):
            yield from _parts(module, f"{own}.")
        else:
            yield own, module


def _rule(module: Any, symmetry: Symmetry, given: Tensor) -> str | None:
    if hasattr(module, "breaks"):
        said: str | None = module.breaks(symmetry, given.shape[-1])
        return said
    if isinstance(module, POINTWISE):
        return None
    if isinstance(module, nn.Conv2d):
        return _of_convolution(module, symmetry, given.shape[-1])
    if isinstance(module, nn.Flatten | nn.Linear):
        has_axis = given.ndim == 3 and given.shape[2] > 1
        is_pooled = given.ndim <= 3 and not (has_axis and symmetry == "d4")
        return None if is_pooled else "it flattens what the symmetry permutes"
    return f"nothing is known of {type(module).__name__}"


def _of_convolution(module: nn.Conv2d, symmetry: Symmetry, side: int) -> str | None:
    kernel, stride, padding = module.kernel_size[0], module.stride[0], module.padding[0]
    if isinstance(padding, str) or module.dilation != (1, 1) or module.kernel_size != (kernel, kernel):
        return f"nothing is known of {module}"
    if symmetry == "d4" and kernel > 1:
        return f"its kernels of {kernel} x {kernel} are free to point anywhere"
    wraps = module.padding_mode == "circular"
    return uneven(symmetry, side, kernel, stride=stride, padding=padding, wraps=wraps)

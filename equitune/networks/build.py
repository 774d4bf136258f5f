"""TrialConfig -> data on the device, model with its prior, augmentation."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from equitune import catalog
from equitune.config.data_shape import DataShape
from equitune.config.space import Call
from equitune.config.trial import TrialConfig
from equitune.data.on_device import DeviceData
from equitune.layers.averaging import Averaging

Augment = Callable[[Tensor, torch.Generator], Tensor]


def build_model(config: TrialConfig, data: DeviceData) -> nn.Module:
    """Return the configured model with its initial weights, which depend on the trial's seed alone.

    Raises:
        Infeasible: no such network can exist for these data.
    """
    model = initial_model(config, data.data_shape)
    model.normalise.use(torch.tensor(data.mean), torch.tensor(data.std))  # type: ignore[union-attr,operator]
    return placed(model, config.device)


def placed(model: nn.Module, device: str) -> nn.Module:
    """Return the model on a device, in the memory format that suits it."""
    if device == "cuda":  # on the CPU this format is slower, and torch 2.13 corrupts memory in it
        lay_channels_last(model)
    return model.to(device)


def initial_model(config: TrialConfig, data_shape: DataShape) -> nn.Module:
    """Return the configured model before it has seen data of this shape, on the current default device."""
    torch.manual_seed(config.seed)
    return configured(config, data_shape)


def configured(config: TrialConfig, data_shape: DataShape) -> nn.Module:
    """Return the configured model on the current default device, its weights from the stream of random numbers as it
    is.

    Raises:
        Infeasible: no such network can exist for these data.
    """
    seen = DataShape(config.input.shape_of(data_shape.image), data_shape.classes)
    model = assembled(config.model, parts_of(config), seen)
    if config.averaging is None:
        return model
    averaged: nn.Module = catalog.entry("averaging", config.averaging.name)(model, **config.averaging.args)
    return averaged


def parts_of(config: TrialConfig) -> dict[str, Call]:
    """Return what the configured model is built of, by its part."""
    return {part: call for part in catalog.PARTS if (call := getattr(config, part)) is not None}


def assembled(model: Call, parts: dict[str, Call], data_shape: DataShape) -> nn.Module:
    """Return a model with its parts and random initial weights.

    Args:
        model: a component of the catalogue.
        parts: what it is built of, by its part; where one is left out, the model has its own. A model without a prior
            brings its own layers.
        data_shape: of the images that it sees, and of its scores.

    Raises:
        Infeasible: no such network can exist.
    """
    made = {part: catalog.entry(catalog.PARTS[part], call.name)(**call.args) for part, call in parts.items()}
    prior = made.pop("prior", None)
    built: nn.Module = catalog.entry("model", model.name)(
        data_shape.image, data_shape.classes, prior, **made, **model.args
    )
    return built


def lay_channels_last(model: nn.Module) -> None:
    """Give kernels of convolutions, in place, the memory format that a GPU is fast in.

    Module.to would do so but for weights of five axes, such as those of group convolutions, which it refuses.
    """
    for weight in model.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.to(memory_format=torch.channels_last)


def build_augmentation(config: TrialConfig) -> list[Augment]:
    """Return the augmentations, in the order of the study."""
    return [partial(catalog.entry("augmentation", call.name), **call.args) for call in config.augmentation]


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable weights."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def chosen_width(config: TrialConfig, network: nn.Module) -> int | None:
    """Return the width of a network whose rule has chosen another one than the configuration names."""
    width = _width_of(network)
    return None if width == config.model.args.get("width") else width


def with_width(config: TrialConfig, network: nn.Module) -> TrialConfig:
    """Return the configuration of the same network whose width stands in it, so that no rule looks for it again."""
    if "width_rule" not in config.model.args:
        return config
    args = {name: value for name, value in config.model.args.items() if name != "width_rule"}
    model = config.model.model_copy(update={"args": args | {"width": _width_of(network)}})
    return config.model_copy(update={"model": model})


def _width_of(network: nn.Module) -> int | None:
    width: int | None = getattr(network.model if isinstance(network, Averaging) else network, "width", None)
    return width

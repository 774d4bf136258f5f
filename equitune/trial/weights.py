"""Weights from a file: read without running code, and fitted to a network or refused with what differs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, load_file
from torch import Tensor, nn

from equitune.errors import StoreError, UserError
from equitune.records.place import Place

Build = Callable[[int], nn.Module]  # number of classes -> the network with its initial weights


def read_tensors(path: Place, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors of a .safetensors file, on a device.

    Raises:
        OSError: it cannot be read.
        SafetensorError: it is none.
    """
    if isinstance(path, Path):
        return dict(load_file(path, device=device))
    return {name: tensor.to(device) for name, tensor in load(path.read_bytes()).items()}


def read_weights(path: Place) -> dict[str, Tensor]:
    """Tensors by name, from a .safetensors file or a state dict that torch saved. Runs no code.

    Raises:
        UserError: there is no such file, or it holds anything but tensors.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file: name a file of weights")
    try:
        if path.suffix == ".safetensors":
            found: Any = read_tensors(path)
        else:
            with path.open("rb") as file:
                found = torch.load(file, map_location="cpu", weights_only=True)  # refuses every object but tensors
    except StoreError:
        raise
    except Exception as error:  # whatever a broken file makes the readers raise
        raise UserError(
            f"{path} is not a file of tensors alone, and nothing else is read from it: save the network's state_dict()"
            f" ({first_line(error)})"
        ) from None
    for wrapper in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()) or not found:
        raise UserError(
            f"{path} holds no state dict, which is names with a tensor each: save the network's state_dict()"
        )
    is_wrapped = all(str(name).startswith("module.") for name in found)  # by DataParallel
    return {str(name).removeprefix("module.") if is_wrapped else str(name): value for name, value in found.items()}


def fitted(text: str, build: Build, state: dict[str, Tensor], classes: int) -> tuple[nn.Module, int]:
    """The network with these weights, and its number of classes, which is that of the weights.

    Raises:
        UserError: they are of another architecture; says which differ.
    """
    model = build(classes)
    misfit = _misfit(_holder(model, state), state)
    if misfit:
        others = _classes_of(_holder(model, state), state, classes)
        other = build(others) if others else None
        if other is None or _misfit(_holder(other, state), state):
            raise UserError(f"{text}: these weights are of another network: {misfit}")
        model, classes = other, others or classes
    _holder(model, state).load_state_dict(state, strict=False)  # all but BatchNorm's counts of batches are there
    return model, classes


def _holder(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """The module whose weights these are: the model with its normalisation, or the library's network within."""
    network = getattr(model, "network", None)
    return network if isinstance(network, nn.Module) and "normalise.mean" not in state else model


def _classes_of(network: nn.Module, state: dict[str, Tensor], classes: int) -> int | None:
    """The number of classes that the weights are for, where it is all that differs: the rows of the last layers."""
    rows = set()
    for name, own in network.state_dict().items():
        if name in state and own.shape != state[name].shape:
            if own.shape[:1] != (classes,) or own.shape[1:] != state[name].shape[1:]:
                return None
            rows.add(len(state[name]))
    return rows.pop() if len(rows) == 1 else None


def _misfit(network: nn.Module, state: dict[str, Tensor]) -> str:
    """How weights differ from what a network has; empty where they fit."""
    own = network.state_dict()
    missing, unexpected = (
        [name for name in names if name not in others and not name.endswith("num_batches_tracked")]
        for names, others in ((own, state), (state, own))
    )
    reshaped = [
        f"{name} is {_sides(state[name])} there and {_sides(own[name])} here"
        for name in own
        if name in state and own[name].shape != state[name].shape
    ]
    parts = [
        f"{len(names)} {word} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})"
        for word, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if names
    ]
    return ", ".join(parts)


def _sides(tensor: Tensor) -> str:
    return " x ".join(str(side) for side in tensor.shape) or "one number"


def first_line(error: Exception) -> str:
    """What an error says, in one short line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

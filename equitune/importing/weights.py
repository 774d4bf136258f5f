"""Weights from a file: read without running code, and fitted to a network or refused with what differs."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load, load_file
from torch import Tensor, nn

from equitune.errors import StoreError, UserError
from equitune.importing.archive import open_regular
from equitune.importing.foreign import read_foreign_state
from equitune.records.place import Place

REAL = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
WHOLE = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool}  # BatchNorm's counts, indices

Build = Callable[[int], nn.Module]  # number of classes -> the network with its initial weights


def read_tensors(path: Place, device: str = "cpu") -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file, on a device.

    Raises:
        OSError: it cannot be read.
        SafetensorError: it is none.
    """
    if isinstance(path, Path):
        return dict(load_file(path, device=device))
    return {name: tensor.to(device) for name, tensor in load(path.read_bytes()).items()}


def read_weights(path: Place) -> dict[str, Tensor]:
    """Return tensors by name, from a .safetensors file or a state dict that torch saved. Run no code.

    Raises:
        UserError: there is no such file, or it holds anything but dense tensors of real, finite numbers.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file: name a file of weights")
    if isinstance(path, Path) and path.suffix != ".safetensors":
        return read_foreign_state(path)
    try:
        found = read_tensors(path)
    except StoreError:
        raise
    except Exception as error:  # whatever a broken file makes the reader raise
        raise _no_tensors(path, error) from None
    return checked_state(str(path), found)


def state_of(path: Path) -> dict[str, Tensor]:
    """Return the tensors, each with memory of its own, of a state dict that torch saved.

    A process of its own calls it (`opener.py`): torch trusts what such a file says of its sizes.

    Raises:
        UserError: it is no state dict, or is compressed, or tensors are larger than the file.
    """
    try:
        with open_regular(path) as file:
            is_archive = zipfile.is_zipfile(file)
            found = load_torch(file, str(path) if is_archive else None)
    except Swollen as error:
        raise UserError(f"{path}: {error}") from None
    except MemoryError:
        raise
    except Exception as error:  # whatever a broken file makes torch raise
        raise _no_tensors(path, error) from None
    state = checked_state(str(path), found)
    left = 2 * path.stat().st_size  # a weight may have two names
    for name, tensor in state.items():
        left -= tensor.nbytes
        if left < 0:
            raise UserError(
                f"{path}: its tensors, up to {name}, take more than twice the bytes of the file: save the network's"
                " state_dict(), each tensor once"
            )
    return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}


class Swollen(ValueError):
    """A file would take far more memory than it takes on the disk. Its text is a phrase."""


def load_torch(file: BinaryIO, path: str | None = None) -> Any:
    """Return what torch saved, of tensors and plain values alone, on the CPU. Run no code.

    Args:
        file: holds it.
        path: of the same file, which is then mapped into memory: torch cannot read beyond its end, whatever it says.

    Raises:
        Swollen: its records are compressed. torch.save stores them as they are.
        Exception: whatever torch raises of a broken file.
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
        size = file.seek(0, io.SEEK_END)
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise Swollen("torch.save stores records as they are, but these are compressed: save it with torch.save")
        if sum(record.file_size for record in records) > size:
            raise Swollen("its records hold more bytes than the file: save it with torch.save")
    file.seek(0)
    return torch.load(path or file, map_location="cpu", weights_only=True, mmap=path is not None)


def checked_state(text: str, found: Any) -> dict[str, Tensor]:
    """Return the state dict within what was read.

    Raises:
        UserError: there is none, or a tensor is none that a network has; names it.
    """
    for wrapper in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()) or not found:
        raise UserError(
            f"{text} holds no state dict, which is names with a tensor each: save the network's state_dict()"
        )
    for name, tensor in found.items():
        if fault := _fault(tensor):
            raise UserError(
                f"{text}: a weight is a dense tensor of real, finite numbers, but {name} {fault}:"
                " save the state_dict() of a network as it was trained"
            )
    is_wrapped = all(str(name).startswith("module.") for name in found)  # by DataParallel
    return {str(name).removeprefix("module.") if is_wrapped else str(name): value for name, value in found.items()}


def _fault(tensor: Tensor) -> str:
    """Why no network has such a weight; empty where it may."""
    if tensor.layout != torch.strided or tensor.is_nested:
        return f"is {str(tensor.layout).removeprefix('torch.')}"
    if tensor.device.type != "cpu":
        return f"is on the {tensor.device.type} device, without values"
    if tensor.dtype not in REAL | WHOLE:
        return f"is of {str(tensor.dtype).removeprefix('torch.')}"
    if tensor.nbytes > tensor.untyped_storage().nbytes():
        return f"says it is {_sides(tensor)}, more than is stored of it"
    return "" if tensor.dtype in WHOLE or bool(torch.isfinite(tensor).all()) else "has entries that are not finite"


def _no_tensors(path: Place, error: Exception) -> UserError:
    return UserError(
        f"{path} is not a file of tensors alone, and nothing else is read from it: save the network's state_dict()"
        f" ({first_line(error)})"
    )


def fitted(text: str, build: Build, state: dict[str, Tensor], classes: int) -> tuple[nn.Module, int]:
    """Return the network with these weights, and its number of classes, which is that of the weights.

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
    """Return the module whose weights these are: the model with its normalisation, or the library's network within."""
    network = getattr(model, "network", None)
    return network if isinstance(network, nn.Module) and "normalise.mean" not in state else model


def _classes_of(network: nn.Module, state: dict[str, Tensor], classes: int) -> int | None:
    """Return the number of classes that the weights are for, where it is all that differs: the rows of
    the last layers.
    """
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
    both = [] if reshaped else [name for name in own if name in state and not name.endswith("num_batches_tracked")]
    odd = [f"{name} {how}" for name in both if (how := _odd(own[name], state[name]))]
    found = (missing, "missing"), (unexpected, "unexpected"), (reshaped, "of another shape"), (odd, "of another kind")
    parts = [
        f"{len(names)} {word} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})" for names, word in found if names
    ]
    return ", ".join(parts)


def _odd(own: Tensor, given: Tensor) -> str:
    """How whole numbers differ in kind from those of a network, which are counts, or places in its other weights."""
    if own.is_floating_point() != given.is_floating_point():
        return f"is {given.dtype} there and {own.dtype} here".replace("torch.", "")
    if own.is_floating_point() or own.ndim == 0 or own.numel() == 0:
        return ""
    lowest, highest = own.min(), own.max()
    is_within = bool((given >= lowest).all() and (given <= highest).all())
    return "" if is_within else f"has whole numbers beyond {int(lowest)} to {int(highest)}"


def _sides(tensor: Tensor) -> str:
    return " x ".join(str(side) for side in tensor.shape) or "one number"


def first_line(error: Exception) -> str:
    """Return what an error says, in one short line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

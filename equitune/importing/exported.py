"""A network from an exported program (`torch.export`, `.pt2`), without its source code; inner tensors included.

The program's operators are called one after another. Each tensor to be measured passes through an identity,
`taps.<its name in the graph>`, whose output is captured like that of any submodule. Measured are activations, residual
sums, pooled and concatenated maps and patch embeddings, as far as their layout follows from the graph (`axes.py`).
"""

import os
import resource
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from equitune.errors import UserError
from equitune.groups.layout import Grid, Layout, Vector
from equitune.importing.archive import Node, OnDevice, Program, Ref, read_program, refs
from equitune.importing.axes import layouts
from equitune.importing.operators import names, require_safe
from equitune.layers.normalise import Normalise

ACTIVATIONS = names("celu elu gelu hardswish hardtanh leaky_relu mish prelu relu relu6 selu silu softplus")
POOLS = names("avg_pool2d max_pool2d max_pool2d_with_indices")
NORMS = names(
    "batch_norm group_norm instance_norm layer_norm _native_batch_norm_legit_no_training native_group_norm"
    " native_layer_norm rms_norm"
)
VIEWS = names("flatten permute reshape transpose view")


def load_exported(path: Path, shape: tuple[int, int, int]) -> "Exported":
    """Return the network in a file that `torch.export.save` wrote, for images of a shape (C, H, W). Runs no code of the
    file.

    Raises:
        UserError: it is no such file, not a network from images to one tensor, or it does not take such images.
    """
    program = read_program(path)
    if any(size not in (None, given) for size, given in zip(program.sizes[1:], shape, strict=True)):
        takes, given = (
            " x ".join("any" if size is None else str(size) for size in s) for s in (program.sizes[1:], shape)
        )
        raise UserError(f"{path} takes images of {takes}, but these are {given}: measure it on images of its own shape")
    model = Exported(program, shape[0], str(path)).eval()
    try:
        model.find_layers(shape)
    except UserError:
        raise
    except Exception as error:  # whatever its operators raise
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} cannot run on images of {' x '.join(map(str, shape))}: {reason}") from None
    return model


class Exported(nn.Module):
    """Images (B, C, H, W) in [0, 1] -> what the program gives."""

    def __init__(self, program: Program, channels: int, name: str = "the program") -> None:
        super().__init__()
        self.program = program
        self.name = name  # for messages
        self._fitting: set[tuple[int, torch.dtype]] = set()  # batches that are known to fit into memory
        self.normalise = Normalise(channels).to(program.dtype)  # the identity, unless statistics are set
        self.stored = nn.Module()
        self._places = {name: f"tensor_{index}" for index, name in enumerate(program.tensors)}
        for name, tensor in program.tensors.items():
            if name in program.parameters and tensor.is_floating_point():
                self.stored.register_parameter(self._places[name], nn.Parameter(tensor))
            else:
                self.stored.register_buffer(self._places[name], tensor)
        self._done_with = _done_with(program)
        self.taps = nn.ModuleDict()
        self.output = nn.Identity()
        self.layers: dict[str, Layout] = {"output": Vector()}

    def forward(self, images: Tensor) -> Tensor:
        images = self.normalise(images.to(self.normalise.mean.dtype))
        fewest, most = self.program.batch
        if fewest <= len(images) <= (most or len(images)):
            return self.output(self._run(images, lambda name, value: self._tap(name, value)))
        return self.output(self._run_in_parts(images, fewest, most or len(images)))

    def find_layers(self, shape: tuple[int, int, int]) -> None:
        """Run the program once and insert a tap behind each tensor that is to be measured."""
        fewest, most = self.program.batch
        shapes = {name: tuple(tensor.shape) for name, tensor in self.program.tensors.items()}

        def note(name: str, value: Any) -> Any:
            if isinstance(value, Tensor):
                shapes[name] = tuple(value.shape)
            return value

        versions = [tensor._version for tensor in self.stored.state_dict().values()]
        images = torch.zeros(min(max(fewest, 2), most or 2), *shape, dtype=self.normalise.mean.dtype)
        shapes[self.program.input] = tuple(images.shape)
        with torch.no_grad():
            self._run(images, note)
        if versions != [tensor._version for tensor in self.stored.state_dict().values()]:
            raise ValueError("it changes its own weights or buffers while it runs; export it after model.eval()")
        found = layouts(self.program, shapes)
        for name in _to_measure(self.program, found):
            if name.isidentifier() and not hasattr(self.taps, name):
                self.taps[name] = nn.Identity()
        self.layers = {f"taps.{name}": found[name] for name in self.taps} | {"output": Vector()}

    def _tap(self, name: str, value: Any) -> Any:
        return self.taps[name](value) if name in self.taps else value

    def _run(self, images: Tensor, tap: Callable[[str, Any], Any]) -> Tensor:
        """Call the operators; every value passes through `tap`.

        Raises:
            UserError: the batch does not fit into memory, or an operator refuses its arguments.
        """
        self._require_memory(images)
        return self._call(images, tap, lambda values: None)

    def _call(self, images: Tensor, tap: Callable[[str, Any], Any], after: Callable[[dict[str, Any]], None]) -> Tensor:
        """Call the operators, and `after` each one with the values that are still needed."""
        values: dict[str, Any] = {
            name: getattr(self.stored, place).to(images.device) for name, place in self._places.items()
        }
        values[self.program.input] = images
        for index, node in enumerate(self.program.nodes):
            try:
                positional, named = (_filled(given, values, images) for given in (node.positional, node.named))
                require_safe(node.kind, positional, named)
                result = node.operator(*positional, **named)
            except torch.OutOfMemoryError:  # of a GPU
                raise
            except Exception as error:  # whatever an operator raises of what a stranger gives it
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                size = " x ".join(map(str, images.shape[1:]))
                raise UserError(
                    f"{self.name} cannot run on {len(images)} images of {size}: {node.name}: {reason}"
                ) from None
            for name, value in zip(node.outputs, result if node.is_tuple else (result,), strict=False):
                if name is not None:
                    values[name] = tap(name, value)
            after(values)
            for name in self._done_with[index]:
                del values[name]
        scores: Tensor = values[self.program.output]
        return scores

    def _require_memory(self, images: Tensor) -> None:
        """Refuses a batch whose values would take more memory than there is, before it takes any.

        Sizes may grow with the batch as the program likes, so each size of a batch is counted once, on meta.
        """
        batch = len(images), images.dtype
        if images.device.type != "cpu" or batch in self._fitting:  # a GPU says so itself when it is full
            return
        peak, stored = 0, self._places.keys()

        def count(values: dict[str, Any]) -> None:
            nonlocal peak
            live = (value for name, value in values.items() if name not in stored and isinstance(value, Tensor))
            storages = {value.untyped_storage()._cdata: value.untyped_storage().nbytes() for value in live}
            peak = max(peak, sum(storages.values()))

        with torch.no_grad():
            self._call(images.to("meta"), lambda name, value: value, count)
        if peak > (most := memory_bytes()):
            raise UserError(
                f"{self.name}: {len(images)} images take {peak / 2**30:.1f} GiB at once, but there are"
                f" {most / 2**30:.1f} GiB: take smaller batches or images"
            )
        self._fitting.add(batch)

    def _run_in_parts(self, images: Tensor, fewest: int, most: int) -> Tensor:
        """For a program with a fixed or bounded batch: parts, the last one padded, whose results are joined again."""
        observed = [name for name, tap in self.taps.items() if tap._forward_hooks]
        parts: dict[str, list[Tensor]] = defaultdict(list)
        scores = []
        for part in torch.split(images, most):
            size, missing = len(part), max(fewest - len(part), 0)
            whole = torch.cat([part, part[-1:].expand(missing, *part.shape[1:])])

            def keep(name: str, value: Any, size: int = size) -> Any:
                if name in observed:
                    parts[name].append(value[:size].clone())
                return value

            scores.append(self._run(whole, keep)[:size])
        for name in observed:
            self.taps[name](torch.cat(parts.pop(name)))
        return torch.cat(scores)


def memory_bytes() -> int:
    """Return the memory of this machine, or what this process may take of it, where that is less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), resource.getrlimit(resource.RLIMIT_DATA)[0]]
    return min(limit for limit in limits if limit > 0)


def _filled(value: Any, values: dict[str, Any], images: Tensor) -> Any:
    """Arguments with their references looked up."""
    match value:
        case Ref(name):
            return values[name]
        case OnDevice():
            return images.device
        case list() | tuple():
            return [_filled(item, values, images) for item in value]
        case dict():
            return {key: _filled(item, values, images) for key, item in value.items()}
    return value


def _done_with(program: Program) -> list[list[str]]:
    """For each node, the values that nothing reads after it."""
    last: dict[str, int] = {}
    for index, node in enumerate(program.nodes):
        for name in (*(name for name in node.outputs if name), *(ref.name for ref in refs(node))):
            last[name] = index
    done: list[list[str]] = [[] for _ in program.nodes]
    for name, index in last.items():
        if name != program.output:
            done[index].append(name)
    return done


def _to_measure(program: Program, found: dict[str, Layout]) -> list[str]:
    """Return the tensors, among those with a layout, that end a step of the network, in the order of computation."""
    readers: dict[str, set[str]] = defaultdict(set)
    for node in program.nodes:
        for ref in refs(node):
            readers[ref.name].add(node.kind)
    chosen = []
    for node in program.nodes:
        name = node.outputs[0] if node.outputs else None
        if name is not None and name in found and _ends_a_step(node, program, readers[name], found[name]):
            chosen.append(name)
    return chosen


def _ends_a_step(node: Node, program: Program, readers: set[str], layout: Layout) -> bool:
    if node.kind in ACTIVATIONS | POOLS:
        return True
    if node.kind == "add":  # of a residual, not of a weight; where an activation follows, that is measured
        return sum(ref.name not in program.tensors for ref in refs(node)) == 2 and not readers <= ACTIVATIONS
    if node.kind in ("cat", "concat"):  # where maps are normalised at once, as in a densenet, the activation follows
        return isinstance(layout, Grid) and not readers <= NORMS
    if node.kind in ("conv2d", "convolution"):  # a patch embedding
        stride = node.named.get("stride")
        return isinstance(stride, list) and max(stride) > 1 and readers <= VIEWS
    return False

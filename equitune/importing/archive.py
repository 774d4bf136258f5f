"""Reads an exported program (`torch.export`, `.pt2`) as data, and never runs what it says.

torch's own loader unpickles a program's example inputs, constants and some weights, evaluates its symbolic sizes and
guards as Python, names Python functions to call, and turns the names of its nodes into source text. Here a program
is its JSON graph and the bytes of its tensors: every node is one of the aten operators below, called with plain values.
"""

import errno
import json
import math
import os
import re
import stat
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from equitune.errors import UserError
from equitune.importing.operators import operator_of

SCHEMA = 8  # the major version of torch's export schema that is read here

# The enumerations of torch's export schema.
DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
LAYOUTS = {7: torch.strided}

_PLAIN = {"as_int", "as_ints", "as_bool", "as_bools", "as_string", "as_strings"}
_NAMED = {"as_tensor", "as_tensors", "as_optional_tensors", "as_sym_int", "as_sym_ints", "as_sym_bool", "as_sym_float"}


@dataclass(frozen=True)
class Ref:
    """A value of the graph, by its name."""

    name: str


@dataclass(frozen=True)
class OnDevice:
    """The device of the images, whatever device the program was exported on."""


@dataclass(frozen=True)
class Node:
    """One call: `operator(*positional, **named)`, whose arguments may hold references."""

    name: str
    kind: str  # the operator's name without its overload, and without the underscore of its in-place form
    operator: Callable[..., Any]
    positional: tuple[Any, ...]
    named: dict[str, Any]
    outputs: tuple[str | None, ...]  # None: a result that nobody reads
    is_tuple: bool  # the operator gives a tuple of these

    @property
    def is_pointwise(self) -> bool:
        return torch.Tag.pointwise in getattr(self.operator, "tags", ())


def refs(arguments: Any) -> list[Ref]:
    """Return the values of the graph that a node, or some arguments, refer to."""
    if isinstance(arguments, Node):
        arguments = (*arguments.positional, *arguments.named.values())
    if isinstance(arguments, Ref):
        return [arguments]
    return [ref for item in arguments for ref in refs(item)] if isinstance(arguments, list | tuple) else []


@dataclass(frozen=True)
class Program:
    """A network of one input, images (B, C, H, W), and one output."""

    nodes: tuple[Node, ...]  # in the order of computation
    tensors: dict[str, Tensor]  # weights, buffers and constants, by the name that the nodes use
    parameters: frozenset[str]  # those of them that were trained
    input: str
    sizes: tuple[int | None, ...]  # of the input; None where any size will do
    batch: tuple[int, int | None]  # the fewest and the most images that it takes at once; None: any number
    dtype: torch.dtype  # of the images
    output: str


def read_program(path: Path) -> Program:
    """Read a file that `torch.export.save` wrote.

    Raises:
        UserError: it is no such file, holds what only code could read, or is not a network from images to scores.
    """
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            return _Reader(archive).program()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except _Refused as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # whatever a broken file makes the reader raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{path} is not an exported program that torch.export.save wrote ({reason})") from None


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read it, without waiting for whoever writes to a named pipe.

    Raises:
        OSError: there is none, or it is no regular file.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return file


class _Refused(Exception):
    """Why a program is not taken; a sentence."""


class _Reader:
    """The records of one archive."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        on_disk = os.fstat(archive.fp.fileno()).st_size  # type: ignore[union-attr]
        compressed = [name.filename for name in archive.infolist() if name.compress_type != zipfile.ZIP_STORED]
        if compressed:
            raise _Refused(f"{compressed[0]!r} is compressed: torch.export.save stores its records as they are")
        if sum(record.file_size for record in archive.infolist()) > on_disk:  # records that share their bytes
            raise _Refused("its records hold more bytes than the file: torch.export.save stores each as it is")
        self._bytes_left = 2 * on_disk  # for tensors; a weight may have two names
        self._root = archive.namelist()[0].split("/")[0]
        programs = [name for name in archive.namelist() if name.startswith(f"{self._root}/models/")]
        if len(programs) != 1:
            raise _Refused(f"one exported program is read from a file, but this one holds {len(programs)}")
        self._name = Path(programs[0]).stem

    def program(self) -> Program:
        whole = json.loads(self._record(f"models/{self._name}.json"))
        if whole["schema_version"]["major"] != SCHEMA:
            raise _Refused(
                f"its schema is {whole['schema_version']['major']}, {SCHEMA} is read: export it anew with this torch"
            )
        graph, signature = whole["graph_module"]["graph"], whole["graph_module"]["signature"]
        tensors, parameters, images = self._inputs(signature["input_specs"])
        output = _output(signature["output_specs"])
        meta = graph["tensor_values"][images]
        sizes = [size.get("as_int") for size in meta["sizes"]]
        if len(sizes) != 4:
            raise _Refused(f"the input of an image network is (B, C, H, W), but this one has {len(sizes)} dimensions")
        return Program(
            nodes=tuple(_node(node) for node in graph["nodes"]),
            tensors=tensors,
            parameters=parameters,
            input=images,
            sizes=(None, *sizes[1:]),
            batch=_batch(meta["sizes"][0], whole["range_constraints"]),
            dtype=DTYPES[meta["dtype"]],
            output=output,
        )

    def _inputs(self, specs: list[dict[str, Any]]) -> tuple[dict[str, Tensor], frozenset[str], str]:
        """Return the tensors of the program by the name of their node, the parameters among them, and the
        images' name.
        """
        weights = self._tensors("weights")
        constants = self._tensors("constants")
        tensors: dict[str, Tensor] = {}
        parameters, images = set(), []
        for spec in specs:
            ((kind, content),) = spec.items()
            if kind == "parameter":
                tensors[content["arg"]["name"]] = weights[content["parameter_name"]]
                parameters.add(content["arg"]["name"])
            elif kind == "buffer":
                name = content["buffer_name"]
                tensors[content["arg"]["name"]] = weights[name] if name in weights else constants[name]
            elif kind == "tensor_constant":
                tensors[content["arg"]["name"]] = constants[content["tensor_constant_name"]]
            elif kind == "user_input" and "as_tensor" in content["arg"]:
                images.append(content["arg"]["as_tensor"]["name"])
            else:
                raise _Refused(f"a network takes images alone, but this one also takes a {kind.replace('_', ' ')}")
        if len(images) != 1:
            raise _Refused(f"a network takes one tensor of images, but this one takes {len(images)} tensors")
        return tensors, frozenset(parameters), images[0]

    def _tensors(self, kind: str) -> dict[str, Tensor]:
        """Return the weights or the constants, by their name in the network that was exported."""
        listed = json.loads(self._record(f"data/{kind}/{self._name}_{kind}_config.json"))["config"]
        found, payloads = {}, {}
        for name, entry in listed.items():
            file, meta = entry["path_name"], entry["tensor_meta"]
            if entry["use_pickle"] or meta is None or not file.startswith(("weight_", "tensor_")):
                raise _Refused(f"{name!r} is stored as a pickle, which could run code: only plain tensors are read")
            dtype = DTYPES[meta["dtype"]]
            if file not in payloads:
                payloads[file] = bytearray(self._record(f"data/{kind}/{file}"))
            size, stride = ([number["as_int"] for number in meta[key]] for key in ("sizes", "strides"))
            num_bytes = math.prod(size) * dtype.itemsize
            if min(size, default=0) < 0 or num_bytes > len(payloads[file]):
                raise _Refused(
                    f"{name!r} of {size} needs {num_bytes} bytes, but {len(payloads[file])} are stored of it"
                )
            self._bytes_left -= num_bytes
            if self._bytes_left < 0:
                raise _Refused("its tensors take more than twice the bytes of the file: each is stored for itself")
            data = torch.frombuffer(payloads[file], dtype=dtype) if payloads[file] else torch.empty(0, dtype=dtype)
            found[name] = torch.as_strided(data, size, stride, meta["storage_offset"]["as_int"]).clone()
        return found

    def _record(self, name: str) -> bytes:
        return self._archive.read(f"{self._root}/{name}")


def _output(specs: list[dict[str, Any]]) -> str:
    kinds = [next(iter(spec)) for spec in specs]
    if "buffer_mutation" in kinds:
        raise _Refused("the program changes its own buffers: export the network after model.eval()")
    if kinds != ["user_output"] or "as_tensor" not in specs[0]["user_output"]["arg"]:
        raise _Refused(f"a network gives one tensor of class scores, but this one gives {len(specs)} outputs")
    name: str = specs[0]["user_output"]["arg"]["as_tensor"]["name"]
    return name


def _batch(size: dict[str, Any], ranges: dict[str, dict[str, Any]]) -> tuple[int, int | None]:
    """How many images the program takes at once."""
    if "as_int" in size:
        return size["as_int"], size["as_int"]
    expression = size["as_expr"]
    symbol = re.fullmatch(r"(?:Symbol\('(\w+)'.*\)|(\w+))", expression["expr_str"])
    limits = ranges.get(symbol[1] or symbol[2]) if symbol else None
    if limits is None:  # a sum or a multiple: the number it was exported with is one that works
        hint = expression["hint"]["as_int"]
        return hint, hint
    return max(limits["min_val"] or 1, 1), limits["max_val"]


def _node(node: dict[str, Any]) -> Node:
    function, kind = _operator(node["target"])
    arguments = [(given["name"], _argument(given["arg"])) for given in node["inputs"]]
    for name, value in arguments:
        if name in ("training", "train") and value is True:
            raise _Refused(f"{node['name']!r} was exported in training mode: export the network after model.eval()")
    outputs, is_tuple = _outputs(node["outputs"])
    by_name = dict(arguments) if isinstance(function, torch._ops.OpOverload) else {}
    positional = () if by_name else tuple(value for _, value in arguments)
    return Node(node["name"] or outputs[0] or kind, kind, function, positional, by_name, outputs, is_tuple)


def _operator(target: str) -> tuple[Callable[..., Any], str]:
    """Return the function that a node names, where it is one of those that are taken, and its name without its
    overload.
    """
    found = operator_of(target)
    if found is None:
        reason = "which is not among the operators that are taken (importing/operators.py)"
        raise _Refused(f"it calls {target[:80]!r}, {reason}: save what torch.export.export gives after model.eval()")
    is_aten = isinstance(found, torch._ops.OpOverload)
    return found, target.split(".")[3].removesuffix("_") if is_aten else target


def _argument(argument: dict[str, Any]) -> Any:
    """Return a node's argument as Python has it; values of the graph become references."""
    ((kind, content),) = argument.items()
    if kind in _PLAIN:
        return content
    if kind in _NAMED:
        return [_reference(item) for item in content] if isinstance(content, list) else _reference(content)
    match kind:
        case "as_none":
            return None
        case "as_float":
            return float(content)
        case "as_floats":
            return [float(value) for value in content]
        case "as_device":
            return OnDevice()
        case "as_scalar_type":
            return DTYPES[content]
        case "as_memory_format":
            return MEMORY_FORMATS[content]
        case "as_layout":
            return LAYOUTS[content]
    raise _Refused(f"an argument is a {kind.removeprefix('as_').replace('_', ' ')}, which is not read")


def _reference(item: dict[str, Any]) -> Any:
    """`{"name": n}`, `{"as_name": n}` or `{"as_tensor": {"name": n}}`; or a plain number, or none."""
    if "name" in item:
        return Ref(item["name"])
    ((kind, content),) = item.items()
    if kind == "as_none":
        return None
    if kind == "as_name":
        return Ref(content)
    return _reference(content) if kind == "as_tensor" else content


def _outputs(outputs: list[dict[str, Any]]) -> tuple[tuple[str | None, ...], bool]:
    """Return the names of a node's results, and whether they come as a tuple."""
    if len(outputs) == 1 and "as_tensors" in outputs[0]:
        return tuple(item["name"] for item in outputs[0]["as_tensors"]), True
    names = [None if "as_none" in output else _reference(next(iter(output.values()))) for output in outputs]
    return tuple(ref.name if isinstance(ref, Ref) else None for ref in names), len(outputs) > 1

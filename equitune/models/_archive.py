"""Reads an exported program (`torch.export`, `.pt2`) as data, and never runs what it says.

torch's own loader unpickles a program's example inputs, constants and some weights, evaluates its symbolic sizes and
guards as Python, names Python functions to call, and turns the names of its nodes into source text. Here a program
is its JSON graph and the bytes of its tensors: every node is one of the aten operators below, called with plain values.
"""

import json
import math
import operator
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from equitune.errors import UserError

SCHEMA = 8  # the major version of torch's export schema that is read here


def names(text: str) -> frozenset[str]:
    """Words that are written apart by blanks."""
    return frozenset(text.split())


# What image networks are made of, beside torch's own `core` and `pointwise` operators.
OPERATORS = names(
    "_assert_scalar _assert_tensor_metadata _unsafe_view adaptive_avg_pool2d adaptive_max_pool2d avg_pool2d baddbmm"
    " batch_norm broadcast_to channel_shuffle chunk concat contiguous conv1d conv2d conv3d conv_transpose2d detach"
    " detach_ dropout dropout_ einsum expand_as eye fft_fft2 fft_ifft2 fft_irfft2 fft_rfft2 fill_ flatten glu"
    " grid_sampler group_norm hardswish hardswish_ im2col instance_norm layer_norm lift_fresh lift_fresh_copy"
    " linalg_vector_norm linear linspace log_softmax matmul max_pool2d max_pool3d mean meshgrid movedim narrow"
    " new_full new_ones new_zeros norm numpy_T ones ones_like pad pixel_shuffle pixel_unshuffle prelu"
    " repeat_interleave reshape reshape_as rms_norm roll rot90 scaled_dot_product_attention softmax split stack std"
    " sum_to_size swapaxes sym_constrain_range_for_size t tensor_split tile to transpose tril triu type_as unbind"
    " unflatten unfold unsafe_chunk unsafe_split upsample_bicubic2d upsample_nearest2d var_mean view_as zero_ zeros"
    " zeros_like"
)
# The arithmetic of sizes that are known only when the program runs.
SIZES: dict[str, Callable[..., Any]] = {
    f"_operator.{name}": getattr(operator, name)
    for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "eq", "ne", "ge", "gt", "le", "lt", "and_")
} | {"math.trunc": math.trunc, "torch.sym_max": max, "torch.sym_min": min, "torch.sym_sum": sum}

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
    """The values of the graph that a node, or some arguments, refer to."""
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
    """Reads a file that `torch.export.save` wrote.

    Raises:
        UserError: it is no such file, holds what only code could read, or is not a network from images to scores.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _Reader(archive).program()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except _Refused as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # whatever a broken file makes the reader raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{path} is not an exported program that torch.export.save wrote ({reason})") from None


class _Refused(Exception):
    """Why a program is not taken; a sentence."""


class _Reader:
    """The records of one archive."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
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
        """The tensors of the program by the name of their node, the parameters among them, and the images' name."""
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
        """The weights or the constants, by their name in the network that was exported."""
        listed = json.loads(self._record(f"data/{kind}/{self._name}_{kind}_config.json"))["config"]
        found, payloads = {}, {}
        for name, entry in listed.items():
            file, meta = entry["path_name"], entry["tensor_meta"]
            if entry["use_pickle"] or meta is None or not file.startswith(("weight_", "tensor_")):
                raise _Refused(f"{name!r} is stored as a pickle, which could run code: only plain tensors are read")
            dtype = DTYPES[meta["dtype"]]
            if file not in payloads:
                data = bytearray(self._record(f"data/{kind}/{file}"))
                payloads[file] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            size, stride = ([number["as_int"] for number in meta[key]] for key in ("sizes", "strides"))
            found[name] = torch.as_strided(payloads[file], size, stride, meta["storage_offset"]["as_int"]).clone()
        return found

    def _record(self, name: str) -> bytes:
        record = self._archive.getinfo(f"{self._root}/{name}")
        if record.compress_type != zipfile.ZIP_STORED:  # torch compresses nothing; a small file stays small
            raise _Refused(f"{name!r} is compressed: torch.export.save stores its records as they are")
        return self._archive.read(record)


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
    """The function that a node names, where it is one of those above."""
    if target in SIZES:
        return SIZES[target], target
    named = re.fullmatch(r"torch\.ops\.aten\.(\w+)\.(\w+)", target)
    packet = getattr(torch.ops.aten, named[1], None) if named else None
    found = getattr(packet, named[2], None) if named and isinstance(packet, torch._ops.OpOverloadPacket) else None
    if named and isinstance(found, torch._ops.OpOverload):
        is_known = {torch.Tag.core, torch.Tag.pointwise} & set(found.tags) or named[1] in OPERATORS
        if is_known or named[1].startswith("sym_"):
            return found, named[1].removesuffix("_")
    raise _Refused(f"it calls {target[:80]!r}, which is not among the operators that are taken (models/_archive.py)")


def _argument(argument: dict[str, Any]) -> Any:
    """A node's argument as Python has it; values of the graph become references."""
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
    """The names of a node's results, and whether they come as a tuple."""
    if len(outputs) == 1 and "as_tensors" in outputs[0]:
        return tuple(item["name"] for item in outputs[0]["as_tensors"]), True
    names = [None if "as_none" in output else _reference(next(iter(output.values()))) for output in outputs]
    return tuple(ref.name if isinstance(ref, Ref) else None for ref in names), len(outputs) > 1

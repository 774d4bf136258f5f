"""What each axis of each tensor of an exported program is: read from the meaning of its operators, never from shapes.

The images' axes are the batch, a channel, rows and columns. Every operator moves, cuts, merges or loses them: a
convolution multiplies the step of rows and columns by its stride, a reshape regroups axes in their order, a
concatenation in front of rows-and-columns adds special tokens. Axes about which nothing is known are `other`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from equitune.groups.layout import Grid, Layout, Tokens
from equitune.importing.archive import Node, Program, refs

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Factor:
    """One run of entries within an axis; an axis is several of them, the slowest first."""

    kind: Literal["batch", "row", "column", "token", "other"]
    size: int
    step: int = 1  # between neighbouring entries: pixels of the image for rows, columns and tokens
    origin: int = 0  # where a roll has put the first entry
    special: int = 0  # of tokens: how many stand before the patches
    height: int = 0  # of tokens: how many rows of patches there are


Axis = tuple[Factor, ...]
Axes = tuple[Axis, ...]


def layouts(program: Program, shapes: dict[str, Shape]) -> dict[str, Layout]:
    """Return the tensors that have a layout, by name, in the order of computation.

    Args:
        program: what was exported.
        shapes: of every tensor of one run.
    """
    axes = {name: _unknown(shape) for name, shape in shapes.items()}
    images = shapes[program.input]
    batch, channels, rows, columns = images
    axes[program.input] = (
        (Factor("batch", batch),),
        (Factor("other", channels),),
        (Factor("row", rows),),
        (Factor("column", columns),),
    )
    found: dict[str, Layout] = {}
    for node in program.nodes:
        for name, derived in zip(node.outputs, _derived(node, axes, shapes), strict=False):
            if name in shapes and _sizes(derived) == shapes[name]:
                axes[name] = derived
                layout = _layout(derived, images)
                if layout is not None:
                    found[name] = layout
    return found


def _layout(axes: Axes, images: Shape) -> Layout | None:
    """How to read a tensor with these axes; None where it has no grid, or not that of the whole image."""
    if not axes or axes[0] != (Factor("batch", images[0]),):
        return None
    kinds = [axis[0].kind if len(axis) == 1 else "other" for axis in axes[1:]]
    if kinds == ["other", "other", "row", "column"] and _sizes(axes)[2] == 1:  # a group axis with nothing in it
        del kinds[0]
    if kinds == ["other", "row", "column"]:
        (rows,), (columns,) = axes[-2:]
    elif kinds == ["row", "column", "other"]:
        (rows,), (columns,) = axes[1:3]
    elif len(kinds) == 2 and kinds[1] == "other":
        rows, columns, special = _patches(axes[1])
        return Tokens(rows.step, rows.size, columns.size, special) if _is_whole(rows, columns, images) else None
    else:
        return None
    is_map = rows.size * columns.size > 1 and _is_whole(rows, columns, images)
    return Grid(rows.step, channels_last=kinds[0] == "row") if is_map else None


def _is_whole(rows: Factor, columns: Factor, images: Shape) -> bool:
    """Whether these are the image's own rows and columns, one every `step` pixels."""
    return rows.step == columns.step and all(
        along.kind in ("row", "column") and along.origin == 0 and along.size == math.ceil(side_px / along.step)
        for along, side_px in zip((rows, columns), images[2:], strict=True)
    )


def _patches(axis: Axis) -> tuple[Factor, Factor, int]:
    """Return the rows, the columns and the number of special tokens of a sequence."""
    if len(axis) == 2 and (axis[0].kind, axis[1].kind) == ("row", "column"):
        return axis[0], axis[1], 0
    if len(axis) == 1 and axis[0].kind == "token":
        token = axis[0]
        rows = Factor("row", token.height, token.step)
        return rows, Factor("column", (token.size - token.special) // token.height, token.step), token.special
    nothing = Factor("other", 0)
    return nothing, nothing, 0


def _derived(node: Node, axes: dict[str, Axes], shapes: dict[str, Shape]) -> Sequence[Axes]:
    """Return the axes of a node's results."""
    tensors = [ref.name for ref in refs(node) if ref.name in shapes]
    results = [shapes[name] for name in node.outputs if name in shapes]
    if not tensors or not results:
        return []
    given = [axes[name] for name in tensors]
    if node.is_pointwise or node.kind in ("hardswish", "prelu", "masked_fill"):
        return [_joined(given, results[0])]
    rule = _RULES.get(node.kind)
    return rule(node.named, given, results) if rule else []


def _unknown(shape: Shape) -> Axes:
    return tuple((Factor("other", size),) for size in shape)


def _sizes(axes: Axes) -> Shape:
    return tuple(math.prod(factor.size for factor in axis) for axis in axes)


def _merged(factors: Sequence[Factor]) -> Axis:
    """Return the factors of one axis, neighbours made one where together they count without a gap."""
    found: list[Factor] = []
    for factor in factors:
        if factor.kind == "other" and factor.size == 1 and len(factors) > 1:
            continue
        last = found[-1] if found else None
        if last and factor.kind == last.kind == "other":
            found[-1] = Factor("other", last.size * factor.size)
        elif last and (last.kind, last.origin, last.step) == (factor.kind, factor.origin, factor.step * factor.size):
            found[-1] = replace(factor, size=last.size * factor.size)
        else:
            found.append(factor)
    return tuple(found) or (Factor("other", 1),)


def _regrouped(axes: Axes, shape: Shape) -> Axes:
    """Return the same entries in the same order under another shape."""
    pending = [factor for axis in axes for factor in axis]
    found: list[Axis] = []
    for size in shape:
        factors: list[Factor] = []
        have = 1
        while pending and have * pending[0].size <= size:  # entries of size 1 go along
            factors.append(pending.pop(0))
            have *= factors[-1].size
        if have < size:
            whole, part = (pending[0] if pending else Factor("token", 1)), size // have
            if size % have or whole.size % part or whole.kind == "token":
                return _unknown(shape)
            inner = whole.size // part
            factors.append(replace(whole, size=part, step=whole.step * inner))
            pending[0] = replace(whole, size=inner)
        found.append(_merged(factors))
    return tuple(found)


def _joined(given: Sequence[Axes], shape: Shape) -> Axes:
    """Tensors combined entry by entry, with broadcasting: an axis is what any of them knows it to be."""
    found: list[Axis] = []
    for place in range(1, len(shape) + 1):
        here = [axes[-place] for axes in given if len(axes) >= place]
        known = {axis for axis in here if _is_known(axis) and _sizes((axis,))[0] == shape[-place]}
        found.insert(0, known.pop() if len(known) == 1 else (Factor("other", shape[-place]),))
    return tuple(found)


def _is_known(axis: Axis) -> bool:
    return any(factor.kind != "other" for factor in axis)


# Rules: the arguments by name, the axes of the tensors given, the shapes of the results -> the axes of the results.


def _same(named: dict[str, Any], given: list[Axes], results: list[Shape]) -> list[Axes]:
    return [given[0]]


def _regroup(named: dict[str, Any], given: list[Axes], results: list[Shape]) -> list[Axes]:
    return [_regrouped(given[0], results[0])]


def _permute(named: dict[str, Any], given: list[Axes], results: list[Shape]) -> list[Axes]:
    return [tuple(given[0][dim] for dim in named["dims"])]


def _transpose(named: dict[str, Any], given: list[Axes], results: list[Shape]) -> list[Axes]:
    axes = list(given[0])
    first, second = named.get("dim0", 0), named.get("dim1", -1)
    axes[first], axes[second] = axes[second], axes[first]
    return [tuple(axes)]


def _slide(named: dict[str, Any], given: list[Axes], results: list[Shape]) -> list[Axes]:
    """Convolutions and pooling: the stride multiplies the step; adaptive pooling has one where its sides divide."""
    axes, shape = given[0], results[0]
    if named.get("transposed") or not all(len(axis) == 1 for axis in axes[-2:]):
        return []
    if "output_size" in named:
        sides = zip(_sizes(axes)[-2:], shape[-2:], strict=True)
        strides = [0 if before % after else before // after for before, after in sides]
    else:
        stated = named.get("stride") or named.get("kernel_size") or [1]
        strides = [stated] * 2 if isinstance(stated, int) else (list(stated) * 2)[-2:]
    moved = [
        (replace(axis[0], size=side, step=axis[0].step * stride) if stride > 0 else Factor("other", side),)
        for axis, side, stride in zip(axes[-2:], shape[-2:], strides, strict=True)
    ]
    return [(axes[0], *_unknown(shape[1:-2]), *moved)] * len(results)


def _pad(named: dict[str, Any], given: list[Axes], results: list[Shape]) -> list[Axes]:
    resized = zip(given[0], results[0], strict=True)
    return [
        tuple((replace(axis[0], size=size),) if len(axis) == 1 else (Factor("other", size),) for axis, size in resized)
        if _sizes(given[0]) != results[0]
        else given[0]
    ]


def _reduce(named: dict[str, Any], given: list[Axes], results: list[Shape]) -> list[Axes]:
    dims = named.get("dim", [])
    gone = {dim % len(given[0]) for dim in ([dims] if isinstance(dims, int) else dims or range(len(given[0])))}
    if named.get("keepdim"):
        return [tuple((Factor("other", 1),) if dim in gone else axis for dim, axis in enumerate(given[0]))]
    return [tuple(axis for dim, axis in enumerate(given[0]) if dim not in gone)]


def _linear(named: dict[str, Any], given: list[Axes], results: list[Shape]) -> list[Axes]:
    return [(*given[0][:-1], (Factor("other", results[0][-1]),))]


def _product(named: dict[str, Any], given: list[Axes], results: list[Shape]) -> list[Axes]:
    """Matrices: rows of the first, columns of the last. `addmm` has its addend in front."""
    first, last = given[-2], given[-1]
    return [(*first[:-1], last[-1])]


def _attention(named: dict[str, Any], given: list[Axes], results: list[Shape]) -> list[Axes]:
    return [(*given[0][:-1], given[2][-1])]


def _cat(named: dict[str, Any], given: list[Axes], results: list[Shape]) -> list[Axes]:
    """Along an unknown axis; or special tokens in front of patches."""
    dim = named.get("dim", 0) % len(results[0])
    joined = list(_joined([(*axes[:dim], (Factor("other", 1),), *axes[dim + 1 :]) for axes in given], results[0]))
    joined[dim] = (Factor("other", results[0][dim]),)
    *front, last = (axes[dim] for axes in given)
    rows, columns, special = _patches(last)
    if rows.size and rows.step == columns.step and not any(_is_known(axis) for axis in front):
        ahead = special + sum(_sizes((axis,))[0] for axis in front)
        joined[dim] = (Factor("token", results[0][dim], rows.step, special=ahead, height=rows.size),)
    return [tuple(joined)]


def _slice(named: dict[str, Any], given: list[Axes], results: list[Shape]) -> list[Axes]:
    """Every k-th row or column has k times the step; without its special tokens, a sequence is rows and columns."""
    axes, size = list(given[0]), None
    dim, start, step = named.get("dim", 0) % len(axes), named.get("start") or 0, named.get("step", 1)
    size, axis = results[0][dim], axes[dim]
    whole = _sizes((axis,))[0]
    rows, columns, special = _patches(axis)
    axes[dim] = (Factor("other", size),)
    if not isinstance(start, int):
        return [tuple(axes)]
    start %= max(whole, 1)
    if size == whole:
        axes[dim] = axis
    elif len(axis) == 1 and axis[0].kind in ("row", "column") and start < step and size == -(-(whole - start) // step):
        axes[dim] = (replace(axis[0], size=size, step=axis[0].step * step),)
    elif rows.size and start <= special and step == 1 and size == whole - start:
        left = special - start
        axes[dim] = (replace(axis[0], size=size, special=left),) if left else (rows, columns)
    return [tuple(axes)]


def _select(named: dict[str, Any], given: list[Axes], results: list[Shape]) -> list[Axes]:
    dim = named.get("dim", 0) % len(given[0])
    return [given[0][:dim] + given[0][dim + 1 :]] * len(results)


def _split(named: dict[str, Any], given: list[Axes], results: list[Shape]) -> list[Axes]:
    dim = named.get("dim", 0) % len(given[0])
    return [(*given[0][:dim], (Factor("other", shape[dim]),), *given[0][dim + 1 :]) for shape in results]


def _roll(named: dict[str, Any], given: list[Axes], results: list[Shape]) -> list[Axes]:
    axes = list(given[0])
    for dim, shift in zip(named["dims"], named["shifts"], strict=False):
        axis = axes[dim]
        is_one = len(axis) == 1 and axis[0].kind in ("row", "column")
        whole = _sizes((axis,))[0]
        axes[dim] = (
            (replace(axis[0], origin=(axis[0].origin + shift) % whole),) if is_one else (Factor("other", whole),)
        )
    return [tuple(axes)] if named["dims"] else []


def _expand(named: dict[str, Any], given: list[Axes], results: list[Shape]) -> list[Axes]:
    return [_joined(given[:1], results[0])]


_RULES: dict[str, Callable[[dict[str, Any], list[Axes], list[Shape]], list[Axes]]] = {
    name: rule
    for rule, names in {
        _same: "alias batch_norm clone contiguous detach dropout group_norm instance_norm layer_norm lift_fresh"
        " native_batch_norm _native_batch_norm_legit_no_training native_group_norm native_layer_norm rms_norm softmax"
        " _softmax log_softmax _log_softmax to _to_copy type_as",
        _regroup: "view _unsafe_view reshape flatten unflatten squeeze unsqueeze reshape_as view_as",
        _permute: "permute",
        _transpose: "transpose t",
        _slide: "conv2d conv3d convolution max_pool2d max_pool3d avg_pool2d max_pool2d_with_indices adaptive_avg_pool2d"
        " _adaptive_avg_pool2d adaptive_max_pool2d",
        _pad: "pad constant_pad_nd reflection_pad2d replication_pad2d",
        _reduce: "mean sum amax amin",
        _linear: "linear",
        _product: "matmul mm bmm addmm baddbmm",
        _attention: "scaled_dot_product_attention",
        _cat: "cat concat",
        _slice: "slice",
        _select: "select unbind",
        _split: "split split_with_sizes chunk unsafe_chunk unsafe_split",
        _roll: "roll",
        _expand: "expand expand_as broadcast_to",
    }.items()
    for name in names.split()
}

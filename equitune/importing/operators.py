"""The operators that an exported program may call, and what is checked of their arguments.

The list is what `torch.export` makes of this project's networks and of those of timm and torchvision, before and after
`run_decompositions`, with the close relatives of each. It holds forward operators alone. Three kinds are left out:

- operators that trust what they are given: every `*_backward`, `_embedding_bag`, `as_strided`, `empty*`, `set*`, the
  `_flash_attention` family, `.out` forms;
- operators whose result has a shape that depends on values, such as `nonzero` or `masked_select`: how much memory they
  take cannot be known before they run;
- operators that draw random numbers, since a measured network must give the same scores twice.

Of those below, torch 2.13 checks the arguments itself, except for what `require_safe` checks.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def names(text: str) -> frozenset[str]:
    """Words that are written apart by blanks."""
    return frozenset(text.split())


_GROUPS = {
    "layers": """
        conv1d.default conv1d.padding conv2d.default conv2d.padding conv3d.default conv3d.padding
        conv_transpose2d.input convolution.default linear.default matmul.default mm.default bmm.default
        addmm.default baddbmm.default einsum.default scaled_dot_product_attention.default
    """,
    "norms, and statistics over axes": """
        batch_norm.default instance_norm.default group_norm.default layer_norm.default rms_norm.default
        _native_batch_norm_legit_no_training.default native_group_norm.default native_layer_norm.default
        linalg_vector_norm.default norm.Scalar norm.ScalarOpt_dim mean.default mean.dim sum.default sum.dim_IntList
        prod.dim_int var.dim var.correction var_mean.correction var_mean.dim std.dim std.correction amax.default
        amin.default max.default max.dim max.other min.default min.dim min.other argmax.default argmin.default
        any.default any.dim any.dims all.default all.dim all.dims cumsum.default logsumexp.default
    """,
    "activations": """
        relu.default relu6.default gelu.default silu.default elu.default celu.default selu.default leaky_relu.default
        prelu.default _prelu_kernel.default mish.default glu.default softplus.default hardtanh.default
        hardswish.default hardsigmoid.default sigmoid.default tanh.default log_sigmoid.default softmax.int
        _softmax.default log_softmax.int _log_softmax.default dropout.default
    """,
    "pooling and resampling": """
        avg_pool1d.default avg_pool2d.default avg_pool3d.default max_pool2d.default max_pool3d.default
        max_pool2d_with_indices.default adaptive_avg_pool1d.default adaptive_avg_pool2d.default
        _adaptive_avg_pool2d.default adaptive_max_pool2d.default upsample_nearest2d.default upsample_nearest2d.vec
        upsample_bilinear2d.default upsample_bilinear2d.vec upsample_bicubic2d.default upsample_bicubic2d.vec
        _upsample_bilinear2d_aa.default _upsample_bilinear2d_aa.vec _upsample_bicubic2d_aa.default
        _upsample_bicubic2d_aa.vec
        pixel_shuffle.default pixel_unshuffle.default channel_shuffle.default im2col.default
    """,
    "arithmetic, entry by entry": """
        add.Tensor add.Scalar sub.Tensor sub.Scalar rsub.Tensor rsub.Scalar mul.Tensor mul.Scalar div.Tensor div.Scalar
        div.Tensor_mode div.Scalar_mode floor_divide.default floor_divide.Scalar remainder.Tensor remainder.Scalar
        fmod.Tensor fmod.Scalar neg.default abs.default sign.default reciprocal.default sqrt.default rsqrt.default
        square.default pow.Tensor_Tensor pow.Tensor_Scalar pow.Scalar exp.default exp2.default expm1.default
        log.default log2.default log10.default log1p.default sin.default cos.default tan.default asin.default
        acos.default atan.default atan2.default sinh.default cosh.default erf.default floor.default ceil.default
        round.default trunc.default frac.default maximum.default minimum.default clamp.default clamp.Tensor
        clamp_min.default clamp_min.Tensor clamp_max.default clamp_max.Tensor lerp.Scalar lerp.Tensor addcmul.default
        addcdiv.default where.self where.ScalarOther where.ScalarSelf where.Scalar masked_fill.Scalar
        masked_fill.Tensor nan_to_num.default eq.Tensor eq.Scalar ne.Tensor ne.Scalar lt.Tensor lt.Scalar le.Tensor
        le.Scalar gt.Tensor gt.Scalar ge.Tensor ge.Scalar logical_and.default logical_or.default logical_not.default
        logical_xor.default bitwise_and.Tensor bitwise_and.Scalar bitwise_or.Tensor bitwise_or.Scalar
        bitwise_not.default bitwise_xor.Tensor bitwise_xor.Scalar isnan.default isinf.default isfinite.default
    """,
    # They write over a result that the network itself computed; a program that changes its weights is refused.
    "in place": """
        add_.Tensor add_.Scalar sub_.Tensor sub_.Scalar mul_.Tensor mul_.Scalar div_.Tensor div_.Scalar clamp_.default
        clamp_min_.default clamp_max_.default relu_.default relu6_.default gelu_.default silu_.default elu_.default
        celu_.default selu_.default leaky_relu_.default mish_.default hardtanh_.default hardswish_.default
        hardsigmoid_.default sigmoid_.default tanh_.default dropout_.default detach_.default masked_fill_.Scalar
        masked_fill_.Tensor fill_.Scalar fill_.Tensor zero_.default copy_.default squeeze_.dim unsqueeze_.default
    """,
    "views, axes, parts, and what puts parts together": """
        view.default _unsafe_view.default reshape.default reshape_as.default view_as.default flatten.using_ints
        unflatten.int squeeze.default squeeze.dim squeeze.dims unsqueeze.default permute.default transpose.int
        t.default numpy_T.default movedim.int movedim.intlist swapaxes.default swapdims.default expand.default
        expand_as.default broadcast_to.default repeat.default tile.default repeat_interleave.self_int unfold.default
        narrow.default slice.Tensor select.int unbind.int split.Tensor split.sizes split.default
        split_with_sizes.default unsafe_split.Tensor unsafe_split_with_sizes.default tensor_split.sections
        tensor_split.indices chunk.default unsafe_chunk.default cat.default concat.default stack.default flip.default
        roll.default rot90.default pad.default constant_pad_nd.default reflection_pad2d.default
        replication_pad2d.default tril.default triu.default meshgrid.default meshgrid.indexing index.Tensor
        index_select.default gather.default embedding.default slice_scatter.default select_scatter.default
        sum_to_size.default diagonal.default
    """,
    "copies, types and devices": """
        alias.default clone.default contiguous.default detach.default lift_fresh.default lift_fresh_copy.default
        to.device to.dtype to.other to.dtype_layout to.prim_Device to.prim_dtype _to_copy.default type_as.default
        copy.default fill.Scalar
    """,
    "constants": """
        arange.default arange.start arange.start_step linspace.default eye.default eye.m full.default full_like.default
        zeros.default zeros_like.default ones.default ones_like.default new_full.default new_zeros.default
        new_ones.default scalar_tensor.default
    """,
    "Fourier transforms": "fft_fft2.default fft_ifft2.default fft_rfft2.default fft_irfft2.default",
    "claims about sizes and types": """
        _assert_scalar.default _assert_tensor_metadata.default sym_constrain_range_for_size.default sym_size.int
        sym_numel.default sym_stride.int
    """,
}
OPERATORS = frozenset().union(*(names(text) for text in _GROUPS.values()))

# The arithmetic of sizes that are known only when the program runs.
SIZES: dict[str, Callable[..., Any]] = {
    f"_operator.{name}": getattr(operator, name)
    for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "eq", "ne", "ge", "gt", "le", "lt", "and_")
} | {"math.trunc": math.trunc, "torch.sym_max": max, "torch.sym_min": min, "torch.sym_sum": sum}

MOST = 2**31  # no size, stride or padding of an image network comes near; kernels compute with 32 bits within


def operator_of(target: str) -> Callable[..., Any] | None:
    """Return the function that a node names, as `torch.ops.aten.add.Tensor`; None where it is not listed above."""
    if target in SIZES:
        return SIZES[target]
    name = target.removeprefix("torch.ops.aten.")
    if name == target or name not in OPERATORS:
        return None
    packet, _, overload = name.partition(".")
    found: Callable[..., Any] = getattr(getattr(torch.ops.aten, packet), overload)
    return found


def require_safe(kind: str, positional: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Check what torch does not check of a call, which would else read beyond a tensor's end or end the process.

    Args:
        kind: the operator's name, without its overload.
        positional: its arguments, of the arithmetic of sizes.
        named: its arguments by name, of every other operator.

    Raises:
        ValueError: says which argument does not fit.
    """
    if kind in SIZES:  # of text and lists, the same operators make copies
        for each in (each for value in positional for each in (value if isinstance(value, list) else [value])):
            if not isinstance(each, int | float) or abs(each) >= 2**63:
                raise ValueError(f"{kind} computes with sizes, but got {str(each)[:40]!r}")
        return
    if kind in _CHECKS:
        _CHECKS[kind](named)
    if kind not in ("slice", "slice_scatter"):  # whose end is 2**63 - 1 where it is the axis's
        for name, value in named.items():
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, int) and abs(each) >= MOST:
                    raise ValueError(f"{kind}: {name} is below 2**31, but got {each}")


def _statistics(named: Mapping[str, Any]) -> None:
    channels = named["input"].shape[1]
    for name in ("weight", "bias", "running_mean", "running_var"):
        value = named.get(name)
        if (value is None and name.startswith("running")) or (value is not None and value.shape != (channels,)):
            found = "none" if value is None else tuple(value.shape)
            raise ValueError(f"batch norm: {name} has a value for each of the {channels} channels, but got {found}")


def _attention(named: Mapping[str, Any]) -> None:
    query, key, value, mask = named["query"], named["key"], named["value"], named.get("attn_mask")
    fit = query.ndim == key.ndim == value.ndim >= 2 and query.shape[-1] == key.shape[-1]
    if not fit or key.shape[-2] != value.shape[-2] or not query.shape[:-2] == key.shape[:-2] == value.shape[:-2]:
        shapes = " and ".join(str(tuple(each.shape)) for each in (query, key, value))
        raise ValueError(f"attention: query, key and value have the same batch, heads and length, but got {shapes}")
    if named.get("dropout_p") or named.get("enable_gqa"):
        raise ValueError("attention: neither dropout nor grouped queries are taken: export it after model.eval()")
    scores = (*query.shape[:-1], key.shape[-2])
    if mask is not None:
        pairs = zip(reversed(mask.shape), reversed(scores), strict=False)
        if mask.ndim > len(scores) or any(own not in (1, needed) for own, needed in pairs):
            raise ValueError(f"attention: the mask fits scores {scores}, but got {tuple(mask.shape)}")


def _division(named: Mapping[str, Any]) -> None:
    """Refuse what the processor answers with a signal: the lowest integer divided by -1 with `trunc`."""
    is_real = any(isinstance(x, float) or (isinstance(x, Tensor) and x.is_floating_point()) for x in named.values())
    if named.get("rounding_mode") == "trunc" and not is_real:
        raise ValueError("div: integers are divided with rounding_mode floor, but got trunc")


def _scales(named: Mapping[str, Any]) -> None:
    """Refuse a scale that does not lead to the size beside it: kernels find their pixels by the scale."""
    sides, size = named.get("input", named.get("self")).shape[2:], named.get("output_size")
    stated = named.get("scale_factors") or [named.get("scales_h"), named.get("scales_w")]
    for index, scale in enumerate(stated):
        if scale is None:
            continue
        wanted = size[index] if size else max(1, int(min(sides[index] * scale, MOST)))
        if not (math.isfinite(scale) and scale > 0 and abs(sides[index] * scale - wanted) <= 1):
            raise ValueError(f"upsample: a scale leads from {sides[index]} px to {wanted} px, but got {scale}")


def _indices(named: Mapping[str, Any]) -> None:
    """Refuse masks, which pick a number of entries that depends on their values."""
    for index in named["indices"]:
        if index is not None and index.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"index: an index is an integer, but got {index.dtype}: a result has a size of its own")


_CHECKS: dict[str, Callable[[Mapping[str, Any]], None]] = {
    "_native_batch_norm_legit_no_training": _statistics,
    "scaled_dot_product_attention": _attention,
    "div": _division,
    "index": _indices,
    **dict.fromkeys(names("upsample_nearest2d upsample_bilinear2d upsample_bicubic2d"), _scales),
    **dict.fromkeys(names("_upsample_bilinear2d_aa _upsample_bicubic2d_aa"), _scales),
}

"""Batch normalisation and dropout of a batch that lies in several processes: as if it lay in one.

torch's SyncBatchNorm takes GPUs alone, and only modules that are plain batch norms; this works on any device, and for
whatever calls torch.nn.functional, such as timm's norms and the priors' own.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

DROPOUTS = (functional.dropout, functional.dropout1d, functional.dropout2d, functional.dropout3d)


class WholeBatch(TorchFunctionMode):
    """Within it both see the whole batch. All ranks run the same network.

    Args:
        n: images in the batch.
        mine: those of this rank.
    """

    def __init__(self, n: int, mine: slice) -> None:
        super().__init__()
        self._n, self._mine = n, mine

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.batch_norm:
            return batch_norm(*args, **kwargs)
        if func in DROPOUTS:
            return self._dropout(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _dropout(
        self, drop: Callable[..., Tensor], maps: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or len(maps) != self._mine.stop - self._mine.start:
            return drop(maps, p, training, inplace)
        return maps * drop(maps.new_ones(self._n, *maps.shape[1:]), p)[self._mine]


def batch_norm(
    maps: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`functional.batch_norm` with the mean and the variance of all ranks: maps (B, C, ...), the rest (C,)."""
    if not training:
        return functional.batch_norm(maps, running_mean, running_var, weight, bias, False, momentum, eps)
    mean, var, n = moments(maps.detach())
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean.to(running_mean), momentum)
        running_var.lerp_((var * (n / (n - 1))).to(running_var), momentum)
    scaled: Tensor = _Normalised.apply(maps, weight, bias, mean, (var + eps).rsqrt(), n)  # type: ignore[no-untyped-call]
    return scaled


def moments(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance (C,) over the images of all ranks and all places, and how many values they are of.

    Each rank's own moments are combined as Chan et al. (1979) do: sums of squares would cancel.
    """
    from torch import distributed

    var, mean = torch.var_mean(_wide(maps), _all_but_channels(maps), correction=0)
    n = mean.new_tensor([maps.numel() / maps.shape[1]])
    mine = torch.cat([mean, var, n])
    of_all = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
    distributed.all_gather(of_all, mine)
    means_RC, vars_RC, n_R1 = torch.stack(of_all).tensor_split((len(mean), 2 * len(mean)), 1)
    total = n_R1.sum()
    mean = (n_R1 * means_RC).sum(0) / total
    return mean, (n_R1 * (vars_RC + (means_RC - mean).square())).sum(0) / total, total


class _Normalised(torch.autograd.Function):
    """(maps - mean) / deviation * weight + bias; in its gradient the maps of all ranks move mean and deviation."""

    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, inverse: Tensor, n: Tensor
    ) -> Tensor:
        ctx.save_for_backward(maps, weight, mean, inverse, n)
        scale = inverse if weight is None else inverse * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        return (_wide(maps) * _per_channel(scale, maps) + _per_channel(shift, maps)).to(maps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from torch import distributed

        maps, weight, mean, inverse, n = ctx.saved_tensors
        gradient, places = _wide(gradients[0]), _all_but_channels(maps)
        unit = (_wide(maps) - _per_channel(mean, maps)) * _per_channel(inverse, maps)
        sums = torch.stack([gradient.sum(places), (gradient * unit).sum(places)])
        of_weight, of_bias = sums[1], sums[0]
        of_all = sums.clone()
        distributed.all_reduce(of_all)
        scale = inverse if weight is None else inverse * weight
        pulled = _per_channel(of_all[0] / n, maps) + unit * _per_channel(of_all[1] / n, maps)
        of_maps = ((gradient - pulled) * _per_channel(scale, maps)).to(maps)
        has_weight, has_bias = ctx.needs_input_grad[1:3]
        return of_maps, of_weight if has_weight else None, of_bias if has_bias else None, None, None, None


def _wide(maps: Tensor) -> Tensor:
    """In at least single precision, in which statistics are kept."""
    return maps.float() if maps.dtype in (torch.float16, torch.bfloat16) else maps


def _all_but_channels(maps: Tensor) -> tuple[int, ...]:
    return tuple(axis for axis in range(maps.ndim) if axis != 1)


def _per_channel(values_C: Tensor, maps: Tensor) -> Tensor:
    return values_C.reshape(1, -1, *(1,) * (maps.ndim - 2))

"""What the priors with a group share: convolutions of regular features by one conv2d with expanded filters.

Maps are (B, C, G, H, W), their entries the group's elements g = R^r F^m in the order 4 m + r (`groups/layout.py`).
Cohen and Welling, 1602.07576:

    (L_g psi)(h, u) = psi(g^-1 h, g^-1 u),    out[o, g] = sum_i,h x[i, h] * (L_g psi[o, i, h])

with one h where images are lifted to the group.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from equitune.groups.axis import ENTRIES
from equitune.groups.d4 import Turn
from equitune.groups.grid import COLOURS, PERMUTED_BY, TURNS, Symmetry, uneven
from equitune.groups.layout import Axis, Grid
from equitune.layers.padding import PAD_MODE, check_padding, padded
from equitune.layers.prior import MapPrior, Shape
from equitune.layers.relaxable import Relaxable, share


class GroupPrior(MapPrior):
    """A prior whose maps are regular features of a group: one kind of layer, used for lifting and for all others."""

    def __init__(self, axis: Axis, layer: Callable[..., nn.Module], head: str, padding: str) -> None:
        self.axis = axis
        self._layer, self._head, self._padding = layer, head, padding

    def built(self, shape: Shape, side: int) -> nn.Module:
        check_padding(self._padding, shape.padding, side)
        return self._layer(self.axis, replace(shape, pad_mode=PAD_MODE[self._padding]))

    def norm(self, channels: int) -> nn.Module:
        return nn.BatchNorm3d(channels)

    def head(self, channels: int) -> tuple[nn.Module, int]:
        return CosetPool(self._head, self.axis), channels * (ENTRIES[self.axis] if self._head == "flatten" else 1)


class CosetPool(nn.Module):
    """Pooled maps (B, C, G) -> (B, C), invariant; or, with `flatten`, (B, C * G), which is not."""

    def __init__(self, kind: str, axis: Axis) -> None:
        super().__init__()
        self.kind, self.axis = kind, axis

    def breaks(self, symmetry: Symmetry, side: int) -> str | None:
        """Return the rule by which it fails to be invariant to a symmetry."""
        is_flat = self.kind == "flatten" and symmetry in PERMUTED_BY[self.axis]
        return "it flattens what the symmetry permutes" if is_flat else None

    def forward(self, pooled: Tensor) -> Tensor:
        if self.kind == "flatten":
            return pooled.flatten(1)
        return pooled.amax(2) if self.kind == "max" else pooled.mean(2)


class ExpandedConv(nn.Module, ABC):
    """A convolution of maps whose filters are computed from fewer weights.

    Maps (B, inputs, G, H, W), or images (B, inputs, H, W) where it lifts -> maps (B, outputs, G, H', W').

    Attributes:
        bias: (outputs,), shared over G; or None.
        strays: how its filters differ from those of a group convolution from the start; None: they do not.
        learns: which weights training may move so that they differ; None: no such weights.
    """

    strays: str | None = None
    learns: str | None = None

    def __init__(self, axis: Axis, shape: Shape) -> None:
        super().__init__()
        self.axis, self.entries, self.entries_in = axis, ENTRIES[axis], 1 if shape.lifts else ENTRIES[axis]
        self.inputs, self.outputs = shape.inputs, shape.outputs
        self.kernel_size, self.stride, self.padding = shape.kernel, shape.stride, shape.padding
        self.pad_mode, self.groups = shape.pad_mode, 1
        # The initialisation of 2308.11316's released networks: the fan-in leaves out the group.
        self.bound = (shape.inputs * shape.kernel**2) ** -0.5
        self.bias = nn.Parameter(self.uniform(shape.outputs)) if shape.bias else None
        self._kept: tuple[list[object], Tensor] | None = None

    def breaks(self, symmetry: Symmetry, side: int) -> str | None:
        """Return the rule by which it fails to commute with a symmetry on maps of this side."""
        if symmetry == "hue":
            return COLOURS
        if symmetry == "d4" and self.axis != "d4":
            return "its group has no flips"
        if symmetry in TURNS and self.strays:
            return self.strays
        wraps = self.pad_mode == "circular"
        return uneven(symmetry, side, self.kernel_size, stride=self.stride, padding=self.padding, wraps=wraps)

    def loosens(self, symmetry: Symmetry) -> str | None:
        """Return what may break, in training, a symmetry that it has at the start."""
        return self.learns if symmetry in TURNS else None

    @abstractmethod
    def expand(self) -> Tensor:
        """Return the filters (outputs * G, inputs * G_in, k, k)."""

    def uniform(self, *sizes: int) -> Tensor:
        """Return initial weights, U(-b, b) with b = 1 / sqrt(inputs k^2)."""
        return torch.empty(sizes).uniform_(-self.bound, self.bound)

    def filters(self) -> Tensor:
        """Return what `expand` gives; in evaluation it is kept for as long as the weights are the same."""
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.expand()
        state = [_state(tensor) for tensor in (*self.parameters(), *self.buffers())]
        if self._kept is None or self._kept[0] != state:
            with torch.inference_mode(False), torch.no_grad():  # else they could not be used outside that mode
                self._kept = state, self.expand()
        return self._kept[1]

    def train(self, mode: bool = True) -> "ExpandedConv":
        self._kept = None
        return super().train(mode)

    def forward(self, maps: Tensor) -> Tensor:
        maps, padding = padded(maps.flatten(1, 2) if maps.ndim == 5 else maps, self.padding, self.pad_mode)
        bias = None if self.bias is None else self.bias[:, None].expand(-1, self.entries).flatten()
        out = functional.conv2d(maps, self.filters(), bias, self.stride, padding, groups=self.groups)
        return torch.unflatten(out, 1, (-1, self.entries))


class RelaxableConv(ExpandedConv, Relaxable):
    """A convolution whose filters may be those of a group convolution, or not.

    Attributes:
        orbits: `regular_sources`, (G, G * G_in * k * k).
    """

    orbits: Tensor

    def __init__(self, axis: Axis, shape: Shape) -> None:
        super().__init__(axis, shape)
        self.register_buffer("orbits", regular_sources(self), persistent=False)

    def squared_amount(self) -> Tensor:
        """|W - Pi W|^2 / |W|^2, Pi the mean of g W over the group.

        0 a group convolution; 1 - 1 / |G| expected of independent weights; 1 nothing but what breaks the symmetry.
        """
        filters = self.expand().view(-1, self.entries, self.inputs, self.entries_in, *[self.kernel_size] * 2)
        W = filters.transpose(1, 2).flatten(2)  # (outputs, inputs, G * G_in * k * k)
        broken = W - torch.stack([W.index_select(2, source) for source in self.orbits]).mean(0)
        return share(broken.square().sum(), W.square().sum())


class GroupConv(ExpandedConv):
    """The group convolution, of p4 with an axis c4 and of p4m with d4; its lifting convolution where it lifts.

    Attributes:
        psi: (outputs, inputs, G_in, k, k).
    """

    sources: Tensor

    def __init__(self, axis: Axis, shape: Shape) -> None:
        super().__init__(axis, shape)
        self.psi = nn.Parameter(self.uniform(shape.outputs, shape.inputs, self.entries_in, shape.kernel, shape.kernel))
        self.register_buffer("sources", sources(axis, self.entries_in, shape.kernel), persistent=False)

    def expand(self) -> Tensor:
        return joined(moved(self.psi, self.sources))


def elements(axis: Axis) -> list[Turn]:
    """Return the group in the order of its axis."""
    return [Turn(entry % 4, entry >= 4) for entry in range(ENTRIES[axis])]


def sources(axis: Axis, entries_in: int, kernel: int) -> Tensor:
    """For each g, from where within (G_in, k, k) the values of L_g psi come: (G, G_in * k * k)."""
    places = torch.arange(entries_in * kernel**2).view(1, 1, entries_in, kernel, kernel)
    layout = Grid(1, axis=axis if entries_in > 1 else "none")
    return torch.stack([g.on_features(places, layout).flatten() for g in elements(axis)])


def regular_sources(layer: ExpandedConv) -> Tensor:
    """Return the same for whole filters, (g W)[h', h, u] = W[g^-1 h', g^-1 h, g^-1 u]: (G, G * G_in * k * k)."""
    entries, entries_in, kernel = layer.entries, layer.entries_in, layer.kernel_size
    places = torch.arange(entries * entries_in * kernel**2).view(1, entries, entries_in, kernel, kernel)
    within, across = Grid(1, axis=layer.axis if entries_in > 1 else "none"), Grid(1, axis=layer.axis)
    return torch.stack(
        [
            g.on_features(g.on_features(places, within).flatten(2).transpose(1, 2)[..., None, None], across)
            .flatten(2)
            .transpose(1, 2)
            .flatten()
            for g in elements(layer.axis)
        ]
    )


def moved(psi: Tensor, sources: Tensor) -> Tensor:
    """L_g psi for each g: (outputs, inputs, G_in, k, k) -> (outputs, G, inputs, G_in, k, k)."""
    # By index_select: its backward pass is three times faster than that of an index of two axes.
    flat = psi.flatten(2).index_select(2, sources.flatten())
    return torch.unflatten(flat, 2, (len(sources), *psi.shape[2:])).transpose(1, 2)


def joined(filters: Tensor) -> Tensor:
    """Return (outputs, G, inputs, G_in, k, k) -> the filters of one conv2d, (outputs * G, inputs * G_in, k, k)."""
    return filters.flatten(0, 1).flatten(1, 2)


def _state(tensor: Tensor) -> object:
    """Return what changes when a tensor is written to, moved or replaced."""
    version = None if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), version, tensor.dtype, tensor.device

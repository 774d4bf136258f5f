"""Features summed in float64, a few images at a time, so that they stay in a processor's cache.

Suffixes name the axes: B images of a batch, K clusters of images (`estimate.py`), C channels, P positions.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

PART = 2**18  # numbers that are summed at once: 2 MiB in float64
COLLAPSED = 1e-12  # a variance that is smaller, beside the mean square, is rounding

_scratch_buffers: dict[tuple[torch.device, torch.dtype], Tensor] = {}


@dataclass(frozen=True)
class Moments:
    """A batch of features (B, C, P), or a part of one, summed in float64."""

    sums_BC: Tensor  # over positions
    squares_BC: Tensor
    map_CP: Tensor  # over images

    @classmethod
    def of(cls, values_BCP: Tensor) -> "Moments":
        return cls.joined([cls.of_part(in_double(values_BCP[part])) for part in parts(values_BCP)])

    @classmethod
    def of_part(cls, values_BCP: Tensor) -> "Moments":
        """Of values in float64."""
        squares = torch.linalg.vector_norm(values_BCP, dim=2).square_()
        return cls(values_BCP.sum(2), squares, values_BCP.sum(0))

    @classmethod
    def joined(cls, parts: list["Moments"]) -> "Moments":
        if len(parts) == 1:
            return parts[0]
        sums, squares = torch.cat([part.sums_BC for part in parts]), torch.cat([part.squares_BC for part in parts])
        return cls(sums, squares, torch.stack([part.map_CP for part in parts]).sum(0))

    def moved(self, move: Callable[[Tensor], Tensor]) -> "Moments":
        """Return the moments of the moved features, where moving permutes channels and positions.

        Args:
            move: features (n, C, P) or sums over positions (n, C, 1) -> the same, moved.
        """
        sums, squares = (move(each[:, :, None])[:, :, 0] for each in (self.sums_BC, self.squares_BC))
        return Moments(sums, squares, move(self.map_CP[None])[0])


@dataclass
class Side:
    """One side of the pairs, summed over all images so far."""

    sums_KC: Tensor
    squares_C: Tensor
    map_CP: Tensor

    @classmethod
    def empty(cls, clusters: int, channels: int, positions: int, device: torch.device) -> "Side":
        shapes = [(clusters, channels), (channels,), (channels, positions)]
        return cls(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))

    def add(self, cluster_B: Tensor, moments: Moments) -> None:
        self.sums_KC.index_add_(0, cluster_B, moments.sums_BC)
        self.squares_C += moments.squares_BC.sum(0)
        self.map_CP += moments.map_CP


@dataclass
class Unrelated:
    """What unrelated images correlate by, each centred for itself: sums over a few images of maps of length 1.

    The product of the two sides' sums holds the correlation of every pair of images, and that of each with itself.
    `flat` is centred per image, `channel` per image and channel.
    """

    images: Tensor
    flat_a_CP: Tensor
    flat_b_CP: Tensor
    flat_itself: Tensor
    channel_a_CP: Tensor
    channel_b_CP: Tensor
    channel_itself: Tensor
    alive_a_C: Tensor  # images whose channel varies
    alive_b_C: Tensor
    alive_itself: Tensor

    @classmethod
    def of(cls, a_BCP: Tensor, b_BCP: Tensor) -> "Unrelated":
        a, b = a_BCP.double(), b_BCP.double()
        flat_a, flat_b = _normalised(a, (1, 2)), _normalised(b, (1, 2))
        channel_a, channel_b = _normalised(a, (2,)), _normalised(b, (2,))
        alive_a, alive_b = ((each != 0).any(2).double() for each in (channel_a, channel_b))
        return cls(
            images=a.new_tensor(len(a)),
            flat_a_CP=flat_a.sum(0),
            flat_b_CP=flat_b.sum(0),
            flat_itself=(flat_a * flat_b).sum(),
            channel_a_CP=channel_a.sum(0),
            channel_b_CP=channel_b.sum(0),
            channel_itself=(channel_a * channel_b).sum(),
            alive_a_C=alive_a.sum(0),
            alive_b_C=alive_b.sum(0),
            alive_itself=(alive_a * alive_b).sum(),
        )

    def __add__(self, other: "Unrelated") -> "Unrelated":
        return Unrelated(
            **{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)}
        )

    def flat(self) -> float:
        """Return the mean correlation of unrelated images."""
        total = (self.flat_a_CP * self.flat_b_CP).sum() - self.flat_itself
        return float(total / (self.images * (self.images - 1)))

    def channel(self) -> float:
        """Return the mean correlation of a channel in unrelated images, over the channels that vary."""
        total = (self.channel_a_CP * self.channel_b_CP).sum() - self.channel_itself
        return float(total / ((self.alive_a_C * self.alive_b_C).sum() - self.alive_itself))


def inverse_length(squares: Tensor, sums: Tensor, count: int) -> Tensor:
    """1 / |v - mean v| of vectors with `count` entries, from their sums and squares; 0 where v does not vary."""
    variance = squares - sums.square() / count
    return torch.where(variance > COLLAPSED * squares, variance, torch.inf).rsqrt()


def _normalised(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Centred and scaled to length 1 over these dimensions; 0 where the values do not vary."""
    centred = values - values.mean(dims, keepdim=True)
    variance, power = (each.square().sum(dims, keepdim=True) for each in (centred, values))
    return centred * torch.where(variance > COLLAPSED * power, variance, torch.inf).rsqrt()


def parts(values: Tensor) -> Iterator[slice]:
    """Return the batch in parts of a few images, small enough for a processor's cache."""
    images = max(1, len(values) * PART // max(values.numel(), 1)) if values.device.type == "cpu" else len(values)
    return (slice(start, start + images) for start in range(0, len(values), images))


def scratch(values: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Uninitialised values of the same shape, in memory that is used again: fresh pages cost more than the sums."""
    key = (values.device, dtype)
    if key not in _scratch_buffers or _scratch_buffers[key].numel() < values.numel():
        with torch.inference_mode(False):  # else it could not be used outside that mode
            _scratch_buffers[key] = torch.empty(values.numel(), dtype=dtype, device=values.device)
    return _scratch_buffers[key][: values.numel()].view(values.shape)


def in_double(values: Tensor) -> Tensor:
    """Return the values in float64, in memory that is used again."""
    return values if values.dtype == torch.float64 else scratch(values).copy_(values)

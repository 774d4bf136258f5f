"""What every measure is handed, and what it hands back."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from equitune.records.results import Measurement

if TYPE_CHECKING:
    from equitune.measures._estimate import Estimate

SplitName = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class EvaluationSet:
    """Held-out images on the model's device, in a fixed order."""

    pixels: Tensor  # (n, C, H, W) uint8
    labels: Tensor  # (n,) int64
    split: SplitName
    batch_size: int = 128

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of images in [0, 1] with their labels."""
        for start in range(0, len(self), self.batch_size):
            part = slice(start, start + self.batch_size)
            yield as_float(self.pixels[part]), self.labels[part]

    def sample(self, most: int, seed: int) -> "EvaluationSet":
        """At most so many of the images; the same ones for every model that is measured with this seed."""
        if most >= len(self):
            return self
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:most]
        order = order.sort().values.to(self.labels.device)
        return EvaluationSet(self.pixels[order], self.labels[order], self.split, self.batch_size)


@dataclass(frozen=True)
class Report:
    """The metrics of a measure, its rows for the profile over depth, and what intervals and comparisons follow from."""

    metrics: dict[str, Measurement]
    profile: list[dict[str, Any]] = field(default_factory=list)
    estimates: dict[str, "Estimate"] = field(default_factory=dict)  # by metric, for each that has a value


def as_float(pixels: Tensor) -> Tensor:
    """uint8 pixels -> images in [0, 1]."""
    return pixels.float().div_(255)

"""What every measure is handed, and what it hands back."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from equitune.data.split import as_float

if TYPE_CHECKING:
    pass

SplitName = Literal["train", "validation", "test"]


class Journal(Protocol):
    """Where a long measurement writes down how far it has come, and from where it goes on."""

    def find(self, stage: str) -> tuple[int, dict[str, Tensor]] | None:
        """Return the number of images that a stage has seen, and its sums; None: it has not begun."""

    def keep(self, stage: str, done: int, state: Callable[[], dict[str, Tensor]], *, is_last: bool) -> None:
        """Take the sums after each batch of a stage; whether to write is the journal's choice."""

    def passed(self, done: int, total: int) -> None:
        """Take how far a pass has come, after each of its batches."""


@dataclass(frozen=True)
class EvaluationSet:
    """Held-out images in a fixed order."""

    pixels: (
        Tensor  # (n, C, H, W) uint8; or floating, used as they are. May lie in the CPU's memory, or be mapped into it
    )
    labels: Tensor  # (n,) int64, on the model's device; -1 where there is none
    split: SplitName
    batch_size: int = 128
    dtype: torch.dtype = torch.float32  # of what the model is given
    journal: Journal | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """Where the model is, and where batches are given out."""
        return self.labels.device

    def batches(self, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of images in [0, 1] with their labels, from the image of that index on."""
        for start in range(first, len(self), self.batch_size):
            part = slice(start, start + self.batch_size)
            yield as_float(self.pixels[part].to(self.device), self.dtype), self.labels[part]
            if self.journal:
                self.journal.passed(min(part.stop, len(self)), len(self))

    def observed(self, stage: str, observe: Callable[[Tensor, Tensor, slice], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Numbers of every image, by name, (n, ...) each; goes on from where the journal left this stage.

        Args:
            stage: names this pass over the images in the journal.
            observe: makes such numbers of a batch, of its images, their labels and their places in the set.
        """
        found = self.journal.find(stage) if self.journal else None
        done, state = found or (0, {})
        parts = [{name: values.to(self.device) for name, values in state.items()}] if found else []
        for batch, labels in self.batches(done):
            parts.append(observe(batch, labels, slice(done, done + len(batch))))
            done += len(batch)
            if self.journal:
                self.journal.keep(stage, done, lambda: _joined(parts), is_last=done == len(self))
        return _joined(parts)

    def sample(self, most: int, seed: int) -> "EvaluationSet":
        """At most so many of the images; the same ones for every model that is measured with this seed."""
        if most >= len(self):
            return self
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:most]
        return self.subset(order.sort().values)

    def subset(self, index: Tensor) -> "EvaluationSet":
        """Return the images of these indices."""
        pixels = self.pixels[index.to(self.pixels.device)]
        return replace(self, pixels=pixels, labels=self.labels[index.to(self.device)])


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

"""Value objects of a trial: its measurements, its epochs, its result. Plain data, written as JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

from pydantic import ConfigDict, Field

from equitune.config.objectives import BY_THE_CLOCK
from equitune.config.record import Record
from equitune.config.strict import Strict

State = Literal["RUNNING", "COMPLETE", "PRUNED", "INFEASIBLE", "FAILED"]
# COMPLETE: trained and measured. PRUNED: stopped early. INFEASIBLE: no such network, diverged or out of memory; the
# sampler learns to keep away. FAILED: a bug, or a worker lost for good.

Status = Literal[
    "ok",
    "collapsed",
    "dead_channels",
    "empty_mask",
    "no_colour",
    "non_spatial",
    "non_square",
    "not_asked",
    "too_small",
    "undefined",
]


class Measurement(Strict):
    """A number with what it takes to believe it. Where it cannot be measured, a status and a reason, never a value."""

    value: float | None
    stderr: float | None = None  # None: not a sample statistic
    low: float | None = None  # of a 95 % interval over images, where one was made
    high: float | None = None
    n: int  # images
    split: Literal["train", "validation", "test", "none"]
    unit: str = "1"
    chance: float | None = None  # what unrelated images would score
    untrained: float | None = None  # the same network before training
    status: Status = "ok"
    reason: str | None = None

    @classmethod
    def proportion(cls, hits: int, n: int, split: Literal["train", "validation", "test", "none"]) -> "Measurement":
        """Return a share of images; its standard error is that of Wilson's interval, which is not 0 at 0 or 1."""
        share, z2 = hits / n, 1.0
        stderr = math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
        return cls(value=share, stderr=stderr, n=n, split=split)


class Epoch(Strict):
    """One line of a trial's `epochs.jsonl`."""

    epoch: int  # from 1
    time: float  # Unix time at its end, in seconds
    train_loss: float
    validation_loss: float
    validation_accuracy: float
    lr: float  # at its end
    train_s: float
    images_per_s: float
    metrics: dict[str, float] = {}  # at a rung: what was measured cheaply after this epoch


@dataclass(frozen=True)
class Epochs(Sequence[Epoch]):
    """The epochs of a trial that has ended, as their lines: objects take five times the memory.

    Whoever follows a study keeps those of every trial; each is parsed when it is asked for.
    """

    lines: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.lines)

    @overload
    def __getitem__(self, place: int) -> Epoch: ...
    @overload
    def __getitem__(self, place: slice) -> "Epochs": ...
    def __getitem__(self, place: int | slice) -> "Epoch | Epochs":
        if isinstance(place, slice):
            return Epochs(self.lines[place])
        return Epoch.model_validate_json(self.lines[place])


class Amount(Strict):
    """How far a layer has left its symmetry, before training and after."""

    kind: str  # the layer's class
    before: float
    after: float
    unit: str = "1"  # from 0, strict, to 1, free; else that of a width


class Verdict(Strict):
    """What is known before training of a network and a symmetry: whether it commutes with it exactly."""

    broken_by: str | None = None  # at random weights: the first module that breaks it, and its rule; None: it is exact
    loosened_by: str | None = None  # of an exact one: the first module that may break it in training, and how

    @property
    def said(self) -> str:
        """`exact`, `exact until trained: ...`, or the rule that breaks it."""
        later = f"exact until trained: {self.loosened_by}" if self.loosened_by else "exact"
        return self.broken_by or later


class TrialResult(Record):
    """How a trial ended. Written once, before the search is told; again, where that record was lost."""

    number: int
    state: State
    reason: str | None = None
    cause: str | None = None  # of INFEASIBLE, in a word: no_network, outside_bounds, diverged or out_of_memory
    metrics: dict[str, Measurement] = {}
    profile: list[dict[str, Any]] = []  # one row a layer, group element set and measure
    amounts: dict[str, Amount] = {}  # by layer, in the order of depth: those that may leave their symmetry
    exact: dict[str, Verdict] = {}  # by symmetry; empty where nothing was said
    seconds: dict[str, float] = {}  # build, fit, measure
    provenance: dict[str, str] = {}
    traceback: str | None = None

    def repeatable(self) -> "TrialResult":
        """Without what a clock has measured: on one device and software, another run has all the rest bit for bit."""
        return self.model_copy(update={"metrics": untimed(self.metrics), "seconds": {}})


class OnTest(Record):
    """`test.json`: what a trial scores on the test split, by the metric's name."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Measurement] = Field(init=False)

    @property
    def metrics(self) -> dict[str, Measurement]:
        return dict(self.__pydantic_extra__)


def untimed(metrics: Mapping[str, Measurement]) -> dict[str, Measurement]:
    """Return the metrics that no clock has measured."""
    return {name: metric for name, metric in metrics.items() if name not in BY_THE_CLOCK and metric.unit != "s"}

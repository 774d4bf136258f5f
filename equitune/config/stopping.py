"""What stops a trial before its last epoch: `search.scheduler`."""

from collections.abc import Mapping
from itertools import count, takewhile
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from equitune.config.space import Distribution, Section
from equitune.config.strict import Mistakes, Strict, checked
from equitune.config.trial import TrainingConfig


class SchedulerSpec(Strict):
    """Which trials go on after a rung: an epoch at which the objectives are measured cheaply, on few images."""

    name: Literal["mo_asha", "median", "none"]
    # Between two rungs; of mo_asha also: one of so many goes on, rounded up.
    reduction: Annotated[int, Field(ge=2, le=1_000_000)] = 3
    first_epoch: Annotated[int, Field(ge=1, le=1_000_000)] = 1  # the first rung
    # At a rung before any is stopped there; None: `reduction`, of median 5.
    min_trials: Annotated[int, Field(ge=2, le=1_000_000)] | None = None
    ties: Literal["epsilon_net", "crowding"] = "epsilon_net"  # of mo_asha: who goes first within a front
    images: Annotated[int, Field(ge=1)] = 64  # of the validation split, by each measure at a rung

    @model_validator(mode="after")
    def _fitting(self) -> "SchedulerSpec":
        mistakes = Mistakes()
        if "ties" in self.model_fields_set and self.name != "mo_asha":
            mistakes.add(("ties",), f"only mo_asha has ties to break, but the scheduler is {self.name}: leave it out")
        mistakes.raise_any()
        return self

    @property
    def fewest(self) -> int:
        """Trials at a rung before any is stopped there."""
        return self.min_trials or (self.reduction if self.name == "mo_asha" else 5)

    def rungs(self, epochs: int) -> tuple[int, ...]:
        """Return the rungs of a trial of so many epochs, all before its last one."""
        return tuple(takewhile(lambda epoch: epoch < epochs, (self.first_epoch * self.reduction**k for k in count())))

    def is_rung(self, epoch: int) -> bool:
        """Whether a trial that is long enough has a rung there."""
        return epoch in self.rungs(epoch + 1)


def read_scheduler(data: Any) -> SchedulerSpec | None:
    """Return the section `scheduler`: a name, or a mapping with one; None where nothing is stopped."""
    if data is None or isinstance(data, SchedulerSpec):
        return data
    spec = checked(SchedulerSpec, dict(data) if isinstance(data, Mapping) else {"name": data})
    return None if spec.name == "none" else spec


def idle_scheduler(scheduler: SchedulerSpec | None, training: Section) -> list[str]:
    """Return a sentence where no trial is long enough to have a rung."""
    if scheduler is None:
        return []
    epochs = [calls[0].args.get("epochs", TrainingConfig().epochs) for calls in training.branches.values()]
    ends = [
        value
        for given in epochs
        for _, value in (given.extremes() if isinstance(given, Distribution) else [((), given)])
    ]
    if scheduler.rungs(max(ends)):
        return []
    return [f"search.scheduler stops nothing: its first rung is epoch {scheduler.first_epoch}, of at most {max(ends)}"]

"""What one trial occupies of a machine: the same for all, by the size of its network, or as its memory asks for."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from equitune.config.space import Choice, Section
from equitune.config.strict import Mistakes, Strict, checked, rule, shown
from equitune.config.trial import TrainingConfig

MOST_GPUS = 1024  # of a trial


def _gpus(data: Any) -> Any:
    is_number = isinstance(data, int | float) and not isinstance(data, bool)
    if data is None or data == "auto" or (is_number and data >= 0 and (data <= 1 or float(data).is_integer())):
        if is_number and data > MOST_GPUS:
            raise rule(f"must be <= {MOST_GPUS}, but got {shown(data)}")
        return data
    raise rule(f"is a share of a GPU from 0 to 1, a whole number of GPUs, or auto, but got {shown(data)}")


class Size(Strict):
    """What a trial occupies whose network has so many parameters or more; what is left out is as for all."""

    parameters: Annotated[float, Field(ge=1)]
    cpu: Annotated[float, Field(gt=0, le=10_000)] | None = None
    gpu: Annotated[float | None, BeforeValidator(_gpus)] = None
    gpu_memory_gib: Annotated[float, Field(gt=0)] | None = None
    workers: Annotated[int, Field(ge=1, le=1024)] | None = None


def _sizes(data: Any) -> Any:
    if not isinstance(data, list | tuple):
        raise rule(f"must be a list, such as [{{parameters: 1.0e6, gpu: 0.5}}], but got {shown(data)}")
    mistakes = Mistakes()
    found = [
        size if isinstance(size, Size) else mistakes.under((index,), lambda size=size: checked(Size, size))  # type: ignore[misc]
        for index, size in enumerate(data)
    ]
    mistakes.raise_any()
    return tuple(found)


class Resources(Strict):
    """What one trial occupies, and how many may run at once (None: as many as fit).

    Several GPUs train one trial together, a worker on each; without a GPU `workers` do, which share its cores.
    `gpu: auto` gives each trial the share of a GPU that its memory is predicted to need. `gpu_memory_gib` is the most
    that a trial may allocate; None: its share of the GPU's memory. A worker that is silent for 10 minutes, and for
    `hung_after` times as long as is usual in the study, is given up as lost; None: never.
    """

    cpu: Annotated[float, Field(gt=0, le=10_000)] = 1
    gpu: Annotated[float | Literal["auto"], BeforeValidator(_gpus)] = 0
    gpu_memory_gib: Annotated[float, Field(gt=0)] | None = None
    workers: Annotated[int, Field(ge=1, le=1024)] = 1
    sizes: Annotated[tuple[Size, ...], BeforeValidator(_sizes)] = ()  # in the order of their parameters
    concurrent: Annotated[int, Field(ge=1, le=100_000)] | None = None
    hung_after: Annotated[float, Field(ge=2)] | None = 20

    @model_validator(mode="after")
    def _sensible(self) -> "Resources":
        mistakes = Mistakes()
        for index, size in enumerate(self.sizes):
            before = self.sizes[index - 1].parameters if index else 0
            if size.parameters <= before:
                sentence = f"sizes must ascend, but {size.parameters:g} comes after {before:g}: put them in order"
                mistakes.add(("sizes", index, "parameters"), sentence)
            if (size.cpu, size.gpu, size.gpu_memory_gib, size.workers) == (None, None, None, None):
                mistakes.add(("sizes", index), "asks for nothing: give it cpu, gpu, gpu_memory_gib or workers")
            if self.gpu != "auto" and size.gpu is not None and (size.gpu > 0) != (self.gpu > 0):
                sentence = f"a study runs on one kind of device, but gpu is {self.gpu:g} and here {size.gpu:g}"
                mistakes.add(("sizes", index, "gpu"), sentence)
        capped: list[tuple[Any, ...]] = [("gpu_memory_gib",)] if self.gpu_memory_gib is not None else []
        capped += [("sizes", i, "gpu_memory_gib") for i, size in enumerate(self.sizes) if size.gpu_memory_gib]
        for place in capped if self.gpu in (0, "auto") else ():
            why = "gpu is 0" if self.gpu == 0 else "gpu: auto gives each trial what it needs"
            mistakes.add(place, f"{why}: leave it out")
        if self.gpu == "auto":
            for index in (index for index, size in enumerate(self.sizes) if size.gpu is not None):
                mistakes.add(("sizes", index, "gpu"), "gpu: auto gives each trial its share: leave it out")
        crowded: list[tuple[Any, ...]] = [("workers",)] if self.workers > 1 else []
        crowded += [("sizes", i, "workers") for i, size in enumerate(self.sizes) if (size.workers or 1) > 1]
        for place in crowded if self.gpu else ():
            mistakes.add(place, "each worker has a GPU of its own: leave it out, gpu: 2 trains with two")
        mistakes.raise_any()
        return self

    def most_workers(self) -> int:
        """Of any trial."""
        gpus = [each for each in (self.gpu, *(size.gpu for size in self.sizes)) if isinstance(each, int | float)]
        return int(max(1, self.workers, *gpus, *(size.workers or 1 for size in self.sizes)))


def require_trainable(resources: Resources, training: Section) -> None:
    """Refuses what cannot train on what a trial occupies."""
    workers = resources.most_workers()
    for calls in training.branches.values():
        given = {name: calls[0].args.get(name, field.default) for name, field in TrainingConfig.model_fields.items()}
        if not resources.gpu and "bf16" in _values(given["precision"]):
            raise rule("training.precision: bf16 needs a GPU, but gpu is 0: set resources.gpu, or train in fp32")
        if workers > 1 and True in _values(given["compile"]):
            raise rule(f"training.compile: is for one worker a trial, but there are {workers}: leave it out")
        fewest = min(_values(given["batch_size"]))
        if fewest < workers:
            raise rule(
                f"training.batch_size: {workers} workers cannot share {fewest} images: raise it to {workers} or more"
            )


def _values(given: Any) -> tuple[Any, ...]:
    """Return the values, or the ends of the range, that a setting may take."""
    if isinstance(given, Choice):
        return given.choice
    return getattr(given, "bounds", (given,))


def gpu_of(resources: Resources) -> float:
    """Return the GPUs of a trial that reaches no size; where they are `auto`, the smallest share."""
    return 1 / PARTS_OF_A_GPU if resources.gpu == "auto" else resources.gpu


PARTS_OF_A_GPU = 20  # a share is rounded up to so many parts: trials of equal shares use the same warm workers

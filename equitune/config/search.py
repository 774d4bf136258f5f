"""The `search` section of a study: who proposes its trials, and when it has had enough of them."""

from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from equitune.config.plateau import Plateau
from equitune.config.space import Choice, Distribution, Scalar
from equitune.config.stopping import SchedulerSpec, read_scheduler
from equitune.config.strict import Mistakes, Strict, nested, rule, shown

GP_TRIALS = 100  # with more, proposing a trial takes seconds, and grows

Design = Literal["factorial", "one_at_a_time", "leave_one_out", "toggles"]


class SearchSpec(Strict):
    """Who proposes the trials, and when the study has had enough of them."""

    sampler: Literal["tpe", "random", "qmc", "grid", "nsga2", "nsga3", "gp", "cmaes"] = "tpe"
    trials: Annotated[int, Field(ge=1, le=1_000_000)] = 20  # of a design: cells times replicates
    replicates: Annotated[int, Field(ge=1, le=10_000)] = 1  # of each cell of a design, with seeds paired over the cells
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    population: Annotated[int, Field(ge=2, le=1_000_000)] | None = None  # trials a generation of nsga2 and nsga3
    design: Design | None = None  # a list of trials in place of a sampler; `sampler: grid` is `design: factorial`
    baseline: dict[str, Scalar] | None = None  # by parameter: what others are compared with; trained first
    best: dict[str, Scalar] | None = None  # of toggles: what is taken apart; or STUDY/NUMBER, looked up by then
    scheduler: Annotated[SchedulerSpec | None, BeforeValidator(read_scheduler)] = None  # stops trials on their way
    hours: Annotated[float, Field(gt=0)] | None = None  # that drivers are at work
    gpu_hours: Annotated[float, Field(gt=0)] | None = None  # GPUs times hours of trials
    hypervolume: Annotated[float, Field(gt=0)] | None = None  # of the front: no more trials when it is reached
    plateau: Annotated[Plateau, nested(Plateau)] | None = None  # no more trials when it hardly grows

    @field_validator("baseline", "best", mode="before")
    @classmethod
    def _by_parameter(cls, data: Any, field: ValidationInfo) -> Any:
        if data is not None and not isinstance(data, dict):
            or_trial = ", or STUDY/NUMBER of a recorded trial," if field.field_name == "best" else ","
            raise rule(f"must be a mapping from parameters to values{or_trial} but got {shown(data)}")
        mistakes = Mistakes()
        for name, value in (data or {}).items():
            if isinstance(value, dict | list):
                sentence = f"takes one value, but got {shown(value)}: write whole names, such as {name}.NAME: 8"
                mistakes.add((name,), sentence)
        mistakes.raise_any()
        return data

    @property
    def population_size(self) -> int:
        """Trials a generation. Optuna's default of 50 would leave a study of some dozens of trials to chance."""
        return self.population or max(8, self.trials // 8)

    @model_validator(mode="after")
    def _fitting(self) -> "SearchSpec":
        mistakes = Mistakes()
        if self.population and self.sampler not in ("nsga2", "nsga3"):
            sentence = f"only nsga2 and nsga3 have generations, but the sampler is {self.sampler}: leave it out"
            mistakes.add(("population",), sentence)
        if self.scheduler and (self.design or self.sampler == "grid"):
            mistakes.add(("scheduler",), "a design trains each of its trials to the end: leave the scheduler out")
        mistakes.raise_any()
        return self

    def identity(self) -> dict[str, object]:
        """Return what makes two searches the same one: all but the budget."""
        given: dict[str, object] = {"sampler": self.sampler, "seed": self.seed, "population": self.population}
        given |= {"baseline": self.baseline, "best": self.best}
        given |= {"design": self.design} if self.design != "factorial" else {}
        given["scheduler"] = self.scheduler and self.scheduler.model_dump(mode="json")
        return {name: value for name, value in given.items() if value is not None}

    def notices(self, parameters: Mapping[str, Distribution], branching: Collection[str]) -> Iterator[str]:
        """Yield what is allowed but hardly meant.

        Args:
            parameters: what the study varies.
            branching: those of them that not every trial has.
        """
        if self.sampler in ("nsga2", "nsga3") and self.population_size > self.trials / 3:
            yield (
                f"search.population: a generation of {self.population_size} trials is above a third of the "
                f"{self.trials}: the first one is random, and little is left to learn from it"
            )
        if self.sampler == "gp" and self.trials > GP_TRIALS:
            yield (
                f"search.sampler: gp takes seconds to propose a trial, and longer with each: beyond {GP_TRIALS} trials "
                "tpe does as well"
            )
        budgets = [name for name in ("hours", "gpu_hours", "hypervolume", "plateau") if getattr(self, name) is not None]
        if budgets and "trials" not in self.model_fields_set and not self.design:
            yield f"search.trials is {self.trials} where nothing is said: the study ends there, if not by {budgets[0]}"
        at_random = set(branching) if self.sampler in ("nsga2", "nsga3", "gp", "cmaes") else set()
        if self.sampler == "cmaes":
            at_random |= {name for name, values in parameters.items() if isinstance(values, Choice)}
        if at_random:
            names = ", ".join(name for name in parameters if name in at_random)
            yield f"search.sampler: {self.sampler} draws at random {names}: tpe learns choices and branches, too"


def check_objectives(search: SearchSpec, objectives: Collection[str]) -> None:
    """Refuses a sampler that cannot search for so many objectives.

    Raises:
        ValidationError: cmaes with several.
    """
    mistakes = Mistakes()
    if search.sampler == "cmaes" and len(objectives) > 1:
        several = f"cmaes searches for one objective, but the study has {len(objectives)}: take tpe, gp or nsga2"
        mistakes.add(("search", "sampler"), several)
    mistakes.raise_any()

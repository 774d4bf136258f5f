"""A study: one question, one YAML file."""

import hashlib
import json
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from itertools import product
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from equitune import catalog
from equitune.config.address import data_address
from equitune.config.budget import check_budgets
from equitune.config.cell import Cell
from equitune.config.defaults import stated
from equitune.config.design import NOTHING, WITHOUT, components, listed, notices, require_distinct, settled, without
from equitune.config.name import study_name
from equitune.config.objectives import (
    BEFORE_TRAINING,
    Bound,
    Direction,
    Objective,
    declared_metrics,
    idle_bounds,
    largest_hypervolume,
    read_constraints,
    read_objectives,
    reported,
)
from equitune.config.resources import Resources, require_trainable
from equitune.config.search import SearchSpec, check_objectives
from equitune.config.space import (
    Call,
    Choice,
    Distribution,
    Pick,
    Section,
    component_map_section,
    component_section,
    constant_call,
    filled,
    settings_section,
)
from equitune.config.stopping import idle_scheduler
from equitune.config.strict import Mistakes, Strict, checked, mapping_with_text_keys, nested, rule, shown
from equitune.config.trial import DataConfig, InputConfig, TrainingConfig, TrialConfig

MOST_MEASURES = 100


def _data_config(data: Any) -> DataConfig:
    data = {"name": data} if isinstance(data, str) else mapping_with_text_keys(data, "data")
    common = {key: value for key, value in data.items() if key in DataConfig.model_fields and key != "args"}
    rest = {key: value for key, value in data.items() if key not in common}
    mistakes = Mistakes()
    config = mistakes.under((), lambda: checked(DataConfig, common))
    if config is None:
        mistakes.raise_any()
        raise AssertionError
    call = constant_call("dataset", {"name": config.name, **rest})
    for name, place in (("root", config.root), *call.args.items()):
        if name in ("root", "path", "test_path") and isinstance(place, str):
            mistakes.under((name,), partial(data_address, place))
    mistakes.raise_any()
    if call.args.get("stream") and config.task != "class":
        raise rule(f"task: {config.task} is made of images in memory: leave stream out, or the task")
    return config.model_copy(update={"args": call.args})


def _measures(data: Any) -> tuple[Call, ...]:
    if not isinstance(data, list):
        raise rule(f"measures must be a list, but got {shown(data)}")
    if len(data) > MOST_MEASURES:
        raise rule(f"a study has at most {MOST_MEASURES} measures, but got {len(data):,}")
    mistakes, calls = Mistakes(), []
    for index, item in enumerate(data):
        calls.append(mistakes.under((index,), partial(constant_call, "measure", item)))
    mistakes.raise_any()
    found = tuple(call for call in calls if call is not None)
    reporting: dict[str, int] = {}
    for index, call in enumerate(found):
        metrics = declared_metrics((call,))
        if twice := metrics.keys() & reporting.keys():
            earlier = reporting[min(twice)]
            mistakes.add((index,), f"reports {min(twice)}, as measures.{earlier} does: keep one of the two")
        reporting = dict.fromkeys(metrics, index) | reporting
    mistakes.raise_any()
    return found


def _input(data: Any) -> Section | None:
    return None if data is None else settings_section(InputConfig, "input", data)


def _part(name: str) -> Callable[[Any, ValidationInfo], Section | None]:
    """Read the section of a component that becomes part of the model, which must take it."""

    def read(data: Any, known: ValidationInfo) -> Section | None:
        if data is None:
            return None
        section = component_section(catalog.PARTS[name], name, data)
        mistakes = Mistakes()
        if "model" in known.data:
            for model, part in product(_components(known.data["model"]), _components(section)):
                fitting = catalog.parts(model, name)
                if part not in fitting:
                    fits = (
                        f"it takes {', '.join(fitting)}" if fitting else f"it brings its own layers: leave {name} out"
                    )
                    location = ("choose", part) if section.is_choice else ()
                    mistakes.add(location, f"model {model} has no layer for {name} {part}: {fits}")
        mistakes.raise_any()
        return section

    return read


def _resources(data: Any, known: ValidationInfo) -> Resources:
    resources = data if isinstance(data, Resources) else checked(Resources, data)
    if training := known.data.get("training"):
        require_trainable(resources, training)
    return resources


def _components(section: Section) -> list[str]:
    return [calls[0].name for calls in section.branches.values()]


def _chosen(part: str, section: Section | None, model: str, pick: Pick) -> Call | None:
    """Return what stands for a part of a model: the study's, else the model's own, where it has such a part at all."""
    fitting = catalog.parts(model, part)
    if section is None and not fitting:
        return None
    return filled(catalog.PARTS[part], section.suggest(pick)[0] if section else Call(name=fitting[0]))


class StudySpec(Strict):
    """A whole study, checked: each name exists, each argument fits its component, each range is in order."""

    study: str
    data: Annotated[DataConfig, BeforeValidator(_data_config)] = Field(default_factory=lambda: _data_config({}))
    input: Annotated[Section | None, BeforeValidator(_input)] = None
    model: Annotated[Section, BeforeValidator(lambda data: component_section("model", "model", data))]
    prior: Annotated[Section | None, BeforeValidator(_part("prior"))] = None
    downsampler: Annotated[Section | None, BeforeValidator(_part("downsampler"))] = None
    stem: Annotated[Section | None, BeforeValidator(_part("stem"))] = None
    augmentation: Annotated[
        Section, BeforeValidator(lambda data: component_map_section("augmentation", "augmentation", data))
    ] = Section(path="augmentation", branches={"": ()}, holds_many=True)
    averaging: Annotated[
        Section | None, BeforeValidator(lambda data: data and component_section("averaging", "averaging", data))
    ] = None
    training: Annotated[Section, BeforeValidator(lambda data: settings_section(TrainingConfig, "training", data))] = (
        Section(path="training", branches={"": (Call(name="training"),)})
    )
    measures: Annotated[tuple[Call, ...], BeforeValidator(_measures)] = ()
    objectives: Annotated[dict[str, Objective], BeforeValidator(read_objectives)]
    constraints: Annotated[dict[str, Bound], BeforeValidator(read_constraints)] = {}
    search: Annotated[SearchSpec, nested(SearchSpec)] = SearchSpec()
    resources: Annotated[Resources, BeforeValidator(_resources)] = Field(default=Resources(), validate_default=True)

    @field_validator("study")
    @classmethod
    def _nameable(cls, name: str) -> str:
        return study_name(name)

    @model_validator(mode="after")
    def _designed(self) -> "StudySpec":
        """Baseline, best and design are checked against the space; a design's trials are counted."""
        check_objectives(self.search, self.objectives)
        study = self.model_copy(update={"search": settled(self.search, self.sections())})
        if study.search.design not in (None, "factorial"):
            require_distinct((cell, study.suggest(at, lambda key, _: cell[key])) for at, cell in enumerate(study.cells))  # noqa: B023
        without = [name for name in self.objectives if name not in self.references]
        largest = largest_hypervolume(self.objectives, self.measures)
        check_budgets(study.search, without, bool(self.resources.gpu), largest)
        return study

    @cached_property
    def cells(self) -> list[Cell]:
        """Of a design: the combinations of values, each of which is trained once a replicate."""
        return listed(self.search, self.sections())

    def given(self, place: int) -> Cell | None:
        """Return the values of the trial at a place in the list of trials, where they do not come from a sampler: a
        design's
        cells, replicate by replicate; else the baseline, which is first."""
        if self.search.design:
            return self.cells[place % len(self.cells)]
        return self.search.baseline if place == 0 else None

    @property
    def directions(self) -> dict[str, Direction]:
        """The objectives in their order, each with the direction that is better."""
        return {name: objective.direction for name, objective in self.objectives.items()}

    @property
    def references(self) -> dict[str, float]:
        """The objectives that have a reference, each with its value."""
        given = {name: objective.reference for name, objective in self.objectives.items()}
        return {name: reference for name, reference in given.items() if reference is not None}

    def metrics(self) -> dict[str, Direction]:
        """Every metric that a trial of this study reports, with the direction that is better."""
        return reported(self.measures)

    def parameters(self) -> dict[str, Distribution]:
        """Return what the search varies, by parameter name; those of a branch are used only where it is chosen."""
        left_out = {WITHOUT: self._left_out()} if self.search.design == "leave_one_out" else {}
        return left_out | dict(pair for section in self.sections() for pair in section.parameters())

    def _left_out(self) -> Choice:
        return Choice(choice=(NOTHING, *components(self.sections(), self.search.baseline or {})))

    def suggest(self, number: int, pick: Pick, cell: int | None = None) -> TrialConfig:
        """Return the trial of that number: `pick(name, distribution)` supplies the value of each parameter it needs.

        `cell` is its place in the list of a design, which is its number where none is given.
        """
        params: Cell = {}
        place = number if cell is None else cell
        replicate = place // len(self.cells) if self.search.design else 0

        def noted(name: str, distribution: Distribution) -> Any:
            params[name] = pick(name, distribution)
            return params[name]

        arm = self._arm(noted)
        given = arm.input.suggest(noted)[0].args if arm.input else {}
        model = arm.model.suggest(noted)[0]
        prior, downsampler, stem = (_chosen(part, getattr(arm, part), model.name, noted) for part in catalog.PARTS)
        augmentation = arm.augmentation.suggest(noted)
        averaging = arm.averaging.suggest(noted)[0] if arm.averaging else None
        training = checked(TrainingConfig, arm.training.suggest(noted)[0].args)
        stopping = self.search.scheduler
        return TrialConfig(
            study=self.study,
            number=number,
            replicate=replicate,
            cell=place if self.search.design else None,
            seed=derived_seed(self.search.seed, 0 if self.search.design else number, replicate),
            params=params,
            data=self.data,
            input=checked(InputConfig, given),
            model=filled("model", model),
            prior=prior,
            downsampler=downsampler,
            stem=stem,
            augmentation=tuple(filled("augmentation", call) for call in augmentation),
            averaging=filled("averaging", averaging) if averaging else None,
            training=training,
            measures=self.measures,
            bounds={name: bound for name, bound in self.constraints.items() if name in BEFORE_TRAINING},
            rungs=stopping.rungs(training.epochs) if stopping else (),
            rung_images=stopping.images if stopping else TrialConfig.model_fields["rung_images"].default,
            rung_metrics=tuple(dict.fromkeys([*self.objectives, *self.constraints])),
            device="cuda" if self.resources.gpu else "cpu",
        )

    def _arm(self, pick: Pick) -> "StudySpec":
        """Return the study itself; of leave_one_out, what it is without the line of the component that is picked."""
        if self.search.design != "leave_one_out":
            return self
        component = str(pick(WITHOUT, self._left_out()))
        path = component.partition(".")[0]
        return self if component == NOTHING else self.model_copy(update={path: without(getattr(self, path), component)})

    def notices(self) -> list[str]:
        """Return what is allowed but does nothing."""
        found = list(notices(self.search))
        for calls in self.augmentation.branches.values():
            for call in calls:
                strength = catalog.describe("augmentation", call.name).constants["STRENGTH"]
                if filled_value(call, strength) == 0:
                    found.append(f"augmentation.{call.name} does nothing at {strength}: 0")
        if self._penalises() and not self.averaging:
            for name, part in self._without_amounts():
                found.append(f"training.symmetry_penalty does nothing with {name} {part}, whose layers have no amount")
        found += idle_bounds(self.constraints, self.measures)
        if not self.parameters():
            found.append("nothing varies: every trial trains the same configuration with another seed")
        found += self.search.notices(self.parameters(), self._branching())
        found += idle_scheduler(self.search.scheduler, self.training)
        return found

    def given_constraints(self) -> dict[str, dict[str, float]]:
        """Return the constraints as plain data: metric -> `at_most`, `at_least` or both."""
        return {name: bound.given() for name, bound in self.constraints.items()}

    def identity(self) -> dict[str, Any]:
        """Return what makes two studies the same search: all but the budget, the resources and where the data lie."""
        return {
            "data": self.data.model_dump(
                mode="json", exclude={"root"} | ({"task"} if self.data.task == "class" else set())
            ),
            **{section.path: section.plain() for section in self.sections()},
            "measures": [call.model_dump(mode="json") for call in self.measures],
            "objectives": self.directions,
            **({"constraints": self.given_constraints()} if self.constraints else {}),
            "search": self.search.identity(),
        }

    def fingerprint(self) -> str:
        """Return a hash of the identity, of which arguments that have their default are left out."""
        return hashlib.sha256(json.dumps(stated(self.identity()), sort_keys=True).encode()).hexdigest()[:16]

    def _branching(self) -> set[str]:
        """Return the parameters that a trial has only where their branch is chosen."""
        choices = [section for section in self.sections() if len(section.branches) > 1]
        return {name for section in choices for label in section.branches for name, _ in section.parameters_of(label)}

    def _penalises(self) -> bool:
        """Whether a trial may add a penalty to its loss."""
        return any(calls[0].args.get("symmetry_penalty", 0) != 0 for calls in self.training.branches.values())

    def _without_amounts(self) -> Iterator[tuple[str, str]]:
        """Yield the priors, and the models without one, whose layers cannot leave their symmetry by degrees."""
        has_amount = {
            name for name in catalog.names("prior") if "learned" in catalog.describe("prior", name).parameters
        }
        if self.stem and has_amount.issuperset(_components(self.stem)):
            return
        for model in _components(self.model):
            names = _components(self.prior) if self.prior else catalog.parts(model, "prior")[:1]
            yield from (("model", model) for _ in range(not names))
            for name in names:
                if name not in has_amount:
                    yield "prior", name

    def network_sections(self) -> list[Section]:
        """Return the sections that decide which network a trial trains."""
        return [section for section in self.sections() if section.path not in ("augmentation", "training")]

    def sections(self) -> list[Section]:
        """Return the parts of the study that may hold parameters, in the order in which a trial asks for them."""
        parts = (self.input, self.model, self.prior, self.downsampler, self.stem)
        return [part for part in (*parts, self.augmentation, self.averaging, self.training) if part]


def filled_value(call: Call, key: str) -> Any:
    """Return the value of an argument of an augmentation, its default where the call says nothing of it."""
    return call.args.get(key, catalog.describe("augmentation", call.name).parameters[key][1])


def derived_seed(study_seed: int, number: int, replicate: int = 0) -> int:
    """Return a trial's seed: a function of the study's, the trial's number and the replicate, and of nothing else."""
    digest = hashlib.sha256(f"{study_seed}/{number}/{replicate}".encode()).digest()
    return int.from_bytes(digest[:4], "big")

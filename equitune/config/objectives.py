"""What a study asks of its trials: objectives, which way each is better, and constraints, which bound a metric."""

import math
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationInfo, model_validator

from equitune import catalog
from equitune.config.space import Call, filled
from equitune.config.strict import Mistakes, Strict, checked, mapping_with_text_keys, rule, shown

Direction = Literal["maximize", "minimize"]

# What every trial reports, beside what its measures declare: metric -> the direction that is better.
TRIAL_METRICS: dict[str, Direction] = {
    "accuracy": "maximize",
    "loss": "minimize",
    "parameters": "minimize",
    "multiply_adds": "minimize",
    "seconds": "minimize",
}
BEFORE_TRAINING = ("parameters", "multiply_adds")  # what is known of a network that has not trained
BY_THE_CLOCK = ("seconds",)  # what another run of the same trial does not repeat bit for bit
UNMEASURED = 1.0  # how far a metric without a value is from its bounds: as far as a share can be

_COSTS = tuple(name for name in TRIAL_METRICS if name != "accuracy")


class Objective(Strict):
    """A metric that the search makes better."""

    direction: Direction
    reference: float | None = None  # the worst value that still counts in a hypervolume; None: the worst of any trial


class Bound(Strict):
    """Where the values of a metric may lie; both bounds belong to them."""

    at_most: float | None = None
    at_least: float | None = None

    @model_validator(mode="after")
    def _can_hold(self) -> "Bound":
        if self.at_most is None and self.at_least is None:
            raise rule("needs a bound: at_most or at_least, such as {at_most: 0.1}")
        if self.at_most is not None and self.at_least is not None and self.at_least > self.at_most:
            raise rule(
                f"at_least <= at_most must hold, but got at_least={said(self.at_least)}, at_most={said(self.at_most)}"
            )
        return self

    def violation(self, value: float | None) -> float:
        """How far a value lies outside, in the metric's unit; at most 0 within the bounds, UNMEASURED without one."""
        if value is None or not math.isfinite(value):
            return UNMEASURED
        above = value - self.at_most if self.at_most is not None else -math.inf
        below = self.at_least - value if self.at_least is not None else -math.inf
        return max(above, below)

    def why_not(self, value: float | None) -> str | None:
        """Return what is wrong with a value, such as `0.62 is below at_least 0.7`; None: nothing."""
        if value is None or not math.isfinite(value):
            bounds = " and ".join(f"{name} {said(bound)}" for name, bound in self.given().items())
            return f"it has no value, which counts as outside {bounds}"
        if self.at_most is not None and value > self.at_most:
            return f"{said(value)} is above at_most {said(self.at_most)}"
        if self.at_least is not None and value < self.at_least:
            return f"{said(value)} is below at_least {said(self.at_least)}"
        return None

    def given(self) -> dict[str, float]:
        """Return the bounds that were given, by name."""
        return self.model_dump(exclude_none=True)


def said(number: float) -> str:
    """Return a number within a sentence: `2,500,000`, `0.62`."""
    return f"{number:,.0f}" if float(number).is_integer() else f"{number:.6g}"


def read_objectives(data: Any, known: ValidationInfo) -> dict[str, Objective]:
    """Return the section `objectives`: metric -> direction, or a mapping of direction and reference."""
    given = mapping_with_text_keys(data, "objectives")
    if not given:
        raise rule("a study needs at least one objective, such as {accuracy: maximize}")
    mistakes, objectives = Mistakes(), {}
    for name, value in given.items():
        objective = mistakes.under((name,), lambda value=value: _objective(value))  # type: ignore[misc]
        if objective is None or "measures" not in known.data:
            continue
        objectives[name] = objective
        metrics = reported(known.data["measures"])
        if name not in metrics:
            mistakes.add((name,), catalog.unknown("metric", name, metrics) + _who_reports(name))
        elif objective.direction != metrics[name]:
            mistakes.add((name,), f"better is to {metrics[name]}, but got {shown(objective.direction)}")
        elif sentence := _useless_reference(name, objective, known.data["measures"]):
            mistakes.add((name, "reference"), sentence)
    mistakes.raise_any()
    return objectives


def read_constraints(data: Any, known: ValidationInfo) -> dict[str, Bound]:
    """Return the section `constraints`: metric -> its bounds."""
    mistakes, constraints = Mistakes(), {}
    for name, value in mapping_with_text_keys(data, "constraints").items():
        bound = mistakes.under((name,), lambda value=value: checked(Bound, value))  # type: ignore[misc]
        if "measures" not in known.data:
            continue
        metrics = reported(known.data["measures"])
        if name not in metrics:
            mistakes.add((name,), catalog.unknown("metric", name, metrics) + _who_reports(name))
        elif bound is not None:
            constraints[name] = bound
            low, high = reachable(name, known.data["measures"])
            if bound.at_least is not None and bound.at_least > high:
                mistakes.add((name, "at_least"), f"{name} is never above {said(high)}, but got {said(bound.at_least)}")
            if bound.at_most is not None and bound.at_most < low:
                mistakes.add((name, "at_most"), f"{name} is never below {said(low)}, but got {said(bound.at_most)}")
    mistakes.raise_any()
    return constraints


def idle_bounds(constraints: Mapping[str, Bound], measures: Iterable[Call]) -> list[str]:
    """Return a sentence for each bound that every value keeps."""
    found = []
    for name, bound in constraints.items():
        low, high = reachable(name, measures)
        if bound.at_least is not None and bound.at_least <= low:
            found.append(f"constraints.{name} does nothing at at_least: {said(bound.at_least)}")
        if bound.at_most is not None and bound.at_most >= high:
            found.append(f"constraints.{name} does nothing at at_most: {said(bound.at_most)}")
    return found


def reported(measures: Iterable[Call]) -> dict[str, Direction]:
    """Every metric of a trial with these measures, with the direction that is better."""
    return TRIAL_METRICS | declared_metrics(measures)


def declared_metrics(measures: Iterable[Call]) -> dict[str, Direction]:
    """Return the metrics that these measures report, each with the direction that is better."""
    metrics: dict[str, Direction] = {}
    for call in measures:
        constants = catalog.describe("measure", call.name).constants
        of_group = constants.get("GROUP_METRICS", {}).get(call.args.get("group"), {})
        metrics |= {name.format(**call.args): better for name, better in (constants["METRICS"] | of_group).items()}
    return metrics


def reachable(metric: str, measures: Iterable[Call]) -> tuple[float, float]:
    """Return the lowest and the highest value that a metric can have, infinite where that is not known."""
    shares = {"accuracy"}
    for call in measures:
        declared = catalog.describe("measure", call.name).constants.get("SHARES", ())
        shares |= {name.format(**call.args) for name in declared}
    if metric in shares:
        return 0.0, 1.0
    return (0.0, math.inf) if metric in _COSTS else (-math.inf, math.inf)


def largest_hypervolume(objectives: Mapping[str, Objective], measures: Iterable[Call]) -> float:
    """Return what no front can exceed, below references that each objective has; infinite where that is not known."""
    sides = []
    for name, objective in objectives.items():
        low, high = reachable(name, measures)
        sides.append(abs((high if objective.direction == "maximize" else low) - (objective.reference or 0.0)))
    return math.prod(sides)


def _objective(data: Any) -> Objective:
    if isinstance(data, Mapping):
        return checked(Objective, dict(data))
    if data not in get_args(Direction):
        raise rule(f"must be maximize or minimize, but got {shown(data)}")
    return Objective(direction=data)


def _useless_reference(name: str, objective: Objective, measures: Iterable[Call]) -> str | None:
    """Return what is wrong with a reference that no value can be better than."""
    low, high = reachable(name, measures)
    given = objective.reference
    if given is not None and (given >= high if objective.direction == "maximize" else given <= low):
        best = "above" if objective.direction == "maximize" else "below"
        return f"is the worst value that still counts, but {name} is never {best} {said(given)}: give a worse one"
    return None


def _who_reports(metric: str) -> str:
    """Return a hint at the measure that would report a metric, were it listed, and at what it must be told."""
    for name in catalog.names("measure"):
        parameters = catalog.describe("measure", name).parameters
        options = {key: get_args(kind) for key, (kind, _) in parameters.items() if get_origin(kind) is Literal}
        for values in product(*options.values()):
            call = filled("measure", Call(name=name, args=dict(zip(options, values, strict=True))))
            if metric in declared_metrics((call,)):
                told = [f"{key}: {call.args[key]}" for key in options if call.args[key] != parameters[key][1]]
                return f"; it is reported by measure {' with '.join([name, *told])}: add it under measures"
    return ""

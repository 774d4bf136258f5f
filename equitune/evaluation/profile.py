"""From statistics of pairs to what is reported: a row for each layer and set, and the network's metrics."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from equitune.evaluation.estimate import Estimate, measured, unmeasured
from equitune.evaluation.floor import numeric_floor, verdict
from equitune.evaluation.image_set import EvaluationSet
from equitune.evaluation.pair_statistics import PairStatistics, Summary
from equitune.evaluation.pairs import Key, Plan
from equitune.evaluation.report import Report
from equitune.groups.d4 import Turn
from equitune.groups.element import Element
from equitune.groups.layout import Layout
from equitune.results.values import Measurement, Status

RELATIVE_DEPTHS = (0.25, 0.5, 0.75, 1.0)
DEFINITIONS = "1"  # the version of the definitions; a change of any number raises it


@dataclass(frozen=True)
class Profile:
    """Everything that was compared, and how to read it.

    Attributes:
        statistics: `trained`, and `untrained` where there is such a control, -> statistics of pairs.
        fitted: with matched channels, their correlation on the images that they were fitted on.
        total_stride: in pixels, the smallest shift under which every measured grid maps to itself.
    """

    group: str
    action: str
    plan: Plan
    images: EvaluationSet
    statistics: Mapping[str, Mapping[Key, PairStatistics]]
    fitted: Mapping[Key, float]
    total_stride: int

    def report(self, metrics: list[str]) -> Report:
        """Return the rows, and the metrics of these names: GROUP_QUANTITY, GROUP_SET_QUANTITY or
        GROUP_output_QUANTITY.
        """
        estimates: dict[str, Estimate] = {}
        found = {name: self._metric(name, estimates) for name in metrics}
        rows = [
            self._row(layer, name, estimates)
            for name, elements in self.plan.sets.items()
            if elements
            for layer in self.plan.layers
        ]
        return Report(found, rows, estimates, self._controls())

    def _metric(self, name: str, estimates: dict[str, Estimate]) -> Measurement:
        """Return the mean of a quantity over (layer, set) pairs; without a value where one of them has none."""
        quantity, chosen = self._chosen(name.removeprefix(f"{self.group}_"))
        status, reason = self._problem(quantity, chosen, "trained")
        if status != "ok":
            return unmeasured(self.images, status, reason)
        estimates[name] = estimate = self._estimate(quantity, chosen, "trained")
        chance = self._mean_chance(quantity, chosen)
        return measured(estimate, self.images, chance=chance, untrained=self._control(quantity, chosen))

    def _chosen(self, name: str) -> tuple[str, list[tuple[str, str]]]:
        """Return the quantity and the (layer, set) pairs that a metric's name stands for."""
        sets = list(self.plan.sets)
        output = list(self.plan.layers)[-1]
        if name.startswith("output_"):
            return name.removeprefix("output_"), [
                (output, each) for each in sets if self.plan.sets[each] and "/" not in each
            ]
        for each in sets[1:]:
            if name.startswith(f"{each}_"):
                return name.removeprefix(f"{each}_"), [(layer, each) for layer in self._at_depths(each)]
        if name in Summary.QUANTITIES:
            return name, [(layer, sets[0]) for layer in self._at_depths(sets[0])]
        return "", []

    def _at_depths(self, name: str) -> list[str]:
        """Return the layers at 1/4, 1/2, 3/4 and the end of those that have a grid on which the set can be measured."""
        spatial = [
            layer
            for layer, layout in self.plan.layers.items()
            if layout.is_spatial and (layer, name) not in self.plan.problems
        ]
        return at_depths(spatial)

    def _row(self, layer: str, name: str, estimates: dict[str, Estimate]) -> dict[str, Any]:
        """One layer under one set, with everything that makes its numbers readable."""
        layout, order, elements = self.plan.layers[layer], list(self.plan.layers), self.plan.sets[name]
        status, reason = self._problem("error", [(layer, name)], "trained")
        action = self.action if "/" not in name else "declared"
        places = [self.plan.places.get((layer, g)) for g in elements]
        row: dict[str, Any] = {
            "measure": "equivariance",
            "definitions": DEFINITIONS,
            "group": self.group,
            "layer": layer,
            "depth": (order.index(layer) + 1) / len(order),
            "set": name,
            "elements": [g.label for g in elements],
            "protocol": elements[0].protocol,
            "action": _action(action, layout) if layer != order[-1] else "trivial",
            "interpolated": any(place is not None and not place.permutes for place in places),
            "stride": layout.stride,
            "n": len(self.images),
            "split": self.images.split,
            "dtype": str(self.images.dtype).removeprefix("torch."),
            "status": status,
            "reason": reason,
        }
        if status != "ok":
            return row
        row |= self._values(layer, name, estimates) | self._grid(layer, elements)
        summaries = self._summaries([(layer, name)], "trained")
        distance, floor = max(each.relative_distance() for each in summaries), self._floor
        row |= {
            "relative_distance": distance,
            "floor": floor,
            "verdict": verdict(distance, floor),
            "positions": summaries[0].positions,
            "wrong_error": summaries[0].wrong_error(),
            "dead_channels": summaries[0].dead_channels(),
            "dropped_channels": summaries[0].dropped_channels(),
        }
        if layout.is_spatial and "invariance_correlation" in row:
            row["correlation_over_invariance"] = row["correlation"] - row["invariance_correlation"]
        if row["action"] == "matched":
            fitted = [self.fitted[layer, name, index] for index in range(len(elements))]
            row["correlation_fitted"] = math.fsum(fitted) / len(fitted)
        return row

    def _values(self, layer: str, name: str, estimates: dict[str, Estimate]) -> dict[str, Any]:
        """Every quantity with its standard error, chance level and untrained control."""
        row: dict[str, Any] = {}
        chosen = [(layer, name)]
        for quantity in Summary.QUANTITIES:
            if self._problem(quantity, chosen, "trained")[0] != "ok":
                continue
            estimate = self._estimate(quantity, chosen, "trained")
            estimates[f"{layer}/{name}/{quantity}"] = estimate
            row |= {quantity: estimate.value, f"{quantity}_stderr": estimate.stderr}
            chance, control = self._mean_chance(quantity, chosen), self._control(quantity, chosen)
            if quantity.endswith("correlation") and chance is not None:
                row[f"{quantity}_chance"] = chance
                if chance < 1:
                    row[f"{quantity}_above_chance"] = (estimate.value - chance) / (1 - chance)
            if control:
                row[f"untrained_{quantity}"] = control.value
        return row

    def _grid(self, layer: str, elements: Sequence[Element]) -> dict[str, Any]:
        """Whether the grids alone allow exactness, and otherwise the module whose strides forbid it."""
        if not all(self.plan.places[layer, g].permutes for g in elements):
            return {"grid_exact": False}
        if not all(isinstance(g, Turn) for g in elements):
            return {"grid_exact": True}
        if layer not in self.plan.uneven:
            return {"grid_exact": None}
        module = self.plan.uneven[layer]
        return {"grid_exact": module is None, "grid_broken_by": module}

    def _controls(self) -> dict[str, Any]:
        """Return what holds for the whole run: the numeric floor, and the first layer that is not exact."""
        found: dict[str, Any] = {"floor": self._floor, "dtype": str(self.images.dtype).removeprefix("torch.")}
        for name in self.plan.sets:
            for layer in self.plan.layers:
                if self._problem("error", [(layer, name)], "trained")[0] == "ok":
                    summaries = self._summaries([(layer, name)], "trained")
                    distance = max(each.relative_distance() for each in summaries)
                    if verdict(distance, self._floor) != "exact":
                        found[f"{name}_broken_at"] = layer
                        break
        return found

    @property
    def _floor(self) -> float:
        return numeric_floor(self.images.device, self.images.dtype)

    def _problem(self, quantity: str, chosen: list[tuple[str, str]], stage: str) -> tuple[Status, str | None]:
        """Return the first reason why one of the (layer, set) pairs has no number, or `ok`."""
        if not quantity:
            return (
                "not_asked",
                "this set is measured with all_sets: true only (fractional shifts: under the protocol roll)",
            )
        if not chosen:
            return "non_spatial", "no layer has a grid of 3 x 3 or more on which the elements can act"
        for layer, name in chosen:
            if problem := self.plan.problems.get((layer, name)):
                return problem.status, f"{layer}: {problem}"  # type: ignore[return-value]
            if not self.plan.sets[name]:
                return "undefined", self._none_of(name)
            for summary in self._summaries([(layer, name)], stage):
                status, reason = summary.status(quantity)
                if status != "ok":
                    return status, f"{layer}: {reason}"
        return "ok", None

    def _none_of(self, name: str) -> str:
        """Why a set is empty, and what to do about it."""
        stride, side = self.total_stride, self.images.pixels.shape[-1]
        advice = "" if stride == 1 else ": measure layers of smaller strides" + ", or larger images" * (stride >= side)
        return f"no {name} element exists for a total stride of {stride} px on images of {side} px{advice}"

    def _summaries(self, chosen: list[tuple[str, str]], stage: str) -> list[Summary]:
        return [
            self.statistics[stage][layer, name, index].summary()
            for layer, name in chosen
            for index in range(len(self.plan.sets[name]))
        ]

    def _estimate(self, quantity: str, chosen: list[tuple[str, str]], stage: str) -> Estimate:
        return Estimate.average([summary.estimate(quantity) for summary in self._summaries(chosen, stage)])

    def _control(self, quantity: str, chosen: list[tuple[str, str]]) -> Estimate | None:
        if "untrained" not in self.statistics or self._problem(quantity, chosen, "untrained")[0] != "ok":
            return None
        return self._estimate(quantity, chosen, "untrained")

    def _mean_chance(self, quantity: str, chosen: list[tuple[str, str]]) -> float | None:
        values = [summary.chance(quantity) for summary in self._summaries(chosen, "trained")]
        known = [value for value in values if value is not None]
        return math.fsum(known) / len(known) if known else None


def at_depths(layers: list[str]) -> list[str]:
    """Of layers in the order of depth those at RELATIVE_DEPTHS, each once."""
    return list(dict.fromkeys(layers[math.ceil(depth * len(layers)) - 1] for depth in RELATIVE_DEPTHS if layers))


def _action(action: str, layout: Layout) -> str:
    if action == "matched":
        return action
    if not layout.is_spatial:
        return "trivial"
    return "scalar" if layout.axis == "none" else action

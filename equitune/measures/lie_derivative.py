"""How far features are from moving as they should when an image begins to move (M7, the local equivariance error).

L f(x) = d/dt rho(g_t)^-1 f(g_t x) at t = 0, which is J_f(x) dT x - d rho f(x): the motion of the features when the
image moves, less the motion that the group prescribes. Reported are, as ratios of means over images,

- `lie_error` = E|L f|^2 / (E|J_f dT x|^2 + E|d rho f|^2): 0 is exact, 1 is no relation or features that do not move
  when they should, 2 the opposite motion. A layer's gain cancels, so it compares across networks.
- `output_lie_derivative` = E|L f|^2 / E|f - mean f|^2 of the class scores, on which a group should do nothing and where
  the ratio above would be 1 whatever they do. At v, scores begin to change as fast as if moving by 1 / sqrt(v) pixels
  changed them by as much as they spread over images.
- in the profile, the raw E|L f|^2 / dim f of 2210.02984, which does not compare across networks.

One pass for each flow reads all layers: the images carry their motion through the network as dual numbers. Where an
operation has no forward-mode rule, and with `method: difference`, motions are central differences; for a ReLU's kinks
the two differ by about sqrt(epsilon_px). Boundary protocol: `roll` for translation; `disc` for rotation, scale and
shear, which compare the central disc of a map. Only what is connected to the identity is seen: no flip, no turn by 90°.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from equitune.errors import Unmeasurable
from equitune.evaluation.capture import capturing
from equitune.evaluation.estimate import Estimate, measured, unmeasured
from equitune.evaluation.image_set import EvaluationSet
from equitune.evaluation.lie_sums import MOTIONLESS, LieSums, Problem
from equitune.evaluation.motion import Difference, Differentiation, Jvp
from equitune.evaluation.pairs import require_size
from equitune.evaluation.profile import DEFINITIONS, at_depths
from equitune.evaluation.report import Report
from equitune.groups.flow import Flow, flows
from equitune.groups.layout import Layout
from equitune.results.values import Measurement, Status

METRICS = {"{group}_lie_error": "minimize", "{group}_output_lie_derivative": "minimize"}

Layers = Mapping[str, Layout]  # path of the submodule -> what its output is; the last one is the output
Key = tuple[str, str]  # layer, label of the flow
Statistic = Callable[[LieSums], Estimate]


def measure(
    model: nn.Module,
    untrained: nn.Module | None,
    images: EvaluationSet,
    *,
    group: Literal["translation", "rotation", "scale", "shear", "hue"] = "translation",
    method: Literal["jvp", "difference"] = "jvp",
    epsilon_px: Annotated[float, Field(gt=0, le=1024)] = 0.05,
    most_images: Annotated[int, Field(ge=2)] = 128,
) -> Report:
    """Measures a trained model beside its untrained copy, on the same images.

    Args:
        model: in, images in [0, 1]; out, class scores. `model.layers` declares what is measured.
        untrained: the same architecture with its initial weights; None measures without this control.
        images: held-out images.
        group: the symmetry, by the flows that generate it.
        method: forward-mode differentiation, or central differences.
        epsilon_px: how far a central difference moves the image either way; for hue, in radians.
        most_images: a seeded sample of this size is measured, or all images where there are fewer.

    Source: layer-wise Lie derivatives (2210.02984), here of the network up to a layer, relative to its motion.
    """
    images = images.sample(most_images, seed=0)
    directions = flows(group, images.pixels.shape[-1])
    ways: list[Differentiation] = [Jvp()] if method == "jvp" else []
    ways.append(Difference(epsilon_px))
    return _Comparison(
        group=group,
        layers=cast(Layers, model.layers),
        directions=directions,
        images=images,
        trained=differentiate(model, images, directions, ways),
        untrained=differentiate(untrained, images, directions, ways, stage="untrained") if untrained else None,
    ).report()


@dataclass(frozen=True)
class Derivatives:
    """The sums of every layer and flow, or why there are none."""

    how: Differentiation
    note: str | None = None  # why not in the way that was asked for
    sums: dict[Key, LieSums] = field(default_factory=dict)
    problems: dict[Key, Problem] = field(default_factory=dict)

    def problem(self, key: Key) -> Problem | None:
        if key in self.problems:
            return self.problems[key]
        return self.sums[key].problem() if key in self.sums else ("undefined", "no forward pass reaches it")

    def add(self, model: nn.Module, images: EvaluationSet, flow: Flow, stage: str) -> None:
        """Streams the images through the model, moving; all layers in each pass.

        `stage` names the pass in the images' journal, from which it goes on.
        """
        layers = cast(Layers, model.layers)
        problem = _image_problem(images, flow)
        if problem:
            self.problems.update({(layer, flow.label): problem for layer in layers})
            return

        def refuse(layer: str, error: Unmeasurable) -> None:
            self.problems[layer, flow.label] = (cast(Status, error.status), str(error))

        def read(layer: str, features: Tensor) -> None:
            try:
                compared = self._compared(flow, layers[layer], features)
            except Unmeasurable as error:
                refuse(layer, error)
                return
            key = (layer, flow.label)
            if key not in self.sums:
                self.sums[key] = LieSums.empty(len(images), *compared, is_output=layer == list(layers)[-1])
            self.sums[key].add(*compared, start)

        start = self._restore(flow, images, stage)
        for batch, _ in images.batches(start):
            with self.how.passing(), capturing(model, layers, read, refuse):
                model(self.how.moving(flow, batch))
            start += len(batch)
            if images.journal:
                images.journal.keep(stage, start, lambda: self._state(flow), is_last=start == len(images))

    def _state(self, flow: Flow) -> dict[str, Tensor]:
        """Return what is known along a flow: each layer's sums, or its problem as text."""
        found = {
            f"{layer}/{name}": value
            for (layer, label), sums in self.sums.items()
            if label == flow.label
            for name, value in sums.state().items()
        }
        for (layer, label), problem in self.problems.items():
            if label == flow.label:
                found[f"{layer}/problem"] = torch.tensor(list(json.dumps(problem).encode()), dtype=torch.uint8)
        return found

    def _restore(self, flow: Flow, images: EvaluationSet, stage: str) -> int:
        """Brings back what the journal holds of this stage; returns the number of images it had seen."""
        done, state = (images.journal and images.journal.find(stage)) or (0, {})
        by_layer: dict[str, dict[str, Tensor]] = {}
        for key, value in state.items():
            layer, _, name = key.rpartition("/")
            by_layer.setdefault(layer, {})[name] = value
        for layer, found in by_layer.items():
            if "problem" in found:
                self.problems[layer, flow.label] = tuple(json.loads(bytes(found["problem"].tolist())))
            if "sums" in found:
                self.sums[layer, flow.label] = LieSums.of_state(found, images.device)
        return done

    def _compared(self, flow: Flow, layout: Layout, features: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """f(x), its motion and the one that is prescribed, (B, C * G, P) each, at the positions that are compared."""
        plain, motion = self.how.read(features)
        height, width = plain.shape[-2:]
        require_size(layout, height, width)
        visible = flow.visible(layout, height, width)

        def view(maps_BCGHW: Tensor) -> Tensor:
            maps = maps_BCGHW.flatten(1, 2)
            return maps.flatten(2) if visible is None else maps[..., visible.to(maps.device)]

        prescribed = view(self.how.prescribed(flow, plain, layout)) if flow.moves(layout) else None
        return view(plain), view(motion), prescribed


def differentiate(
    model: nn.Module,
    images: EvaluationSet,
    directions: list[Flow],
    ways: list[Differentiation],
    *,
    stage: str = "trained",
) -> Derivatives:
    """Every layer along every flow, in the first of the ways that the model allows; `stage` is the model's, by name."""
    model.eval()
    note = None
    with torch.inference_mode(False), torch.no_grad():  # inference mode has no dual numbers
        for how in ways:
            found = Derivatives(how, note)
            try:
                for flow in directions:
                    found.add(model, images, flow, f"{stage}, {how.method}, {flow.label}")
            except NotImplementedError as error:
                if how is ways[-1]:
                    raise
                note = f"{how.method} is impossible: {str(error).splitlines()[0]}"
            else:
                break
    return found


def _image_problem(images: EvaluationSet, flow: Flow) -> Problem | None:
    """Why nothing can be measured on these images, whatever the model."""
    energy = sum(float(batch.double().square().sum()) for batch, _ in images.batches())
    motion = 0.0
    try:
        for batch, _ in images.batches():
            motion += float(flow.on_images(batch).double().square().sum())
            if motion > MOTIONLESS * energy:  # mostly the first batch tells
                return None
    except Unmeasurable as error:
        return cast(Status, error.status), str(error)
    return "undefined", f"{flow.label} does not move these images"


@dataclass(frozen=True)
class _Comparison:
    """Everything that was differentiated, and how to read it."""

    group: str
    layers: Layers
    directions: list[Flow]
    images: EvaluationSet
    trained: Derivatives
    untrained: Derivatives | None

    def report(self) -> Report:
        statistics = {
            f"{self.group}_lie_error": (LieSums.error, self._at_depths()),
            f"{self.group}_output_lie_derivative": (LieSums.over_spread, list(self.layers)[-1:]),
        }
        keys = {
            metric: (statistic, [(layer, flow.label) for layer in layers for flow in self.directions])
            for metric, (statistic, layers) in statistics.items()
        }
        metrics = {metric: self._metric(*chosen) for metric, chosen in keys.items()}
        estimates = {
            metric: _mean(self.trained, *chosen) for metric, chosen in keys.items() if metrics[metric].value is not None
        }
        rows = [self._row(layer, flow, estimates) for flow in self.directions for layer in self.layers]
        return Report(metrics, rows, estimates)

    def _at_depths(self) -> list[str]:
        """Return the layers at 1/4, 1/2, 3/4 and the end of those that have a grid that can be differentiated."""
        spatial = [layer for layer, layout in self.layers.items() if layout.is_spatial]
        first = self.directions[0].label
        able = [layer for layer in spatial if (layer, first) in self.trained.sums]
        return at_depths(able) or spatial[-1:]  # which will say why

    def _metric(self, statistic: Statistic, keys: list[Key]) -> Measurement:
        """Return the mean of a statistic over layers and flows; without a value where one of them has none."""
        problem = _problem(self.trained, statistic, keys)
        if problem:
            return unmeasured(self.images, *problem)
        control = None
        if self.untrained and not _problem(self.untrained, statistic, keys):
            control = _mean(self.untrained, statistic, keys)
        is_relative = statistic is LieSums.error
        number = measured(
            _mean(self.trained, statistic, keys),
            self.images,
            chance=1.0 if is_relative else None,
            untrained=control,
        )
        unit = "1" if is_relative else f"{self.directions[0].unit}^-2"
        return number.model_copy(update={"unit": unit, "reason": number.reason or self.trained.note})

    def _row(self, layer: str, flow: Flow, estimates: dict[str, Estimate]) -> dict[str, Any]:
        """One layer under one flow, with everything that makes its numbers readable; adds its estimates."""
        layout, order, key = self.layers[layer], list(self.layers), (layer, flow.label)
        status, reason = self.trained.problem(key) or ("ok", self.trained.note)
        row: dict[str, Any] = {
            "measure": "lie_derivative",
            "definitions": DEFINITIONS,
            "group": self.group,
            "layer": layer,
            "depth": (order.index(layer) + 1) / len(order),
            "set": flow.label,
            "protocol": flow.protocol,
            "interpolated": flow.protocol == "disc" and layout.is_spatial,
            "method": self.trained.how.method,
            "stride": layout.stride,
            "n": len(self.images),
            "split": self.images.split,
            "status": status,
            "reason": reason,
        }
        if status != "ok":
            return row
        sums = self.trained.sums[key]
        row |= {
            "action": ("scalar" if layout.axis == "none" else "declared") if sums.moves else "trivial",
            "dtype": sums.dtype,
            "unit": f"{flow.unit}^-2",
        }
        statistics: dict[str, Statistic] = {"lie_derivative": LieSums.raw}
        if sums.moves:
            statistics["lie_error"] = LieSums.error
        if layer == order[-1]:
            statistics["output_lie_derivative"] = LieSums.over_spread
        for name, statistic in statistics.items():
            estimates[f"{layer}/{flow.label}/{name}"] = estimate = statistic(sums)
            row |= {name: estimate.value, f"{name}_stderr": estimate.stderr}
            if self.untrained and not _problem(self.untrained, statistic, [key]):
                row[f"untrained_{name}"] = statistic(self.untrained.sums[key]).value
        return row


def _problem(found: Derivatives, statistic: Statistic, keys: list[Key]) -> Problem | None:
    """Return the first reason why a statistic of one of the layers and flows has no number."""
    if not keys:
        return "non_spatial", "no layer has a grid"
    for key in keys:
        problem = found.problem(key)
        if problem:
            return problem[0], f"{key[0]}: {problem[1]}"
        if statistic is LieSums.error and not found.sums[key].moves:
            return "undefined", f"{key[0]}: {key[1]} prescribes no motion, so that any motion has error 1"
    return None


def _mean(found: Derivatives, statistic: Statistic, keys: list[Key]) -> Estimate:
    return Estimate.average([statistic(found.sums[key]) for key in keys])

"""Layer-wise equivariance: do features of a transformed image equal the transformed features of the image?

Compares a = f(T_g x) with b = rho(g) f(x) at every declared layer: M1, their correlation centred per channel over the
data set (1 is equivariant), and M2, their squared distance over that of unrelated images (0 is exact, 1 is chance).
Class scores do not move, so at the output rho is the identity.

The boundary protocol is `roll`: image and feature grid are shifted circularly. Two sets of shifts are reported apart:
`lattice`, by the network's total stride, under which every grid maps to itself, and `substride`, by one pixel, which
on a layer with a stride is a fraction of its grid and hence a Fourier shift. A metric of the network is the mean over
a set's shifts and over the layers at 1/4, 1/2, 3/4 and the end of its spatial depth; at the output, over all shifts.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from equitune.errors import Infeasible
from equitune.groups.layout import Layout
from equitune.groups.translation import Shift, sets
from equitune.measures._capture import capturing
from equitune.measures._evaluation import EvaluationSet, Report
from equitune.measures._statistics import Estimate, Moments, PairStatistics, mean
from equitune.records.results import Measurement, Status

METRICS = {
    "{group}_error": "minimize",
    "{group}_correlation": "maximize",
    "{group}_substride_error": "minimize",
    "{group}_substride_correlation": "maximize",
    "{group}_output_error": "minimize",
    "{group}_output_correlation": "maximize",
}

MIN_POSITIONS = 9  # a map smaller than 3 x 3 has too few positions to correlate
RELATIVE_DEPTHS = (0.25, 0.5, 0.75, 1.0)

Layers = Mapping[str, Layout]  # path of the submodule -> what its output is; the last one is the output
Key = tuple[str, str, int]  # layer, set, index of the element in the set


def measure(
    model: nn.Module,
    untrained: nn.Module | None,
    images: EvaluationSet,
    *,
    group: Literal["translation"] = "translation",
    most_images: Annotated[int, Field(ge=2)] = 512,
    multiples: Annotated[int, Field(ge=1)] = 1,
) -> Report:
    """Measures a trained model beside its untrained copy, on the same images and group elements.

    Args:
        model: in, images in [0, 1]; out, class scores. `model.layers` declares what is measured.
        untrained: the same architecture with its initial weights; None measures without this control.
        images: held-out images.
        group: the symmetry.
        most_images: a seeded sample of this size is measured, or all images where there are fewer.
        multiples: the lattice set goes up to this multiple of the total stride, either way on both axes.

    Source: correlation of intermediate representations, after 2304.02628, centred per channel over the data set.
    """
    images = images.sample(most_images, seed=0)
    layers: Layers = model.layers  # type: ignore[assignment]
    skipped = find_unmeasurable(model, layers, images)
    measured = {name: layout for name, layout in layers.items() if name not in skipped}
    strides = [layout.stride for layout in measured.values() if layout.is_spatial]
    elements = sets(strides, images.pixels.shape[-1], multiples=multiples)
    comparison = _Comparison(
        layers=layers,
        skipped=skipped,
        elements=elements,
        images=images,
        trained=compare(model, measured, images, elements),
        untrained=compare(untrained, measured, images, elements) if untrained else {},
    )
    return comparison.report(group)


def find_unmeasurable(model: nn.Module, layers: Layers, images: EvaluationSet) -> dict[str, tuple[Status, str]]:
    """The layers whose output is not what was declared, or whose grid is too small, each with its reason."""
    skipped: dict[str, tuple[Status, str]] = {}

    def inspect(name: str, features: Tensor) -> None:
        positions = features.shape[-2] * features.shape[-1]
        if layers[name].is_spatial and positions < MIN_POSITIONS:
            skipped[name] = ("too_small", f"{positions} positions, at least {MIN_POSITIONS} are needed")

    def refuse(name: str, error: Infeasible) -> None:
        skipped[name] = ("non_spatial", str(error))

    model.eval()
    with torch.inference_mode(), capturing(model, layers, inspect, refuse):
        model(next(images.batches())[0][:1])
    return skipped


def compare(
    model: nn.Module, layers: Layers, images: EvaluationSet, elements: Mapping[str, list[Shift]]
) -> dict[Key, PairStatistics]:
    """Streams the images through the model, once as they are and once for each element; all layers in each pass."""
    numbered = [(name, index, shift) for name, members in elements.items() for index, shift in enumerate(members)]
    pairs = {(layer, name, index): PairStatistics() for layer in layers for name, index, _ in numbered}
    plain: dict[str, Tensor] = {}
    moments: dict[str, Moments] = {}
    model.eval()
    with torch.inference_mode():
        for batch, _ in images.batches():
            with capturing(model, layers, plain.__setitem__):
                model(batch)
            for layer, features in plain.items():
                moments[layer] = Moments.of(_as_channels(features))
            for name, index, shift in numbered:

                def add(layer: str, features: Tensor, name: str = name, index: int = index, g: Shift = shift) -> None:
                    known = _moved_moments(moments[layer], g, plain[layer], layers[layer])

                    def act(part: Tensor) -> Tensor:
                        return _as_channels(g.on_features(part, layers[layer]))

                    pairs[layer, name, index].add(_as_channels(features), plain[layer], known, act)

                with capturing(model, layers, add):
                    model(shift.on_images(batch))
    return pairs


@dataclass(frozen=True)
class _Comparison:
    """Everything that was compared, and how to read it."""

    layers: Layers
    skipped: dict[str, tuple[Status, str]]
    elements: dict[str, list[Shift]]
    images: EvaluationSet
    trained: dict[Key, PairStatistics]
    untrained: dict[Key, PairStatistics]

    def report(self, group: str) -> Report:
        spatial = [name for name, layout in self.layers.items() if layout.is_spatial and name not in self.skipped]
        at_depths = [spatial[math.ceil(depth * len(spatial)) - 1] for depth in RELATIVE_DEPTHS if spatial]
        places = {
            "": [(layer, "lattice") for layer in dict.fromkeys(at_depths)],
            "substride_": [(layer, "substride") for layer in dict.fromkeys(at_depths)],
            "output_": [(list(self.layers)[-1], name) for name, members in self.elements.items() if members],
        }
        metrics = {
            f"{group}_{place}{quantity}": self._metric(quantity, chosen)
            for place, chosen in places.items()
            for quantity in ("error", "correlation")
        }
        rows = [self._row(layer, name) for name, members in self.elements.items() if members for layer in self.layers]
        return Report(metrics, rows)

    def _metric(self, quantity: str, chosen: list[tuple[str, str]]) -> Measurement:
        """The mean of a quantity over (layer, set) pairs; without a value where one of them has none."""
        n, split = len(self.images), self.images.split
        status, reason = self._problem(chosen, self.trained)
        if status != "ok":
            return Measurement(value=None, n=n, split=split, status=status, reason=reason)
        estimate = self._estimate(quantity, chosen, self.trained)
        control = None
        if self.untrained and self._problem(chosen, self.untrained)[0] == "ok":
            control = self._estimate(quantity, chosen, self.untrained).value
        chance = 1.0 if quantity == "error" else self._chance(chosen)
        return Measurement(
            value=estimate.value, stderr=estimate.stderr, n=n, split=split, chance=chance, untrained=control
        )

    def _row(self, layer: str, name: str) -> dict[str, Any]:
        """One layer under one set, with everything that makes its numbers readable."""
        layout, chosen, order = self.layers[layer], [(layer, name)], list(self.layers)
        status, reason = self._problem(chosen, self.trained)
        row: dict[str, Any] = {
            "measure": "equivariance",
            "layer": layer,
            "depth": (order.index(layer) + 1) / len(order),
            "set": name,
            "elements": len(self.elements[name]),
            "protocol": "roll",
            "action": "scalar" if layout.is_spatial else "trivial",
            "interpolated": layout.is_spatial and name == "substride" and layout.stride > 1,
            "stride": layout.stride,
            "n": len(self.images),
            "status": status,
            "reason": reason,
        }
        if status != "ok":
            return row
        correlation, error = (self._estimate(q, chosen, self.trained) for q in ("correlation", "error"))
        chance = self._chance(chosen)
        row |= {
            "correlation": correlation.value,
            "correlation_stderr": correlation.stderr,
            "correlation_chance": chance,
            "correlation_above_chance": (correlation.value - chance) / (1 - chance),
            "error": error.value,
            "error_stderr": error.stderr,
            "dead_channels": self.trained[layer, name, 0].dead_channels(),
        }
        if self.untrained and self._problem(chosen, self.untrained)[0] == "ok":
            row["untrained_correlation"] = self._estimate("correlation", chosen, self.untrained).value
            row["untrained_error"] = self._estimate("error", chosen, self.untrained).value
        return row

    def _problem(self, chosen: list[tuple[str, str]], pairs: dict[Key, PairStatistics]) -> tuple[Status, str | None]:
        """The first reason why one of the (layer, set) pairs has no number, or `ok`."""
        if not chosen:
            return "non_spatial", "no layer has a grid of 3 x 3 or more"
        for layer, name in chosen:
            if layer in self.skipped:
                return self.skipped[layer][0], f"{layer}: {self.skipped[layer][1]}"
            if not self.elements[name]:
                return "undefined", f"{layer}: no {name} shift exists for these strides and this size"
            for index in range(len(self.elements[name])):
                status, reason = pairs[layer, name, index].status()
                if status != "ok":
                    return status, f"{layer}: {reason}"
        return "ok", None

    def _members(self, chosen: list[tuple[str, str]], pairs: dict[Key, PairStatistics]) -> list[PairStatistics]:
        return [pairs[layer, name, index] for layer, name in chosen for index in range(len(self.elements[name]))]

    def _estimate(self, quantity: str, chosen: list[tuple[str, str]], pairs: dict[Key, PairStatistics]) -> Estimate:
        return mean([getattr(member, quantity)() for member in self._members(chosen, pairs)])

    def _chance(self, chosen: list[tuple[str, str]]) -> float:
        members = self._members(chosen, self.trained)
        return math.fsum(member.chance_correlation() for member in members) / len(members)


def _moved_moments(plain: Moments, shift: Shift, features_BCGHW: Tensor, layout: Layout) -> Moments | None:
    """The moments of rho(g) f(x) from those of f(x): the same sums, the mean map moved, if rho permutes positions."""
    if not shift.permutes(layout, *features_BCGHW.shape[-2:]):
        return None
    total = plain.map_CP.view(1, *features_BCGHW.shape[1:])
    return Moments(plain.sums_BC, plain.squares_BC, _as_channels(shift.on_features(total, layout))[0])


def _as_channels(features_BCGHW: Tensor) -> Tensor:
    """(B, C, G, H, W) -> (B, C * G, H * W): after the action, a group axis is a set of channels."""
    return features_BCGHW.flatten(3).flatten(1, 2)

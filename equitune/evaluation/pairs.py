"""Pairs of features, layer by layer: one pass over the images, and one more for each group element."""

from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor, nn

from equitune.errors import Unmeasurable
from equitune.evaluation.capture import capturing, modified_in_place
from equitune.evaluation.estimate import CLUSTERS
from equitune.evaluation.grid import uneven_windows
from equitune.evaluation.image_set import EvaluationSet
from equitune.evaluation.matching import Matching
from equitune.evaluation.moments import Moments
from equitune.evaluation.pair_statistics import CHANCE_IMAGES, PairStatistics
from equitune.groups.element import Element
from equitune.groups.layout import Layout

MIN_POSITIONS = 9  # a map smaller than 3 x 3 has too few positions to correlate

Layers = Mapping[str, Layout]  # path of the submodule -> what its output is; the last one is the output
Sets = Mapping[str, list[Element]]  # name of a set -> its elements
Key = tuple[str, str, int]  # layer, set, index of the element in the set

# Takes a key, where its element acts, f(T_g x), f(x) and the moments of f(x).
OnPair = Callable[[Key, "Place", Tensor, Tensor, Callable[[], Moments]], None]


@dataclass(frozen=True)
class Place:
    """An element on a layer: features (B, C, G, H, W) become channels and compared positions (B, C * G, P)."""

    element: Element
    layout: Layout
    positions: Tensor | None  # indices of the compared ones; None: all
    permutes: bool  # rho(g) moves values without mixing them

    @property
    def keeps_moments(self) -> bool:
        """Whether the moments of rho(g) f(x) follow from those of f(x)."""
        return self.permutes and self.positions is None

    def view(self, features: Tensor) -> Tensor:
        channels = features.flatten(3).flatten(1, 2)
        return channels if self.positions is None else channels[..., self.positions]

    def act(self, features: Tensor, by: Element | None = None, order: Tensor | None = None) -> Tensor:
        """rho(g) f, or that of another element; `order` picks its channels."""
        layout = self.layout
        if features.shape[-2:] == (1, 1):  # sums over positions: what is left to move is the group axis
            layout = replace(layout, is_spatial=False)  # type: ignore[type-var]
        acted = self.view((by or self.element).on_features(features, layout))
        return acted if order is None else acted[:, order]


class Plan:
    """What can be compared, found on one image.

    Attributes:
        places: (layer, element) -> where it acts.
        problems: (layer, set) that cannot be measured, each with its reason.
        clone: layers whose features a later module writes over.
        uneven: layer -> the module up to it whose strides break quarter turns and flips, or None.
    """

    def __init__(self, model: nn.Module, layers: Layers, images: EvaluationSet, sets: Sets) -> None:
        self.layers, self.sets = layers, sets
        self.places: dict[tuple[str, Element], Place] = {}
        self.problems: dict[tuple[str, str], Unmeasurable] = {}
        image = next(images.batches())[0][:1]
        features: dict[str, Tensor] = {}
        refused: dict[str, Unmeasurable] = {}
        model.eval()
        with torch.inference_mode(), capturing(model, layers, features.__setitem__, refused.__setitem__):
            model(image)
        self.clone = modified_in_place(model, layers, image)
        self.uneven = uneven_windows(model, layers, image)
        for name, elements in sets.items():
            impossible = _refusal(elements, image)
            for layer, layout in layers.items():
                try:
                    if problem := impossible or refused.get(layer):
                        raise problem
                    if layer not in features:
                        raise Unmeasurable("undefined", "no forward pass reaches it")
                    self.places |= {(layer, g): _place(g, layout, features[layer]) for g in elements}
                except Unmeasurable as error:
                    self.problems[layer, name] = error

    def with_control(self, name: str) -> "Plan":
        """Return the same plan with each set once more, under `SET/name`; its elements take no further passes."""
        plan = copy(self)
        plan.sets = dict(self.sets) | {f"{each}/{name}": elements for each, elements in self.sets.items()}
        plan.problems = dict(self.problems) | {
            (layer, f"{each}/{name}"): problem for (layer, each), problem in self.problems.items()
        }
        return plan

    def pairs(self) -> Iterator[tuple[Key, Element]]:
        """Everything that can be compared."""
        for name, elements in self.sets.items():
            for index, g in enumerate(elements):
                for layer in self.layers:
                    if (layer, name) not in self.problems:
                        yield (layer, name, index), g


def compare(
    model: nn.Module,
    images: EvaluationSet,
    plan: Plan,
    orders: Mapping[Key, Tensor] | None = None,
    *,
    stage: str = "trained",
) -> dict[Key, PairStatistics]:
    """Return a statistic for each layer, set and element.

    Args:
        orders: the channels of rho(g) f(x) that go with those of f(T_g x), where they are not the same ones.
        stage: names these passes in the images' journal, from which they go on where they were interrupted.
    """
    clusters = min(len(images), CLUSTERS)
    statistics = {key: PairStatistics(clusters, 0 if key[2] else CHANCE_IMAGES) for key, _ in plan.pairs()}
    wrong = {elements[0]: other for elements in plan.sets.values() if elements and (other := _another(elements))}

    def add(key: Key, place: Place, moved: Tensor, plain: Tensor, moments: Callable[[], Moments]) -> None:
        order = orders.get(key) if orders else None
        act = partial(place.act, order=order)
        known = moments() if place.positions is None else None
        other = wrong.get(place.element) if place.layout.is_spatial else None
        statistics[key].add(
            moved,
            plain,
            act,
            view=place.view,
            plain_moments=known,
            acted_moments=known.moved(lambda maps: act(_unfolded(maps, plain)))
            if known and place.keeps_moments
            else None,
            wrong=partial(place.act, by=other) if other else None,
        )

    _stream(model, images, plan, add, statistics, stage)
    return statistics


def match(model: nn.Module, images: EvaluationSet, plan: Plan) -> dict[Key, Matching]:
    """Fits the channels of rho(g) f(x) to those of f(T_g x), for each layer, set and element."""
    matchings = {key: Matching() for key, _ in plan.pairs()}

    def add(key: Key, place: Place, moved: Tensor, plain: Tensor, moments: Callable[[], Moments]) -> None:
        matchings[key].add(place.view(moved), place.act(plain))

    _stream(model, images, plan, add)
    return matchings


def _stream(
    model: nn.Module,
    images: EvaluationSet,
    plan: Plan,
    add: OnPair,
    statistics: Mapping[Key, PairStatistics] | None = None,
    stage: str = "",
) -> None:
    """Call `add` for every batch, element and layer.

    An element that stands in several sets passes through the model once; so do the images at rest, T_e x, which are
    the images themselves unless an element hides a part of them.
    """
    wanted: dict[Element, dict[str, list[Key]]] = {}
    for key, g in plan.pairs():
        wanted.setdefault(g, {}).setdefault(key[0], []).append(key)
    at_rest: dict[Element, list[Element]] = {}
    for g in wanted:
        at_rest.setdefault(g.after(g.inverse()), []).append(g)
    measured = {layer: plan.layers[layer] for layers in wanted.values() for layer in layers}
    done = _restored(images, stage, statistics) if statistics else 0
    model.eval()
    with torch.inference_mode():
        for batch, _ in images.batches(done):
            for identity, elements in at_rest.items():
                plain: dict[str, Tensor] = {}
                with capturing(model, measured, plain.__setitem__, clone=plan.clone):
                    model(identity.on_images(batch))
                moments = cache(lambda layer, plain=plain: Moments.of(plain[layer].flatten(3).flatten(1, 2)))
                for g in elements:
                    pairs = partial(_each_pair, plan, g, wanted[g], plain, moments, add)
                    with capturing(model, measured, pairs):
                        model(g.on_images(batch))
            done += len(batch)
            if statistics and images.journal:
                images.journal.keep(stage, done, lambda: _state(statistics), is_last=done == len(images))


def _each_pair(
    plan: Plan,
    g: Element,
    wanted: Mapping[str, list[Key]],
    plain: Mapping[str, Tensor],
    moments: Callable[[str], Moments],
    add: OnPair,
    layer: str,
    moved: Tensor,
) -> None:
    for key in wanted.get(layer, ()):
        add(key, plan.places[layer, g], moved, plain[layer], partial(moments, layer))


def _refusal(elements: list[Element], image: Tensor) -> Unmeasurable | None:
    """Why elements cannot act on such images; None: they can."""
    try:
        for g in elements:
            g.on_images(image)
    except Unmeasurable as error:
        return error
    return None


def require_size(layout: Layout, height: int, width: int) -> None:
    """Raise Unmeasurable where a layer's map is too small to be compared."""
    if layout.is_spatial and height * width < MIN_POSITIONS:
        raise Unmeasurable("too_small", f"{height * width} positions, at least {MIN_POSITIONS} are needed")


def _place(g: Element, layout: Layout, features: Tensor) -> Place:
    """Where an element acts on a layer.

    Raises:
        Unmeasurable: it cannot, or too little of the map is left to compare.
    """
    height, width = features.shape[-2:]
    if not layout.is_spatial:
        return Place(g, layout, None, permutes=True)
    require_size(layout, height, width)
    visible = g.visible(layout, height, width)
    positions = None if visible is None else visible.flatten().nonzero()[:, 0].to(features.device)
    if positions is not None and len(positions) < MIN_POSITIONS:
        raise Unmeasurable("empty_mask", f"{len(positions)} positions are left, at least {MIN_POSITIONS} are needed")
    g.on_features(features, layout)
    return Place(g, layout, positions, g.permutes(layout, height, width))


def _another(elements: list[Element]) -> Element | None:
    """Return an element that is not the first one: its inverse, or a neighbour in the set."""
    first = elements[0]
    return next((g for g in (first.inverse(), *elements[1:]) if g != first), None)


def _unfolded(maps_nCP: Tensor, features: Tensor) -> Tensor:
    """Channels and positions as features (n, C, G, H, W); sums over positions as a grid of one."""
    _, channels, group, height, width = features.shape
    if maps_nCP.shape[2] != height * width:
        height = width = 1
    return maps_nCP.reshape(len(maps_nCP), channels, group, height, width)


def _state(statistics: Mapping[Key, PairStatistics]) -> dict[str, Tensor]:
    return {
        f"{number}/{name}": tensor
        for number, each in enumerate(statistics.values())
        for name, tensor in each.state().items()
    }


def _restored(images: EvaluationSet, stage: str, statistics: Mapping[Key, PairStatistics]) -> int:
    """Brings back what the journal holds of this stage; returns the number of images it had seen."""
    found = images.journal.find(stage) if images.journal else None
    if found is None:
        return 0
    done, state = found
    state = {name: value.to(images.device) for name, value in state.items()}
    for number, each in enumerate(statistics.values()):
        prefix = f"{number}/"
        each.restore({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})
    return done

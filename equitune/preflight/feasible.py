"""Choices of a study that no network can have, found before any data are loaded and before anything runs."""

from collections.abc import Iterator

from equitune import catalog
from equitune.config.cell import Cell
from equitune.config.design import WITHOUT, levels
from equitune.config.space import Choice, Distribution, Pick, Scalar
from equitune.config.strict import Location, Mistakes
from equitune.config.study import StudySpec
from equitune.config.trial import TrialConfig
from equitune.data.splits import declared_shape
from equitune.errors import Infeasible
from equitune.networks.blueprint import describe
from equitune.preflight.plan import random_pick

# Before a value is refused: one that a hundredth of the networks can have is let through four times in five.
DRAWS = 150
# What the check takes at most, so that it ends in seconds: a deep network is built in seconds itself. Values that come
# later are the search's to learn.
MOST_TRIED, MOST_LAYERS = 5_000, 2_000
MOST_REFUSED = 100


def require_networks(spec: "StudySpec") -> None:
    """Refuses each branch, and each listed value, with which no network can be built. Weights are never made.

    A value that only some others spoil is the search's to learn. Other values are tried one at a time beside a network
    that can be built, then at random.

    Raises:
        ValidationError: with a place in the file and a reason for each of them.
    """
    builds = _Builds(spec)
    mistakes = Mistakes()
    base = next((cell for draw in range(DRAWS) if (cell := builds.tried(random_pick(draw))) is not None), None)
    if base is None:
        sides = " x ".join(map(str, builds.first_sides))
        nothing = f"no network of study {spec.study} can be built for images of {sides}: {builds.first_reason}"
        mistakes.add(("model",), nothing)
        mistakes.raise_any()
        raise AssertionError
    values, refused = list(_values(spec)), list[Cell]()
    for location, forced, said in values:
        if builds.is_spent or len(refused) >= MOST_REFUSED:
            break
        if any(branch.items() <= forced.items() for branch in refused):
            continue  # it lies within a branch that is refused
        builds.first_reason = ""
        others = (_fixed({**base, **other, **forced}, 0) for _, other, _ in [((), {}, ""), *values])
        at_random = (_fixed(forced, draw) for draw in range(DRAWS))
        if not any(builds.tried(pick) is not None for picks in (others, at_random) for pick in picks):
            refused.append(forced)
            mistakes.add(location, f"no network can be built with {said}: {builds.first_reason}")
    mistakes.raise_any()


class _Builds:
    """Which networks of a study can be built; each is tried once."""

    def __init__(self, spec: "StudySpec") -> None:
        self._spec = spec
        self._data_shape = declared_shape(spec.data)
        self._known: dict[str, str | None] = {}
        self._num_tried = self._num_layers = 0
        self.first_reason = ""
        self.first_sides = self._data_shape.image[1:]

    @property
    def is_spent(self) -> bool:
        """Whether enough was tried and built."""
        return self._num_tried >= MOST_TRIED or self._num_layers >= MOST_LAYERS

    def tried(self, pick: Pick) -> Cell | None:
        """Return the parameters of the network that is picked; None where it cannot be built."""
        config = self._spec.suggest(0, pick)
        self._num_tried += 1
        key = config.model_dump_json(include={"input", "model", "averaging", *catalog.PARTS})
        if key not in self._known:
            self._known[key] = self._why_not(config)
            self._num_layers += config.model.args.get("depth", 1) if self._known[key] is None else 0
        reason = self._known[key]
        if reason is not None and not self.first_reason:
            self.first_reason = reason
            self.first_sides = config.input.shape_of(self._data_shape.image)[1:]
        return None if reason is not None else config.params

    def _why_not(self, config: "TrialConfig") -> str | None:

        try:
            describe(config, self._data_shape)
        except Infeasible as error:
            return str(error)
        return None


def _values(spec: "StudySpec") -> Iterator[tuple[Location, Cell, str]]:
    """Each branch and each listed value of what makes a network: its place, what it takes to have it, and its name."""
    for name, distribution in spec.parameters().items():
        if name == WITHOUT:
            for component in levels(distribution) or ():
                yield ("search", "design"), {WITHOUT: component}, f"{WITHOUT} {component}"
    for section in spec.network_sections():
        for label in section.branches:
            branch: Cell = {section.path: label} if section.is_choice else {}
            if branch:
                yield (section.path, "choose", label), branch, label
            for (name, distribution), place in zip(section.parameters_of(label), section.places_of(label), strict=True):
                is_listed = isinstance(distribution, Choice)
                for index, value in enumerate(_listed(spec, distribution)):
                    at = (*place, "choice", index) if is_listed else place
                    yield at, {**branch, name: value}, f"{name.rsplit('.', 1)[-1]} {value}"


def _listed(spec: "StudySpec", distribution: Distribution) -> tuple[Scalar, ...]:
    if isinstance(distribution, Choice):
        return distribution.choice
    return levels(distribution) or () if spec.search.sampler == "grid" else ()


def _fixed(cell: Cell, draw: int) -> Pick:
    """Pick the values of a cell, and others at random."""
    others = random_pick(draw)
    return lambda name, distribution: cell[name] if name in cell else others(name, distribution)

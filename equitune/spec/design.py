"""Designs: which trials a study will run, as an explicit list, before anything runs.

A full factorial has one cell for each combination of values; a parameter of a branch varies only inside its branch.
"""

from collections.abc import Iterable, Iterator
from itertools import chain, product
from math import prod

from equitune.spec.space import Choice, Distribution, IntRange, Scalar, Section, stepped
from equitune.spec.strict import Location, Mistakes

MAX_TRIALS = 10_000  # of a design: more is hardly meant

Cell = dict[str, Scalar]  # parameter name -> value


def levels(distribution: Distribution) -> tuple[Scalar, ...] | None:
    """Every value of a distribution, in order; None: it is a range without a step."""
    if isinstance(distribution, Choice):
        return distribution.choice
    if distribution.step is None or "step" not in distribution.model_fields_set:
        low, high = distribution.bounds
        return (low,) if low == high else None
    low, high = distribution.bounds
    steps = range(round((high - low) / distribution.step) + 1)
    if isinstance(distribution, IntRange):
        return tuple(low + step * distribution.step for step in steps)
    return tuple(stepped(low, distribution.step, step) for step in steps)


def counted_trials(sections: list[Section], replicates: int) -> tuple[int, str]:
    """How many trials a full factorial has, without making them, and that in words.

    Raises:
        ValidationError: a range without a step, or too many.
    """
    mistakes = Mistakes()
    for location in _unlisted(sections):
        mistakes.add(location, "a grid needs every value: give the range a step, or list values as {choice: [...]}")
    mistakes.raise_any()
    cells = prod(sum(prod(map(len, _wheels(section, label))) for label in section.branches) for section in sections)
    trials = cells * replicates
    counted = f"{cells:,} cells and {replicates} {'replicates' if replicates > 1 else 'replicate'}"
    if trials > MAX_TRIALS:
        too_many = f"{counted} are {trials:,} trials, but a grid has at most {MAX_TRIALS:,}: vary less"
        mistakes.add(("search", "sampler"), too_many)
    mistakes.raise_any()
    return trials, counted


def _unlisted(sections: Iterable[Section]) -> Iterator[Location]:
    """The ranges without a step, each by its place in the study's file."""
    for section in sections:
        for label in section.branches:
            for (_, distribution), place in zip(section.parameters_of(label), section.places_of(label), strict=True):
                if levels(distribution) is None:
                    yield place


def factorial(sections: Iterable[Section]) -> list[Cell]:
    """The cells of the full factorial, the last parameter turning fastest."""
    return [dict(chain.from_iterable(parts)) for parts in product(*(_part_cells(section) for section in sections))]


def _part_cells(section: Section) -> list[list[tuple[str, Scalar]]]:
    """The cells of one section, each as pairs of a parameter and its value."""
    cells = []
    for label in section.branches:
        chosen: list[tuple[str, Scalar]] = [(section.path, label)] if section.is_choice else []
        names = [name for name, _ in section.parameters_of(label)]
        cells += [chosen + list(zip(names, values, strict=True)) for values in product(*_wheels(section, label))]
    return cells


def _wheels(section: Section, label: str) -> list[tuple[Scalar, ...]]:
    return [levels(distribution) or () for _, distribution in section.parameters_of(label)]

"""Cells: a value for each parameter that a trial has, and for no other; checked against the space they must lie in."""

from collections import ChainMap
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from equitune import catalog
from equitune.config.space import Choice, Distribution, IntRange, Scalar, Section, stepped
from equitune.config.strict import Location, Mistakes, rule, shown

Cell = dict[str, Scalar]  # parameter name -> value

CLOSE = 1e-9  # of a step: 0.1 + 0.2 is a value of a range whose step is 0.1


def member(distribution: Distribution, value: Any) -> Scalar:
    """Return a given value as its distribution has it. Raises the rule it breaks."""
    if isinstance(distribution, Choice):
        is_bool = isinstance(value, bool)
        equal = [own for own in distribution.choice if own == value and isinstance(own, bool) == is_bool]
        found = sorted(equal, key=lambda own: type(own) is not type(value))
        if not found:
            raise rule(f"must be one of {', '.join(map(str, distribution.choice))}, but got {shown(value)}")
        return found[0]
    is_whole = isinstance(distribution, IntRange)
    if isinstance(value, bool) or not isinstance(value, int if is_whole else int | float):
        raise rule(f"must be a {'whole ' if is_whole else ''}number, but got {shown(value)}")
    low, high = distribution.bounds
    if not low <= value <= high:
        raise rule(f"must lie between {low} and {high}, but got {value}")
    if distribution.step is not None:
        steps = (value - low) / distribution.step
        if abs(steps - round(steps)) > CLOSE:
            raise rule(f"must be {low} plus a multiple of {distribution.step}, but got {value}")
        value = stepped(low, distribution.step, round(steps))
    return int(value) if is_whole else float(value)


def active(sections: Iterable[Section], values: Mapping[str, Scalar]) -> dict[str, Distribution]:
    """Return the parameters that a trial of these values has. A branch that is not among them is none
    of its sections'.
    """
    found: dict[str, Distribution] = {}
    for section in sections:
        label: Any = next(iter(section.branches))
        if section.is_choice:
            found[section.path] = Choice(choice=tuple(section.branches))
            label = values.get(section.path)
        if label in section.branches:
            found |= dict(section.parameters_of(label))
    return found


def completed(sections: Iterable[Section], *sources: Mapping[str, Scalar]) -> Cell:
    """Return the cell whose values come from the first source that has them."""
    values = ChainMap(*map(dict, sources))
    return {name: values[name] for name in active(sections, values)}


def checked_cell(
    sections: list[Section], given: Mapping[str, Any], place: Location, every_branch: bool = False
) -> Cell:
    """Return what was given, as the space has it: every parameter once, those of other branches only with
    `every_branch`.

    Raises:
        ValidationError: with the place, below `place`, of each value that is unknown, outside the space or without use.
    """
    known = {name: distribution for section in sections for name, distribution in section.parameters()}
    mistakes, values = Mistakes(), {}
    for name, value in given.items():
        if name not in known:
            mistakes.add((*place, name), catalog.unknown("parameter", name, known))
        else:
            values[name] = mistakes.under((*place, name), partial(member, known[name], value))
    mistakes.raise_any()
    needed = known if every_branch else active(sections, values)
    missing = [name for name in needed if name not in values]
    if missing:
        also = " (one_at_a_time switches to every branch, and needs its values, too)" if every_branch else ""
        mistakes.add(place, f"must give each parameter a value, but lacks {', '.join(missing)}{also}")
    for name in values.keys() - needed.keys() if not missing else ():
        mistakes.add((*place, name), "belongs to a branch that is not chosen here: leave it out")
    mistakes.raise_any()
    return {name: values[name] for name in known if name in values}

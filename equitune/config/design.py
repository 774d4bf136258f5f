"""Designs: which trials a study will run, as an explicit list of cells, before anything runs.

factorial       each combination of values; a parameter of a branch varies only inside its branch
one_at_a_time   the baseline, then each of its parameters at each other level, all else as in the baseline
leave_one_out   everything, then everything without one component: the study without that component's line
toggles         the best trial, then it with one parameter set back to the baseline's value, then the baseline
"""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, product
from math import prod
from typing import Any

from equitune import catalog
from equitune.config.cell import Cell, active, checked_cell, completed
from equitune.config.search import SearchSpec
from equitune.config.space import Choice, Distribution, IntRange, Scalar, Section, stepped
from equitune.config.strict import Location, Mistakes
from equitune.config.trial import TrialConfig

MAX_TRIALS = 10_000  # of a design: more is hardly meant
WITHOUT, NOTHING = "without", "nothing"  # the parameter of leave_one_out, and its value where nothing is left out
LEVELS = "needs every value: give the range a step, or list values as {choice: [...]}"


def num_levels(distribution: Distribution) -> int | None:
    """How many values a distribution has, without making them; None: it is a range without a step."""
    if isinstance(distribution, Choice):
        return len(distribution.choice)
    low, high = distribution.bounds
    if distribution.step is None or "step" not in distribution.model_fields_set:
        return 1 if low == high else None
    return round((high - low) / distribution.step) + 1


def levels(distribution: Distribution) -> tuple[Scalar, ...] | None:
    """Every value of a distribution, in order; None: it is a range without a step."""
    if isinstance(distribution, Choice):
        return distribution.choice
    low, high = distribution.bounds
    if distribution.step is None or "step" not in distribution.model_fields_set:
        return (low,) if low == high else None
    steps = range(round((high - low) / distribution.step) + 1)
    if isinstance(distribution, IntRange):
        return tuple(low + step * distribution.step for step in steps)
    return tuple(stepped(low, distribution.step, step) for step in steps)


def settled(search: SearchSpec, sections: list[Section]) -> SearchSpec:
    """Return the search of a study of these sections: `grid` and `factorial` are one, baseline and best lie in the
    space, and the trials of a design are counted, without making them.

    Raises:
        ValidationError: what is said contradicts itself, or lies outside the space; a design has too many trials.
    """
    given = search.model_fields_set
    _require_consistent(search)
    design = search.design or ("factorial" if search.sampler == "grid" else None)
    update: dict[str, Any] = {"design": design}
    mistakes = Mistakes()
    for name in ("baseline", "best"):
        cell = getattr(search, name)
        if cell is not None:
            every_branch = name == "baseline" and design == "one_at_a_time"
            check = partial(checked_cell, sections, cell, ("search", name), every_branch)
            update[name] = mistakes.under((), check)
    mistakes.raise_any()
    if design is None:
        return search.model_copy(update=update)
    search = search.model_copy(update=update | {"sampler": "grid"})
    num_cells = _num_cells(search, sections)
    trials = num_cells * search.replicates
    counted = f"{num_cells:,} cells and {search.replicates} {'replicates' if search.replicates > 1 else 'replicate'}"
    if trials > MAX_TRIALS:
        too_many = f"{counted} are {trials:,} trials, but a design has at most {MAX_TRIALS:,}: vary less"
        mistakes.add(("search", "design" if "design" in given else "sampler"), too_many)
    elif "trials" in given and search.trials != trials:
        mistakes.add(("search", "trials"), f"{counted} are {trials} trials, but got {search.trials}: leave it out")
    mistakes.raise_any()
    return search.model_copy(update={"trials": trials})


def _require_consistent(search: SearchSpec) -> None:
    mistakes, given, design = Mistakes(), search.model_fields_set, search.design
    if design is None:
        if search.best is not None:
            mistakes.add(("search", "best"), "is what design: toggles takes apart: set that design, or leave it out")
        if search.sampler != "grid" and search.replicates > 1:
            sentence = f"only a design has replicates, but the sampler is {search.sampler}: set design: factorial"
            mistakes.add(("search", "replicates"), sentence)
    else:
        if "sampler" in given and search.sampler != "grid":
            sentence = f"a design lists its trials, and no {search.sampler} proposes any: leave the sampler out"
            mistakes.add(("search", "sampler"), sentence)
        if search.best is not None and design != "toggles":
            mistakes.add(("search", "best"), f"is for design: toggles, but the design is {design}: leave it out")
        for name in ("baseline", "best"):
            is_needed = design == "toggles" or (design, name) == ("one_at_a_time", "baseline")
            if getattr(search, name) is None and is_needed:
                sentence = f"design: {design} needs a {name}, such as {name}: {{model.width: 8, ...}}"
                mistakes.add(("search", "design"), sentence)
    mistakes.raise_any()


def _num_cells(search: SearchSpec, sections: list[Section]) -> int:
    """Raise ValidationError where a design has no such list."""
    mistakes, baseline = Mistakes(), search.baseline or {}
    if search.design == "factorial":
        for place, distribution in _places(sections, None):
            if num_levels(distribution) is None:
                mistakes.add(place, f"a grid {LEVELS}")
        mistakes.raise_any()
        return prod(sum(prod(_wheel_sizes(section, label)) for label in section.branches) for section in sections)
    if search.design == "one_at_a_time":
        for place, distribution in _places(sections, baseline):
            if num_levels(distribution) is None:
                mistakes.add(place, f"one_at_a_time {LEVELS}")
        mistakes.raise_any()
        sizes = [(num_levels(distribution) or 1) - 1 for distribution in active(sections, baseline).values()]
        if not any(sizes):
            mistakes.add(("search", "design"), "one_at_a_time varies one parameter after another, but nothing varies")
        mistakes.raise_any()
        return 1 + sum(sizes)
    if search.design == "toggles":
        if search.best == search.baseline:
            mistakes.add(("search", "best"), "equals the baseline: there is nothing to set back")
        mistakes.raise_any()
        return len(toggles(sections, search.best or {}, baseline))
    varying = [name for name in active(sections, baseline) if name not in baseline]
    if varying:
        sentence = f"leave_one_out trains one value of each parameter, but {', '.join(varying)} varies: "
        mistakes.add(("search", "design"), sentence + "make it a constant, or give its value in search.baseline")
        mistakes.raise_any()
    if not components(sections, baseline):
        sentence = "leave_one_out needs a prior, a downsampler, a stem, an averaging or augmentations to leave out"
        mistakes.add(("search", "design"), sentence)
    mistakes.raise_any()
    return 1 + len(components(sections, baseline))


def _places(sections: Iterable[Section], baseline: Cell | None) -> Iterator[tuple[Location, Distribution]]:
    """Yield the parameters by their places in the study's file; with a baseline, those of its branches."""
    for section in sections:
        for label in section.branches:
            if baseline is None or not section.is_choice or baseline.get(section.path) == label:
                parameters = section.parameters_of(label)
                for (_, distribution), place in zip(parameters, section.places_of(label), strict=True):
                    yield place, distribution


def listed(search: SearchSpec, sections: list[Section]) -> list[Cell]:
    """Return the cells of a settled design, in the order in which they are trained."""
    baseline = search.baseline or {}
    if search.design == "factorial":
        return factorial(sections, search.baseline)
    if search.design == "toggles":
        return toggles(sections, search.best or {}, baseline)
    return (one_at_a_time if search.design == "one_at_a_time" else leave_one_out)(sections, baseline)


def require_distinct(arms: Iterable[tuple[Cell, TrialConfig]]) -> None:
    """Refuse an arm that trains what another one trains. Factorials are not checked: there an arm is its factors.

    Raises:
        ValidationError: with the place of the component that changes nothing, or of the design.
    """
    mistakes, known = Mistakes(), dict[str, Cell]()
    for cell, config in arms:
        acting = [call for call in config.augmentation if call.args[_strength(call.name)] != 0]
        decides = {"study", "number", "seed", "replicate", "cell", "params", "augmentation"}
        key = f"{acting} {config.model_dump_json(exclude=decides)}"
        other = known.setdefault(key, cell)
        if other is not cell and WITHOUT in cell:
            sentence = "the study is the same without it: leave the line out, or name another component"
            mistakes.add(tuple(str(cell[WITHOUT]).split(".")), sentence)
        elif other is not cell:
            sentence = f"the arms {_apart(cell, other)} and {_apart(other, cell)} train the same: remove one of the two"
            mistakes.add(("search", "design"), sentence)
    mistakes.raise_any()


def notices(search: SearchSpec) -> Iterator[str]:
    """Yield what a design trains once though it is named twice."""
    best, baseline = search.best or {}, search.baseline or {}
    differing = [name for name in best if name in baseline and baseline[name] != best[name]]
    if search.design == "toggles" and len(differing) == 1:
        yield f"search.best: {differing[0]} alone differs; set back it is the baseline, which is trained once"


def _strength(augmentation: str) -> str:
    """Return the argument that is 0 where an augmentation does nothing."""
    return str(catalog.describe("augmentation", augmentation).constants["STRENGTH"])


def _apart(cell: Cell, other: Cell) -> str:
    """Return what distinguishes a cell from another one, in words."""
    missing = object()
    said = [f"{name} {value}" for name, value in cell.items() if other.get(name, missing) != value]
    return ", ".join(said) or "without it"


def factorial(sections: Iterable[Section], baseline: Cell | None = None) -> list[Cell]:
    """Return the cells of the full factorial, the last parameter turning fastest; a baseline goes first."""
    cells = [dict(chain.from_iterable(parts)) for parts in product(*(_part_cells(section) for section in sections))]
    return cells if baseline is None else [baseline, *(cell for cell in cells if cell != baseline)]


def one_at_a_time(sections: list[Section], baseline: Cell) -> list[Cell]:
    """Return the baseline and, parameter by parameter, what differs from it in that one alone. Where a branch is
    switched the
    parameters of the new one are the baseline's, which names them for this."""
    cells = [completed(sections, baseline)]
    for name, distribution in active(sections, baseline).items():
        own = (type(baseline[name]), baseline[name])
        others = [level for level in levels(distribution) or () if (type(level), level) != own]
        cells += [completed(sections, {name: level}, baseline) for level in others]
    return cells


def toggles(sections: list[Section], best: Cell, baseline: Cell) -> list[Cell]:
    """Return the best cell, it with one parameter after the other set back to the baseline's value, and the baseline.

    A branch set back takes the baseline's values of its parameters. Where that leaves nothing of the best, it is the
    baseline, which stands once.
    """
    back = [name for name in best if name in baseline and best[name] != baseline[name]]
    cells = [best, *(completed(sections, {name: baseline[name]}, best, baseline) for name in back)]
    return [*(cell for cell in cells if cell != baseline), baseline]


def components(sections: Iterable[Section], baseline: Cell) -> list[str]:
    """Return what can be left out of a study, by its path: `prior`, `augmentation.translate` ..."""
    found = []
    for section in sections:
        if section.path in (*catalog.PARTS, "averaging"):
            found.append(section.path)
        elif section.holds_many:
            label = str(baseline[section.path]) if section.is_choice else next(iter(section.branches))
            found += [f"{section.path}.{call.name}" for call in section.branches[label]]
    return found


def without(section: Section, component: str) -> Section | None:
    """Return what is left of a section: nothing of one component's, the other components of several."""
    if component == section.path:
        return None
    branches = {
        label: tuple(call for call in calls if f"{section.path}.{call.name}" != component)
        for label, calls in section.branches.items()
    }
    return section.model_copy(update={"branches": branches})


def leave_one_out(sections: list[Section], baseline: Cell) -> list[Cell]:
    """Everything, and everything without one component, which has no parameters there."""
    cells: list[Cell] = [{WITHOUT: NOTHING, **completed(sections, baseline)}]
    for component in components(sections, baseline):
        left = [
            rest
            for section in sections
            if (rest := without(section, component) if is_of(component, section) else section)
        ]
        cells.append({WITHOUT: component, **completed(left, baseline)})
    return cells


def is_of(component: str, section: Section) -> bool:
    """Whether a component, by its path, belongs to a section."""
    return component.partition(".")[0] == section.path


def _part_cells(section: Section) -> list[list[tuple[str, Scalar]]]:
    """Return the cells of one section, each as pairs of a parameter and its value."""
    cells = []
    for label in section.branches:
        chosen: list[tuple[str, Scalar]] = [(section.path, label)] if section.is_choice else []
        parameters = dict(section.parameters_of(label))
        wheels = [levels(distribution) or () for distribution in parameters.values()]
        cells += [chosen + list(zip(parameters, values, strict=True)) for values in product(*wheels)]
    return cells


def _wheel_sizes(section: Section, label: str) -> list[int]:
    return [num_levels(distribution) or 0 for _, distribution in section.parameters_of(label)]

"""Effects: what changes with an arm, and in a factorial with a factor, paired by replicate.

A factor is a parameter that varies, its levels are the values it takes. An arm, or a level, is compared with a baseline
in each replicate; the differences are what `paired.py` judges. Arms without an effect stay in the list.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

from equitune.analysis.arms import Arm, arm_of, arms
from equitune.analysis.paired import Effect, by_replicate, corrected, effect_of, is_certain
from equitune.records.reader import StudyRecord

Array = npt.NDArray[np.float64]
Level = object
Context = frozenset[tuple[str, type, object]]  # the other parameters of an arm


@dataclass(frozen=True)
class Change:
    """From one level of a factor to another one; of arms, the factor is `arm` and the levels are their numbers."""

    factor: str
    before: Level
    after: Level


@dataclass(frozen=True)
class Comparison:
    """One effect on one objective.

    Attributes:
        changes: one, or the two whose interaction it is.
        contexts: over how many combinations of the other factors it is averaged.
        pairs: of how many of these, over all replicates, both sides have a value.
        most_pairs: as many as there would be if no trial had failed.
    """

    objective: str
    changes: tuple[Change, ...]
    effect: Effect
    contexts: int
    pairs: int
    most_pairs: int


def arm_effects(study: StudyRecord, against: int = 0, split: str = "validation") -> list[Comparison]:
    """Every other arm minus the arm `against`, for each objective; corrected over the arms.

    Raises:
        UserError: there is no arm of that number.
    """
    found = arms(study)
    if len(found) < 2:
        return []
    baseline = found.index(arm_of(found, against))
    made = []
    for objective, table, certain in tables_of(study, found, split):
        for index, arm in enumerate(found):
            if index != baseline:
                change = Change("arm", found[baseline].number, arm.number)
                made.append(compared(objective, (change,), (table[index] - table[baseline])[None], certain))
    return corrected_by_objective(made)


def factor_effects(study: StudyRecord, against: int = 0, split: str = "validation") -> list[Comparison]:
    """In a factorial, every level of each factor minus its level in the arm `against`, averaged over the other factors.

    In each replicate the two levels are compared at each combination of the other factors that has both, and these
    differences are averaged: main effects. A level's own parameters are averaged first. A factor that has no two such
    combinations is left out: its effects are those of arms.

    Raises:
        UserError: there is no arm of that number.
    """
    found = arms(study)
    if not found:
        return []
    baseline = arm_of(found, against)
    made = []
    for objective, table, certain in tables_of(study, found, split):
        for factor in factors(found):
            first, *others = levels(found, factor, baseline)
            cells = cells_of(found, (factor,), table)
            for level in others:
                before, after = cells[(typed(first),)], cells[(typed(level),)]
                shared = [context for context in after if context in before]
                if len(shared) >= 2:
                    differences = np.stack([after[context] - before[context] for context in shared])
                    made.append(compared(objective, (Change(factor, first, level),), differences, certain))
    return corrected_by_objective(made)


def tables_of(study: StudyRecord, found: list[Arm], split: str) -> Iterator[tuple[str, Array, bool]]:
    """Each objective, its values (arms, replicates), and whether they are no matter of chance."""
    for objective in study.objectives:
        table = by_replicate(found, objective, split)
        yield objective, table, is_certain(table)


def factors(found: list[Arm]) -> list[str]:
    """Return the parameters that take several values."""
    names = dict.fromkeys(name for arm in found for name in arm.params)
    return [name for name in names if len({typed(arm.params[name]) for arm in found if name in arm.params}) > 1]


def levels(found: list[Arm], factor: str, baseline: Arm) -> list[Level]:
    """Return the values of a factor in the order of arms, that of the baseline first."""
    values = {typed(arm.params[factor]): arm.params[factor] for arm in [baseline, *found] if factor in arm.params}
    return list(values.values())


def cells_of(
    found: list[Arm], names: tuple[str, ...], table: Array
) -> dict[tuple[tuple[type, Level], ...], dict[Context, Array]]:
    """Return the arms by their levels of some factors and then by their other parameters, as numbers by replicate.

    What a level alone brings, such as `prior.p4.coset_pool` to `prior`, is averaged; NaN in the replicates where one of
    the arms that are averaged has no value.

    Args:
        table: (arms, replicates).
    """
    groups: dict[tuple[tuple[type, Level], ...], dict[Context, list[int]]] = {}
    for index, arm in enumerate(found):
        if all(name in arm.params for name in names):
            at = tuple(typed(arm.params[name]) for name in names)
            context = frozenset(
                (name, *typed(value))
                for name, value in arm.params.items()
                if name not in names and not any(name.startswith(f"{factor}.") for factor in names)
            )
            groups.setdefault(at, {}).setdefault(context, []).append(index)
    return {
        at: {context: table[members].mean(axis=0) for context, members in contexts.items()}
        for at, contexts in groups.items()
    }


def corrected_by_objective(comparisons: list[Comparison]) -> list[Comparison]:
    """Holm's correction among the comparisons of one objective, which stand together."""
    return list(_corrected(comparisons))


def _corrected(comparisons: list[Comparison]) -> Iterator[Comparison]:
    for _, group in groupby(comparisons, key=lambda comparison: comparison.objective):
        members = list(group)
        for member, effect in zip(members, corrected([member.effect for member in members]), strict=True):
            yield Comparison(member.objective, member.changes, effect, member.contexts, member.pairs, member.most_pairs)


def compared(objective: str, changes: tuple[Change, ...], differences: Array, certain: bool) -> Comparison:
    """Return what differences (contexts, replicates) say once they are averaged over contexts, NaN left out."""
    has_value = ~np.isnan(differences)
    counts = has_value.sum(axis=0)
    sums = np.where(has_value, differences, 0.0).sum(axis=0)
    means = np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)
    effect = effect_of(means, certain)
    return Comparison(objective, changes, effect, len(differences), int(has_value.sum()), differences.size)


def typed(value: Level) -> tuple[type, Level]:
    """Return a level by which 1, 1.0 and True differ."""
    return type(value), value

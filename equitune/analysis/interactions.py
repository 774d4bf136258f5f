"""Interactions: whether the effect of one factor depends on the level of another one, paired by replicate."""

from itertools import combinations, product

import numpy as np

from equitune.analysis.arms import arm_of, arms
from equitune.analysis.effects import (
    Change,
    Comparison,
    cells_of,
    compared,
    corrected_by_objective,
    factors,
    levels,
    tables_of,
    typed,
)
from equitune.records.reader import StudyRecord


def interactions(study: StudyRecord, against: int = 0, split: str = "validation") -> list[Comparison]:
    """In a factorial, the difference of differences of each two factors, averaged over the other factors.

    Factor A from its baseline level a0 to a, and B from b0 to b: (y(a, b) - y(a0, b)) - (y(a, b0) - y(a0, b0)) in each
    replicate, at each combination of the other factors that has all four. Factors of more than two levels have one such
    contrast for each two further levels; baseline levels are those of the arm `against`. 0 says that both effects add
    up. Corrected over all contrasts of an objective.

    Raises:
        UserError: there is no arm of that number.
    """
    found = arms(study)
    if not found:
        return []
    baseline = arm_of(found, against)
    known = {factor: levels(found, factor, baseline) for factor in factors(found)}
    made = []
    for objective, table, certain in tables_of(study, found, split):
        for one, other in combinations(known, 2):
            cells = cells_of(found, (one, other), table)
            first, second = known[one], known[other]
            for a, b in product(first[1:], second[1:]):
                corners = [
                    cells.get((typed(x), typed(y)), {}) for x, y in product((a, first[0]), (b, second[0]))
                ]  # (a, b), (a, b0), (a0, b), (a0, b0)
                shared = [context for context in corners[0] if all(context in corner for corner in corners)]
                if shared:
                    y = np.stack([[corner[context] for context in shared] for corner in corners])
                    changes = (Change(one, first[0], a), Change(other, second[0], b))
                    made.append(compared(objective, changes, (y[0] - y[2]) - (y[1] - y[3]), certain))
    return corrected_by_objective(made)

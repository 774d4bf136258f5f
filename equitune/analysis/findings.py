"""Findings: what a study's numbers let one say, in sentences that follow from them by rules.

1. An effect (of an arm, of a factor's level, of two factors together) is a finding where its 95 % interval excludes 0
   and its p, corrected by Holm's rule over the comparisons of its objective, is at most 0.05. Where its replicates are
   too few for any such p, an interval that excludes 0 is a suggestion, which more replicates would have to confirm.
2. A numeric parameter, and the number of parameters of a network, goes with an objective where the interval of
   Spearman's correlation over trials excludes 0 and its p, corrected over all such pairs, is at most 0.05; likewise
   accuracy and equivariance, over all trials and at equal capacity.
3. Everything else that was compared is said, too: there is not enough evidence, which is no evidence of nothing.

Every sentence has its effect, interval, n and p; what has none of them makes no sentence.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, get_args

import numpy as np

from equitune.analysis.arms import Arm
from equitune.analysis.correlation import FEWEST, RankCorrelation, rank_correlation
from equitune.analysis.effects import Change, Comparison
from equitune.analysis.paired import holm, smallest_p
from equitune.analysis.pareto import objective_values
from equitune.analysis.summary import Analysis
from equitune.records.reader import StudyRecord

SIGNIFICANT = 0.05

Verdict = Literal["found", "suggested", "not enough evidence"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)  # the strongest first


@dataclass(frozen=True)
class Finding:
    """One sentence and the numbers it follows from."""

    verdict: Verdict
    sentence: str
    effect: float
    low: float
    high: float
    n: int
    p: float  # corrected


def findings(study: StudyRecord, said: Analysis) -> list[Finding]:
    """The findings of a study, the strongest first."""
    found = [
        *_of_effects(said.arms, [*said.factor_effects, *said.interactions] or said.arm_effects),
        *_of_relations(study, said),
    ]
    return sorted(found, key=lambda finding: VERDICTS.index(finding.verdict))


def _of_effects(arms: Sequence[Arm], comparisons: Sequence[Comparison]) -> Iterator[Finding]:
    """Rule 1."""
    for _, members in groupby(comparisons, key=lambda comparison: (comparison.objective, len(comparison.changes))):
        tested = [comparison for comparison in members if not math.isnan(comparison.effect.p_holm)]
        for comparison in tested:
            effect = comparison.effect
            what = " together with ".join(described(change, arms) for change in comparison.changes)
            objective = comparison.objective.replace("_", " ")
            verb = "falls" if effect.mean < 0 else "rises"
            if len(comparison.changes) > 1:
                verb = "changes otherwise than by the sum of the two"
            numbers = (
                f"{effect.mean:+.4f}, 95 % interval {effect.low:+.4f} to {effect.high:+.4f}, "
                f"n = {effect.n} replicates, Holm's p = {effect.p_holm:.3f}"
            )
            least = min(1.0, smallest_p(effect.n) * len(tested))
            verdict: Verdict = "not enough evidence"
            sentence = f"{what}: not enough evidence of an effect on {objective} ({numbers})."
            if effect.is_seen and effect.p_holm <= SIGNIFICANT:
                verdict, sentence = "found", f"{what}: {objective} {verb} ({numbers})."
            elif effect.is_seen and least > SIGNIFICANT:
                verdict = "suggested"
                sentence = (
                    f"{what}: {objective} {verb}, by its interval ({numbers}, which cannot be below {least:.2f})."
                )
            yield Finding(verdict, sentence, effect.mean, effect.low, effect.high, effect.n, effect.p_holm)


def _of_relations(study: StudyRecord, said: Analysis) -> Iterator[Finding]:
    """Rule 2."""
    relations = [*_parameters(study)]
    for each in said.correlations:
        if each.is_objective:
            metric = each.metric.replace("_", " ")
            relations.append((f"accuracy and {metric}", each.overall))
            if each.within.trials and each.within.strata > 1:
                relations.append((f"accuracy and {metric}, among networks of equally many parameters", each.within))
    known = [(what, relation) for what, relation in relations if not math.isnan(relation.rho)]
    for (what, relation), p in zip(known, holm([relation.p for _, relation in known]), strict=True):
        numbers = (
            f"Spearman's correlation {relation.rho:+.2f}, 95 % interval {relation.low:+.2f} to {relation.high:+.2f}, "
            f"n = {relation.trials} trials, Holm's p = {p:.3f}"
        )
        is_found = (relation.low > 0 or relation.high < 0) and p <= SIGNIFICANT
        how = ("rise together" if relation.rho > 0 else "go against each other") if is_found else ""
        sentence = f"{what} {how} ({numbers})." if is_found else f"{what}: not enough evidence ({numbers})."
        verdict: Verdict = "found" if is_found else "not enough evidence"
        yield Finding(verdict, sentence, relation.rho, relation.low, relation.high, relation.trials, p)


def _parameters(study: StudyRecord) -> Iterator[tuple[str, RankCorrelation]]:
    """Each numeric parameter, and the size of the networks, with each objective."""
    complete = [trial for trial in study.trials if trial.state == "COMPLETE"]
    columns: dict[str, list[float]] = {}
    for name in sorted({name for trial in complete for name in trial.config.params}):
        values = [trial.config.params.get(name, math.nan) for trial in complete]
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            columns[name] = [float(value) for value in values]  # type: ignore[arg-type]
    columns["parameters"] = [float(trial.metrics["parameters"].value or math.nan) for trial in complete]
    for name, column in columns.items():
        for objective in study.objectives:
            if objective == name:
                continue
            values = [objective_values(study, trial)[objective] for trial in complete]
            pairs = np.array([column, [math.nan if value is None else value for value in values]], dtype=np.float64).T
            whole = pairs[np.isfinite(pairs).all(axis=1)]
            if len(whole) >= FEWEST:
                what = "the number of parameters" if name == "parameters" else name
                yield f"{what} and {objective.replace('_', ' ')}", rank_correlation([whole])


def described(change: Change, arms: Sequence[Arm]) -> str:
    """`model.width 4 → 8`; of an arm, what it changes of its baseline."""
    if change.factor != "arm":
        return f"{change.factor} {_short(change.before)} → {_short(change.after)}"
    before, after = (arm.params for number in (change.before, change.after) for arm in arms if arm.number == number)
    changed = [
        f"{name} {_short(before.get(name, '–'))} → {_short(after.get(name, '–'))}"
        for name in dict.fromkeys([*before, *after])
        if (name in before) != (name in after) or before[name] != after[name]
    ]
    return ", ".join(changed)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

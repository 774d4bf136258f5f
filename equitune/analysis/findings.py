"""Findings: what a study's numbers let one say, in sentences that follow from them by rules.

1. An effect (of an arm, of a factor's level, of two factors together) is a finding where its 95 % interval excludes 0
   and its p, corrected by Holm's rule over the comparisons of its objective, is at most 0.05. Where its replicates are
   too few for any such p, an interval that excludes 0 is a suggestion, which more replicates would have to confirm.
2. A numeric parameter, and the number of parameters of a network, goes with an objective where the interval of
   Spearman's correlation over trials excludes 0 and its p, corrected over all such pairs, is at most 0.05; likewise
   accuracy and equivariance, over all trials and at equal capacity. Replicates count as one, their mean.
3. Everything else that was compared is said, too: there is not enough evidence, which is no evidence of nothing.

Every sentence has its effect, interval, n and p; what has none of them makes no sentence.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, get_args

import numpy as np

from equitune.analysis.arms import Arm, measured_on
from equitune.analysis.correlation import FEWEST, Array, RankCorrelation, overall_and_within, rank_correlation
from equitune.analysis.effects import Change, Comparison
from equitune.analysis.paired import holm, smallest_p
from equitune.analysis.summary import Analysis
from equitune.records.reader import StudyRecord, TrialRecord

SIGNIFICANT = 0.05
CERTAIN = ("parameters", "multiply_adds")  # which follow from a configuration without any training

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
    """Return the findings of a study, the strongest first."""
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
                f"n = {effect.n} replicates, Holm's p {_p(effect.p_holm)}"
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
    table = _Table(study, said.split)
    relations = [*_parameters(study, table)]
    for each in said.correlations:
        if each.is_objective:
            overall, within = each.overall, each.within
            if table.are_means:
                overall, within = overall_and_within(*map(table.metric, (each.metric, "accuracy", "parameters")))
            metric = each.metric.replace("_", " ")
            relations.append((f"accuracy and {metric}", overall))
            if within.trials and within.strata > 1:
                relations.append((f"accuracy and {metric}, among networks of equally many parameters", within))
    unit = "configurations" if table.are_means else "trials"
    known = [(what, relation) for what, relation in relations if not math.isnan(relation.rho)]
    for (what, relation), p in zip(known, holm([relation.p for _, relation in known]), strict=True):
        numbers = (
            f"Spearman's correlation {relation.rho:+.2f}, 95 % interval {relation.low:+.2f} to {relation.high:+.2f}, "
            f"n = {relation.trials} {unit}, Holm's p {_p(p)}"
        )
        is_found = (relation.low > 0 or relation.high < 0) and p <= SIGNIFICANT
        how = ("rise together" if relation.rho > 0 else "go against each other") if is_found else ""
        sentence = f"{what} {how} ({numbers})." if is_found else f"{what}: not enough evidence ({numbers})."
        verdict: Verdict = "found" if is_found else "not enough evidence"
        yield Finding(verdict, sentence, relation.rho, relation.low, relation.high, relation.trials, p)


class _Table:
    """What a study's complete trials have, a row a trial; of replicates their mean, for one luck of a seed is no trend.

    Replicates of a configuration are no independent draws of configurations: each as a row of its own would prove
    anything.
    """

    def __init__(self, study: StudyRecord, split: str) -> None:
        self.are_means = study.replicates > 1
        self._split = split
        rows: dict[object, list[TrialRecord]] = {}
        for trial in study.trials:
            if trial.state == "COMPLETE":
                same = repr(sorted(trial.config.params.items())) if self.are_means else trial.number
                rows.setdefault(same, []).append(trial)
        self._rows = list(rows.values())

    def parameters(self) -> dict[str, Array]:
        """Return the numeric parameters that every row has, (rows,) each."""
        every = [[row[0].config.params] for row in self._rows]
        names = sorted({name for (params,) in every for name in params})
        columns = {name: [params.get(name) for (params,) in every] for name in names}
        return {
            name: np.array(values, dtype=np.float64)
            for name, values in columns.items()
            if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        }

    def metric(self, name: str) -> Array:
        """Return a metric, (rows,); NaN where a trial of the row has no value."""
        return np.array([np.mean([self._value(trial, name) for trial in row]) for row in self._rows], dtype=np.float64)

    def _value(self, trial: TrialRecord, name: str) -> float:
        measured = measured_on(trial, self._split).get(name)
        return math.nan if measured is None or measured.value is None else float(measured.value)


def _parameters(study: StudyRecord, table: _Table) -> Iterator[tuple[str, RankCorrelation]]:
    """Each numeric parameter, and the size of the networks, with each objective."""
    columns = {**table.parameters(), "parameters": table.metric("parameters")}
    for name, column in columns.items():
        for objective in study.objectives:
            if objective not in CERTAIN:
                pairs = np.stack([column, table.metric(objective)], axis=1)
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


def _p(value: float) -> str:
    return f"= {value:.3f}" if value >= 0.001 else "< 0.001"

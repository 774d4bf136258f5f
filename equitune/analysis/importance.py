"""Importance: which parameters decide an objective, by Optuna's PED-ANOVA and fANOVA from the study's records."""

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import BaseImportanceEvaluator, FanovaImportanceEvaluator, PedAnovaImportanceEvaluator

from equitune.analysis.pareto import losses, objective_values
from equitune.records.reader import StudyRecord, TrialRecord

FEWEST = 20  # trials: the best quarter of them are the five that PED-ANOVA asks for
BEST = 5
SHARE = 0.1  # of the trials that PED-ANOVA calls the best, once that is more than five
FEWEST_OF_A_PARAMETER = 10  # trials that have a conditional parameter
TREES = 32
MOST_CATEGORIES = 10  # of numbers whose distribution is not known
MOST_ONE_HOT = 6  # categories that fANOVA sees as columns, over whose 2^categories corners it sums for each tree
MOST_IN_FOREST = 300  # trials that fANOVA grows its trees on, evenly spaced: 2,000 would take a minute


@dataclass(frozen=True)
class Importance:
    """How much each parameter decides one objective, the most important first.

    Attributes:
        trials: complete ones with a value.
        reason: why there is no number, where there is none.
        best: how many trials PED-ANOVA calls the best.
        ped_anova: by parameter, what tells the best trials from the others; together 1. Conditional parameters
            included (Watanabe et al., 2023, 2304.10255; 2601.20800).
        fanova: by parameter that every trial has, the share of the variance of a random forest that it explains by
            itself (Hutter et al., 2014); what is left to 1 are interactions.
    """

    objective: str
    trials: int
    reason: str | None
    best: int
    ped_anova: dict[str, float]
    fanova: dict[str, float]


def importance(study: StudyRecord) -> list[Importance]:
    """Return the importance of every parameter that varies, for each objective."""
    complete = [trial for trial in study.trials if trial.state == "COMPLETE"]
    table = losses([objective_values(study, trial) for trial in complete], study.objectives)
    known = distributions(study)
    return [
        _of_objective(name, complete, column, known) for name, column in zip(study.objectives, table.T, strict=True)
    ]


def _of_objective(
    objective: str, complete: list[TrialRecord], column: Any, known: Mapping[str, BaseDistribution]
) -> Importance:
    rows = [(trial, float(loss)) for trial, loss in zip(complete, column, strict=True) if np.isfinite(loss)]
    has = Counter(name for trial, _ in rows for name in trial.config.params)
    names = {name for name in known if has[name] >= FEWEST_OF_A_PARAMETER}
    values = sorted(loss for _, loss in rows)
    best = max(BEST, int(np.ceil(SHARE * len(rows))))
    reason = None
    if not known:
        reason = "no parameter varies"
    elif len(rows) < FEWEST:
        reason = f"{len(rows)} trials have a value, and it takes {FEWEST}"
    elif not names:
        reason = f"no parameter has a value in {FEWEST_OF_A_PARAMETER} trials"
    elif values[best - 1] == values[-1]:
        reason = (
            "it is the same in every trial" if values[0] == values[-1] else "the best trials are equal to the worst"
        )
    if reason:
        return Importance(objective, len(rows), reason, 0, {}, {})
    with _silence():
        ped_anova = _evaluated(PedAnovaImportanceEvaluator(target_quantile=best / len(rows)), rows, known, names)
        step = -(-len(rows) // MOST_IN_FOREST)
        everywhere = {name for name in names if has[name] == len(rows)}
        forest = FanovaImportanceEvaluator(n_trees=TREES, seed=0)
        fanova = _evaluated(forest, rows[::step], _in_order(known, rows), everywhere) if everywhere else {}
    total = sum(ped_anova.values())
    ped_anova = {name: value / total for name, value in ped_anova.items()} if total else {}
    return Importance(objective, len(rows), None, best, ped_anova, fanova)


@contextmanager
def _silence() -> Iterator[None]:
    """Return what Optuna would say is one of our reasons."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        optuna.logging.set_verbosity(before)


def _evaluated(
    evaluator: BaseImportanceEvaluator,
    rows: list[tuple[TrialRecord, float]],
    known: Mapping[str, BaseDistribution | list[str]],
    names: set[str],
) -> dict[str, float]:
    """Return what an evaluator says of a study of these losses, which lives in memory and minimises
    them: low is good.
    """
    study = optuna.create_study(direction="minimize")
    trials = []
    for trial, loss in rows:
        params = {name: value for name, value in trial.config.params.items() if name in names}
        of_these = {name: _distribution(known[name]) for name in params}
        trials.append(
            optuna.trial.create_trial(
                value=loss,
                params={name: _encoded(value, known[name]) for name, value in params.items()},
                distributions=of_these,
            )
        )
    study.add_trials(trials)
    return {name: float(value) for name, value in evaluator.evaluate(study, sorted(names)).items()}


def distributions(study: StudyRecord) -> dict[str, BaseDistribution]:
    """Return what each recorded parameter was drawn from, by its name; those of a single value are left out.

    As the study's identity in study.json says; the values that occurred where it does not, or where these lie outside.
    """
    values: dict[str, list[Any]] = {}
    for trial in study.trials:
        for name, value in trial.config.params.items():
            values.setdefault(name, []).append(value)
    asked = dict(_asked(study.info.get("identity", {})))
    found = {}
    for name, seen in values.items():
        said = asked.get(name)
        found[name] = said if said is not None and all(_fits(value, said) for value in seen) else _observed(seen)
    return {name: distribution for name, distribution in found.items() if not distribution.single()}


def _asked(identity: Mapping[str, Any]) -> Iterator[tuple[str, BaseDistribution]]:
    """Each distribution of an identity under every name that its parameter may have.

    A name is the path without the component's own name, which a path repeats where there is a choice of components:
    `model.depth` lies at model/resnet/depth, or `model.resnet.depth` at model/resnet/resnet/depth.
    """
    for path, section in identity.items():
        if section and isinstance(section, dict):
            yield path, _categories(section)  # a choice of branches, where one was recorded under this name
            for place, distribution in _leaves((path,), section):
                yield ".".join(place), distribution
                for left_out in range(1, len(place) - 1):
                    yield ".".join(place[:left_out] + place[left_out + 1 :]), distribution


def _leaves(place: tuple[str, ...], data: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], BaseDistribution]]:
    for key, value in data.items():
        if isinstance(value, dict):
            if "choice" in value:
                yield (*place, key), _categories(value["choice"])
            elif "int" in value:
                low, high = value["int"]
                yield (
                    (*place, key),
                    IntDistribution(low=low, high=high, log=value.get("log", False), step=value.get("step", 1)),
                )
            elif "float" in value:
                low, high = value["float"]
                yield (
                    (*place, key),
                    FloatDistribution(low=low, high=high, log=value.get("log", False), step=value.get("step")),
                )
            else:
                yield from _leaves((*place, key), value)


def _observed(values: list[Any]) -> BaseDistribution:
    """Return a range where there are many different numbers, else categories."""
    distinct = {repr(value): value for value in values}
    kinds = {type(value) for value in values}
    if len(distinct) > MOST_CATEGORIES and kinds <= {int, float}:
        low, high = min(values), max(values)
        if kinds == {int}:
            return IntDistribution(low=low, high=high)
        return FloatDistribution(low=low, high=high)
    return _categories(distinct.values())


def _categories(values: Iterable[Any]) -> CategoricalDistribution:
    return CategoricalDistribution([repr(value) for value in values])  # as text, by which 1, 1.0 and True differ


def _in_order(
    known: Mapping[str, BaseDistribution], rows: list[tuple[TrialRecord, float]]
) -> dict[str, BaseDistribution | list[str]]:
    """Many categories as a list, by their mean loss: a tree's best split of them is one of this order (CART, 1984)."""
    ordered: dict[str, BaseDistribution | list[str]] = {**known}
    for name, each in known.items():
        if isinstance(each, CategoricalDistribution) and len(each.choices) > MOST_ONE_HOT:
            losses_of: dict[str, list[float]] = {str(choice): [] for choice in each.choices}
            for trial, loss in rows:
                if name in trial.config.params:
                    losses_of[repr(trial.config.params[name])].append(loss)
            means = {choice: float(np.mean(values or [np.inf])) for choice, values in losses_of.items()}
            ordered[name] = sorted(means, key=means.__getitem__)
    return ordered


def _distribution(known: BaseDistribution | list[str]) -> BaseDistribution:
    return IntDistribution(0, len(known) - 1) if isinstance(known, list) else known


def _encoded(value: Any, distribution: BaseDistribution | list[str]) -> Any:
    if isinstance(distribution, list):
        return distribution.index(repr(value))
    return repr(value) if isinstance(distribution, CategoricalDistribution) else value


def _fits(value: Any, distribution: BaseDistribution) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return repr(value) in distribution.choices
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return type(value) in (int, float) and distribution.low <= value <= distribution.high

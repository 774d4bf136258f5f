"""Optuna's samplers, by the name a study gives them."""

from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from equitune.spec.design import Cell
from equitune.spec.search import SearchSpec
from equitune.spec.study import StudySpec


def make_sampler(spec: StudySpec, number: int) -> optuna.samplers.BaseSampler:
    """The sampler that proposes the trial of that number.

    It is made anew for each trial, seeded by study and number: what it proposes is then a function of the finished
    trials, the seed and the number, and a driver that died and came back changes nothing.
    """
    search = spec.search
    if search.sampler == "grid":
        return CellSampler(spec.planned(number)[1])
    seed = search.seed * 100_003 + number
    if search.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if search.sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=nsga2_population(search))
    return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def nsga2_population(search: SearchSpec) -> int:
    """Trials a generation. Optuna's default of 50 would leave a study of some dozens of trials to chance."""
    return max(8, search.trials // 8)


class CellSampler(optuna.samplers.BaseSampler):
    """Proposes the values of one cell of a design.

    Optuna's GridSampler knows no conditional parameters and no replicates, and proposes in an order of its own;
    enqueued trials would be a second list of the design, in the journal, that a driver may die in the middle of.
    """

    def __init__(self, cell: Cell) -> None:
        self._cell = cell

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._cell[param_name]

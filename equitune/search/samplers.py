"""What proposes the next trial, by the name a study gives it: Optuna's samplers, and two of our own.

A sampler is made anew for each trial, and seeded by study, number and parameter. What it proposes is then a function
of the finished trials, the seed and the number: a driver that dies at any moment and comes back changes nothing.
"""

import hashlib
import warnings
from collections.abc import Callable
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseGASampler, BaseSampler
from optuna.samplers._gp.sampler import _get_params
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from equitune.config.cell import Cell
from equitune.config.search import SearchSpec
from equitune.config.space import Choice, Distribution, IntRange
from equitune.config.study import StudySpec
from equitune.search.recent import RecentTPESampler

TPE_STARTUP = GP_STARTUP = 10  # random trials at first: Optuna's own defaults, on which the dry run relies


def make_sampler(spec: StudySpec, number: int, given: Cell | None = None) -> BaseSampler:
    """Return the sampler that proposes the trial of that number; its values may be given."""
    search = spec.search
    if given is not None and search.design:
        return CellSampler(given)
    if search.sampler == "qmc":
        return CellSampler(given or sobol_cell(spec, number))
    sampler = Seeded(lambda seed: _optuna_sampler(search, seed), f"{search.seed}/{number}")
    return CellSampler(given, sampler) if given is not None else sampler


def num_independent(search: SearchSpec) -> int:
    """How many of the first proposals depend on no result."""
    first = {
        "tpe": TPE_STARTUP,
        "gp": GP_STARTUP,
        "cmaes": 1,
        "nsga2": search.population_size,
        "nsga3": search.population_size,
    }
    return min(first.get(search.sampler, search.trials), search.trials)


def _optuna_sampler(search: SearchSpec, seed: int) -> BaseSampler:
    samplers = optuna.samplers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # what is pinned does not change under us
        match search.sampler:
            case "random":
                return samplers.RandomSampler(seed=seed)
            case "nsga2":
                return samplers.NSGAIISampler(seed=seed, population_size=search.population_size)
            case "nsga3":
                return samplers.NSGAIIISampler(seed=seed, population_size=search.population_size)
            case "gp":
                return _GaussianProcess(seed=seed, n_startup_trials=GP_STARTUP, warn_independent_sampling=False)
            case "cmaes":
                return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
            case _:
                return RecentTPESampler(seed=seed, n_startup_trials=TPE_STARTUP, constant_liar=True)


class Seeded(BaseSampler):
    """Draws each parameter from a seed of its own, so that a trial whose proposing was cut off between two of them
    gets the rest as it would have had."""

    def __init__(self, make: Callable[[int], BaseSampler], key: str) -> None:
        self._make, self._key = make, key
        self._joint = self._at("")  # proposes what is proposed together

    def _at(self, name: str) -> BaseSampler:
        digest = hashlib.sha256(f"{self._key}/{name}".encode()).digest()
        return self._make(int.from_bytes(digest[:4], "big"))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._joint.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if isinstance(self._joint, BaseGASampler):
            # Whoever asks first in a generation chooses its parents, which costs random numbers: so all begin anew.
            self._joint.get_parent_population(study, self._joint.get_trial_generation(study, trial))
            self._joint = self._at("")
        return self._joint.sample_relative(study, trial, search_space)

    def sample_independent(self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution) -> Any:
        return self._at(name).sample_independent(study, trial, name, distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._joint.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        self._joint.after_trial(study, trial, state, values)


class _GaussianProcess(optuna.samplers.GPSampler):
    """Counts a trial that is asked again not among those that run beside it: what was proposed for it is kept."""

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        known = _get_params(trial)
        if search_space and search_space.keys() <= known.keys():
            return {name: known[name] for name in search_space}
        return super().sample_relative(study, trial, search_space)


class CellSampler(BaseSampler):
    """Proposes given values: those of a baseline, or of one cell of a design.

    Optuna's GridSampler knows no conditional parameters and no replicates, and proposes in an order of its own;
    enqueued trials would be a second list of the design, in the journal, that a driver may die in the middle of.
    """

    def __init__(self, cell: Cell, beside: BaseSampler | None = None) -> None:
        """`beside` takes the trial among its own, as one of a generation; its values count for nothing."""
        self._cell, self._beside = cell, beside

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._beside.infer_relative_search_space(study, trial) if self._beside else {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        proposed = self._beside.sample_relative(study, trial, search_space) if self._beside else {}
        return {name: self._cell[name] for name in proposed if name in self._cell}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._cell[param_name]


def sobol_cell(spec: StudySpec, number: int) -> Cell:
    """Return a value for every parameter of a study, also those of branches that are not chosen: the point of that
    number of a Sobol sequence, scrambled by the study's seed. Of any 2**k successive points from a multiple of 2**k on,
    each dimension has one in each of 2**k equal parts.

    Optuna's QMCSampler draws choices and branches at random, and counts its points in the storage.
    """
    from scipy.stats import qmc  # half a second to import

    distributions = spec.parameters()
    if not distributions:
        return {}
    sequence = qmc.Sobol(len(distributions), rng=spec.search.seed)
    if number:  # by 0 it cannot
        sequence.fast_forward(number)
    shares = sequence.random(1)[0]
    return {
        name: distribution.at(float(share))
        for (name, distribution), share in zip(distributions.items(), shares, strict=True)
    }


def optuna_distribution(distribution: Distribution) -> BaseDistribution:
    """Return a distribution as Optuna has it."""
    if isinstance(distribution, Choice):
        return CategoricalDistribution(distribution.choice)
    if isinstance(distribution, IntRange):
        return IntDistribution(*distribution.bounds, log=distribution.log, step=distribution.step)
    return FloatDistribution(*distribution.bounds, log=distribution.log, step=distribution.step)

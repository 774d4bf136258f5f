"""Optuna's samplers, by the name a study gives them."""

import optuna

from equitune.spec.study import SearchSpec


def make_sampler(search: SearchSpec, number: int) -> optuna.samplers.BaseSampler:
    """The sampler that proposes the trial of that number.

    It is made anew for each trial, seeded by study and number: what it proposes is then a function of the finished
    trials, the seed and the number, and a driver that died and came back changes nothing.
    """
    seed = search.seed * 100_003 + number
    if search.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if search.sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=nsga2_population(search))
    return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def nsga2_population(search: SearchSpec) -> int:
    """Trials a generation. Optuna's default of 50 would leave a study of some dozens of trials to chance."""
    return max(8, search.trials // 8)

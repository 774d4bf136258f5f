"""TPE that sees a bounded part of a study's history, so that a proposal costs the same after ten thousand trials."""

import copy
from collections.abc import Container
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

MOST_SEEN = 400  # finished trials; see benchmarks/README.md for what more of them would gain
MOST_OF_FRONT = 100  # of these


class RecentTPESampler(TPESampler):
    """Optuna's, which sees the Pareto front, the most recent trials and those that run; at first these are all."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return super().infer_relative_search_space(_seen(study), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return super().sample_relative(_seen(study), trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return super().sample_independent(_seen(study), trial, param_name, param_distribution)


class History:
    """What is seen of a growing list of trials; each is looked at again only until it has ended.

    What is seen is a function of the trials as they are, whenever this object was made.
    """

    def __init__(self, directions: list[StudyDirection]) -> None:
        self._signs = np.array([-1.0 if direction == StudyDirection.MAXIMIZE else 1.0 for direction in directions])
        self._num_known, self._unfinished = 0, list[int]()
        self._front = np.empty((0, len(directions)))  # losses of its members
        self._members = list[int]()  # their numbers

    def seen(self, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        """Of all trials of the study, in the order of their numbers, those to learn from."""
        fresh = [trials[number] for number in self._unfinished] + trials[self._num_known :]
        self._num_known = len(trials)
        self._unfinished = [trial.number for trial in fresh if not trial.state.is_finished()]
        for trial in fresh:
            if trial.state == TrialState.COMPLETE and max(trial.constraints.values(), default=0) <= 0:
                self._add(trial)
        front = sorted(self._members)[-MOST_OF_FRONT:]
        ended = (trial.number for trial in reversed(trials) if trial.state in (TrialState.COMPLETE, TrialState.PRUNED))
        numbers = {*front, *islice(ended, MOST_SEEN - len(front)), *self._unfinished}
        return [trials[number] for number in sorted(numbers)]

    def _add(self, trial: FrozenTrial) -> None:
        losses = np.array(trial.values) * self._signs
        if ((self._front <= losses).all(axis=1) & (self._front < losses).any(axis=1)).any():
            return
        stays = ~((self._front >= losses).all(axis=1) & (self._front > losses).any(axis=1))
        self._front = np.concatenate([self._front[stays], losses[None]])
        self._members = [number for number, kept in zip(self._members, stays, strict=True) if kept] + [trial.number]


_histories: WeakKeyDictionary[Study, History] = WeakKeyDictionary()  # samplers are made anew for each trial


def _seen(study: Study) -> Study:
    """Return the study, whose trials are those that are seen."""
    history = _histories.get(study)
    if history is None:
        history = _histories[study] = History(study.directions)
    trials = history.seen(study._get_trials(deepcopy=False, use_cache=True))

    def get_trials(
        deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return [trial for trial in trials if states is None or trial.state in states]

    view = copy.copy(study)
    view._get_trials = get_trials  # type: ignore[method-assign]
    return view

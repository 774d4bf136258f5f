"""Ray Tune's Searcher over Optuna's ask and tell.

The Optuna storage is the search's truth and each trial's `result.json` is its own; what Tune remembers is disposable.
The stock OptunaSearch loses or doubles trials when the driver dies, and tells stopped trials as complete.
"""

import json
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import optuna
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from equitune.analysis.arms import to_test
from equitune.records.folder import StudyFolder, TrialFolder, write_json
from equitune.records.reader import StudyReader
from equitune.records.results import TrialResult
from equitune.search.samplers import make_sampler
from equitune.spec.space import Choice, Distribution, IntRange, Scalar
from equitune.spec.study import StudySpec

# What each state is told as. INFEASIBLE also gets a violated constraint: TPE proposes again what is told as FAIL.
_OPTUNA_STATES = {
    "COMPLETE": optuna.trial.TrialState.COMPLETE,
    "PRUNED": optuna.trial.TrialState.PRUNED,
    "INFEASIBLE": optuna.trial.TrialState.PRUNED,
    "FAILED": optuna.trial.TrialState.FAIL,
}


class StudySearcher(Searcher):
    """Proposes trials from Optuna and tells it how they ended; at last has the test split read for
    the final front, or for every trial of a study that compares arms.

    Trials that a dead driver left unfinished go first, under their own number.
    """

    def __init__(
        self,
        spec: StudySpec,
        folder: StudyFolder,
        study: optuna.Study,
        say: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        super().__init__()  # neither metric nor mode: Tune then demands no metric in a report
        self._spec, self._folder, self._study, self._say = spec, folder, study, say
        self._live: dict[str, optuna.Trial] = {}  # Tune's trial id -> Optuna's trial
        self._testing: dict[str, TrialFolder] = {}  # Tune's trial id -> a finished trial
        self._untested: list[TrialFolder] | None = None  # what is left to test; None: it is not known yet
        self.draining = False  # no more trials begin
        self.stopping = False  # those that run stop, and go on another time
        self.halted: str | None = None  # why nothing can be recorded any more
        self._orphans = self._reconcile()

    def has_trials_left(self) -> bool:
        return bool(self._orphans) or self._num_started() < self._spec.search.trials

    def is_done(self) -> bool:
        """Whether every trial has ended and those that count have been tested."""
        return not (self.has_trials_left() or self._live or self._left_to_test())

    def suggest(self, trial_id: str) -> Any:
        if self.draining:
            return Searcher.FINISHED
        if self.has_trials_left():
            return self._next_trial(trial_id)
        if self._live:
            return None  # they may still change the front
        if self._untested is None:
            self._untested = self._left_to_test()
            which = "trials" if self._spec.search.replicates > 1 else "trials of the front"
            self._say(f"measuring the {len(self._untested)} {which} on the test split")
        if not self._untested:
            return Searcher.FINISHED
        folder = self._testing[trial_id] = self._untested.pop(0)
        return {"number": folder.number, "folder": str(folder.path), "test": True}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """The last report carries the result; a trial that only reported epochs has not ended."""
        if result.get("halt"):
            self.halted = result["halt"]
        elif "result" in result and trial_id in self._live:
            self._tell(self._live.pop(trial_id), TrialResult.model_validate_json(result["result"]))
        elif "test" in result and trial_id in self._testing:
            write_json(self._testing.pop(trial_id).test, json.loads(result["test"]))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._testing.pop(trial_id, None)
        trial = self._live.pop(trial_id, None)
        if trial is not None and error:
            reason = "its worker was lost again and again: see the study's log"
            lost = TrialResult(number=trial.number, state="FAILED", reason=reason)
            write_json(self._folder.trial(trial.number).result, lost.model_dump(mode="json"))
            self._tell(trial, lost)

    def stopper(self) -> Stopper:
        """Ends Tune's attempt when asked to; what runs stays RUNNING in the study and goes on with the next."""
        return _StopAll(self)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the state lies in the study's folder."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the state lies in the study's folder."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its searcher for a restore that is never made

    def _next_trial(self, trial_id: str) -> dict[str, Any]:
        if self._orphans:
            trial = self._reopened(self._orphans.pop(0))
        else:
            self._study.sampler = make_sampler(self._spec, self._num_started())
            trial = self._study.ask()
        config = self._spec.suggest(trial.number, partial(suggested, trial))
        folder = self._folder.trial(trial.number)
        write_json(folder.config, config.to_json())
        self._live[trial_id] = trial
        return {"number": trial.number, "folder": str(folder.path), "trial": config.model_dump_json()}

    def _left_to_test(self) -> list[TrialFolder]:
        members = to_test(StudyReader(self._folder).read())
        return [self._folder.trial(trial.number) for trial in members if not trial.test]

    def _num_started(self) -> int:
        waiting = optuna.trial.TrialState.WAITING
        return sum(trial.state != waiting for trial in self._study.get_trials(deepcopy=False))

    def _reconcile(self) -> list[int]:
        """Tells the results that a dead driver did not; returns the numbers of the trials it left unfinished."""
        orphans = []
        for frozen in self._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
            path = self._folder.trial(frozen.number).result
            if path.exists():
                self._tell(self._reopened(frozen.number), TrialResult.model_validate_json(path.read_bytes()))
            else:
                orphans.append(frozen.number)
        return sorted(orphans)

    def _reopened(self, number: int) -> optuna.Trial:
        """A begun trial: the parameters it has return as they were, the others are sampled."""
        self._study.sampler = make_sampler(self._spec, number)
        storage, study_id = self._study._storage, self._study._study_id
        return optuna.Trial(self._study, storage.get_trial_id_from_study_id_trial_number(study_id, number))

    def _tell(self, trial: optuna.Trial, result: TrialResult) -> None:
        state = _OPTUNA_STATES[result.state]
        values = objective_values(self._spec, result)
        if result.state == "INFEASIBLE":
            trial.set_constraint("infeasible", 1.0)
        elif result.state == "COMPLETE" and values is None:
            trial.set_constraint("unmeasured", 1.0)
            state = optuna.trial.TrialState.PRUNED
        complete = state == optuna.trial.TrialState.COMPLETE
        self._study.tell(trial, values if complete else None, state=state, skip_if_finished=True)


class _StopAll(Stopper):
    def __init__(self, searcher: StudySearcher) -> None:
        self._searcher = searcher

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._searcher.stopping or self._searcher.halted is not None


def objective_values(spec: StudySpec, result: TrialResult) -> list[float] | None:
    """The objectives in the study's order; None if one of them has no value."""
    values = [result.metrics[name].value if name in result.metrics else None for name in spec.objectives]
    if any(value is None or not math.isfinite(value) for value in values):
        return None
    return values  # type: ignore[return-value]


def suggested(trial: optuna.Trial, name: str, distribution: Distribution) -> Scalar:
    """The value that Optuna proposes for a parameter."""
    if isinstance(distribution, Choice):
        return trial.suggest_categorical(name, distribution.choice)
    if isinstance(distribution, IntRange):
        low, high = distribution.bounds
        return trial.suggest_int(name, low, high, step=distribution.step, log=distribution.log)
    return trial.suggest_float(name, *distribution.bounds, step=distribution.step, log=distribution.log)

"""Ray Tune's Searcher and its scheduler, as seen by the engine: Tune's calls go in, what is to be done comes out.

The stock OptunaSearch loses or doubles trials when the driver dies, and tells stopped trials as complete; Tune's own
schedulers know one metric. What Tune remembers is disposable.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from equitune.driver.attendance import Attendance
from equitune.errors import StoreError, UserError
from equitune.results.values import Measurement, TrialResult
from equitune.search.engine import Engine, Task

MAX_LOST_WORKERS = 3  # that a trial may lose from one epoch to the next: it goes on from its checkpoint each time


class _Forgetful:
    """Tune pickles what it is given, for a restore that is never made."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


@contextmanager
def _halting(engine: Engine) -> Iterator[None]:
    """Return a storage or a store that cannot be reached any more ends the attempt, not the study.

    Waits for ever where Ray was left: the process ends without it.
    """
    try:
        with engine.hearing:
            yield
    except UserError as error:
        engine.halted = engine.halted or str(error)
    except StoreError as error:
        engine.halted = engine.halted or f"{error}, and run the same command again; nothing is lost"


class StudySearcher(_Forgetful, Searcher):
    """Asks the engine what each of Tune's trials does, and hands it what they report."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()  # neither metric nor mode: Tune then demands no metric in a report
        self._engine = engine
        self._numbers: dict[str, int] = {}  # Tune's trial id -> ours

    def suggest(self, trial_id: str) -> Any:
        task: Task | str = "over"
        with _halting(self._engine):
            task = self._engine.next_task()
        if not isinstance(task, Task):
            return None if task == "wait" else Searcher.FINISHED
        self._numbers[trial_id] = task.number
        proposed: dict[str, Any] = {"number": task.number, "folder": str(task.folder.path)}
        return proposed | ({"trial": task.config.model_dump_json()} if task.config else {"test": True})

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Take the last report, which carries the result; a trial that only reported epochs has not ended."""
        if result.get("halt"):
            self._engine.halted = result["halt"]
        elif "result" in result:
            with _halting(self._engine):
                self._engine.ended(self._numbers[trial_id], TrialResult.model_validate_json(result["result"]))
        elif "test" in result:
            metrics = json.loads(result["test"])
            measured = {name: Measurement.model_validate(metric) for name, metric in metrics.items()}
            with _halting(self._engine):
                self._engine.tested(self._numbers[trial_id], measured)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number = self._numbers.pop(trial_id, None)
        if number is None:
            return
        with _halting(self._engine):
            # Of a search that halts no worker is to blame: it may be Ray that was lost.
            (self._engine.lost if error and not self._engine.halted else self._engine.left)(number)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the state lies in the study's folder."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the state lies in the study's folder."""


class RungScheduler(_Forgetful, FIFOScheduler):
    """Stops a trial where the engine says so. Rungs are our own epochs: Tune's iterations begin again after a loss.

    Each epoch renews what a trial may lose: one that machines leave again and again gets to its end, one that kills its
    own worker does not get on.
    """

    def __init__(self, engine: Engine, attendance: Attendance) -> None:
        super().__init__()
        self._engine, self._attendance = engine, attendance

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._attendance.add(trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Tune asks at each of its steps."""
        self._attendance.look(tune_controller._tune_controller)  # out of a wrapper that warns
        return super().choose_trial_to_run(tune_controller)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Add the trial of a lost worker again, unless it has lost too many."""
        self._attendance.drop(tune_controller, trial, is_lost=True)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self._attendance.drop(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if "epoch" not in result:
            return str(TrialScheduler.CONTINUE)
        self._attendance.hear(trial.config["number"], result["epoch"])
        trial.max_failures = trial.num_failures + MAX_LOST_WORKERS
        metrics = json.loads(result.get("metrics", "{}"))
        goes_on = True
        with _halting(self._engine):
            goes_on = self._engine.reached(trial.config["number"], result["epoch"], metrics)
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Drop what Tune would keep of the trial as long as the study runs, and nobody asks for."""
        self._attendance.drop(tune_controller, trial)
        self._attendance.hand_back(tune_controller, trial)
        kept = trial.run_metadata
        kept.metric_analysis, kept.metric_n_steps = {}, {}
        # Emptied, not taken out: of a trial without numbers Tune's reporter prints a line.
        kept.last_result = kept.last_result | {name: "" for name in ("result", "test") if name in kept.last_result}


class StopAll(_Forgetful, Stopper):
    """Ends Tune's attempt when the engine wants it; what runs stays RUNNING in the study and goes on with the next."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        with _halting(self._engine):
            self._engine.tick()
        return self._engine.stopping or self._engine.halted is not None

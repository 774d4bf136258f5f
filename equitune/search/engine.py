"""The search without Ray: what runs next, whether it goes on, and how it ended.

The Optuna storage is the search's truth and each trial's `result.json` is its own; whoever runs the trials may forget
everything. An engine that dies at any call and is made anew goes on as if nothing had happened.
"""

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import optuna

from equitune.analysis.arms import to_test
from equitune.analysis.pareto import losses
from equitune.records.folder import StudyFolder, TrialFolder, read_json, write_json
from equitune.records.reader import StudyReader
from equitune.records.results import Measurement, TrialResult
from equitune.search.budget import Growth, Usage
from equitune.search.cells import OpenCells
from equitune.search.resources import gpu_of
from equitune.search.rungs import last_rung, recorded_rungs
from equitune.search.samplers import make_sampler
from equitune.spec.cell import Cell
from equitune.spec.space import Choice, Distribution, IntRange, Scalar
from equitune.spec.study import StudySpec
from equitune.spec.trial import TrialConfig

# What each state is told as. INFEASIBLE also gets a violated constraint, by its cause: TPE proposes again what FAILs.
_OPTUNA_STATES = {
    "COMPLETE": optuna.trial.TrialState.COMPLETE,
    "PRUNED": optuna.trial.TrialState.PRUNED,
    "INFEASIBLE": optuna.trial.TrialState.PRUNED,
    "FAILED": optuna.trial.TrialState.FAIL,
}


@dataclass(frozen=True)
class Task:
    """What a worker is to do: to run a trial, or, without a configuration, to test a finished one."""

    folder: TrialFolder
    config: TrialConfig | None

    @property
    def number(self) -> int:
        return self.folder.number


class Engine:
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
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`now`: seconds on a clock of which only differences count."""
        self._spec, self._folder, self._study, self._say = spec, folder, study, say
        self._cell_of: dict[int, int] = {}  # of a design, by the trials' numbers
        self._cells: OpenCells | None = None
        self._live: dict[int, optuna.Trial] = {}  # the trials that run, by number
        self.gpus_of: Callable[[TrialConfig], float] = lambda config: gpu_of(spec.resources)  # what a trial occupies
        self._gpus: dict[int, float] = {}  # the same, by number
        self._untested: list[TrialFolder] | None = None  # what is left to test; None: it is not known yet
        self.draining = False  # no more trials begin
        self.stopping = False  # those that run stop, and go on another time
        self.halted: str | None = None  # why nothing can be recorded any more
        self.hearing = threading.Lock()  # held while it hears of trials, and for good once Ray was left
        self._num_brought = int(read_json(folder.study).get("imported", 0))  # by a warm start: beside the budget
        self._early = recorded_rungs(spec, folder)
        self._usage = Usage(folder.usage, now)
        self._growth = Growth(spec.search, _reference(spec), self._num_brought)
        for values in ended_values(study) if self._growth.is_asked else ():
            self._growth.add(_losses(spec, values))
        study._pop_waiting_trial_id = lambda: None  # type: ignore[method-assign] # reads every trial, and none ever waits
        self._num_started = len(study.get_trials(deepcopy=False))
        self._orphans = self._reconcile()
        if spec.search.design:
            self._open_cells()

    def tick(self) -> None:
        """Time passes: to be called every few seconds at least."""
        self._usage.count(sum(self._gpus[number] for number in self._live))

    def ended_by(self) -> str:
        """The budget that is used up."""
        trials = self._spec.search.trials
        begun = self._num_started - self._num_brought if self._cells is None else trials - len(self._cells)
        all_of_them = f"trials: {begun} of {trials}"
        return self._usage.used_up(self._spec.search) or self._growth.had_enough or all_of_them

    def has_trials_left(self) -> bool:
        """Whether any trial is to begin or to go on."""
        if self._usage.used_up(self._spec.search):
            return False
        is_open = not self._growth.had_enough and self._has_open()
        return bool(self._orphans) or is_open

    def _has_open(self) -> bool:
        """Whether the budget of trials, or the design, has one that has not begun."""
        if self._cells is not None:
            return bool(self._cells)
        return self._num_started - self._num_brought < self._spec.search.trials

    def is_done(self) -> bool:
        """Whether every trial has ended and those that count have been tested."""
        return not (self.has_trials_left() or self._live or self._left_to_test())

    def next_task(self) -> Task | Literal["wait", "over"]:
        """What a free worker does next: `wait` while what runs may still decide, `over` when nothing is left."""
        self.tick()
        if self.draining:
            return "over"
        if self.has_trials_left():
            return self._next_trial()
        if self._live:
            return "wait"  # they may still change the front
        if self._untested is None:
            self._untested = self._left_to_test()
            which = "trials" if self._spec.search.replicates > 1 else "trials of the front"
            if self._untested:
                self._say(f"measuring the {len(self._untested)} {which} on the test split")
        if self._untested:
            return Task(self._untested.pop(0), None)
        self._usage.save()  # a budget of time that has ended the study stays used up
        return "over"

    def reached(self, number: int, epoch: int, metrics: Mapping[str, float]) -> bool:
        """Hears of an epoch, and of what was measured after it; returns whether the trial goes on.

        One that stops for want of time stays RUNNING, and goes on with a larger budget.
        """
        self.tick()
        return self._stays(number, epoch, metrics) and not self._usage.used_up(self._spec.search)

    def _stays(self, number: int, epoch: int, metrics: Mapping[str, float]) -> bool:
        """Whether early stopping leaves the trial running."""
        if self._early is None or number not in self._live:
            return True
        heard = {epoch: metrics}
        if not all(self._early.has_heard(number, rung) for rung in self._early.rungs_before(epoch)):
            # Its worker died between the record of a rung and the report.
            heard = {record.epoch: record.metrics for record in self._folder.trial(number).read_epochs()} | heard
        for at in sorted(heard):
            if at <= epoch and (reason := self._why_stop(number, at, heard[at])):
                try:
                    self._stop(self._live[number], reason)
                except OSError as error:
                    self.halted = f"{error.filename} cannot be written: {error.strerror}"
                    return True
                del self._live[number]
                return False
        return True

    def ended(self, number: int, result: TrialResult) -> None:
        """Takes the result of a trial. A second one of the same trial changes nothing."""
        self.tick()
        trial = self._live.pop(number, None)
        if trial is not None:
            self._tell(trial, result)
        if self._early and result.state == "COMPLETE":
            self._early.complete(number)

    def lost(self, number: int) -> None:
        """Gives up a trial whose worker died too often without an epoch in between."""
        trial = self._live.pop(number, None)
        if trial is not None:
            reason = "its worker was lost again and again within one epoch: see its log.txt and the study's log"
            result = TrialResult(number=number, state="FAILED", reason=reason)
            folder = self._folder.trial(number)
            folder.claim()  # it may have been cut off only, and train on
            write_json(folder.result, result.model_dump(mode="json"))
            self._tell(trial, result)

    def left(self, number: int) -> None:
        """A trial was stopped from outside: it stays RUNNING in the study, and goes on with the next driver."""
        self._live.pop(number, None)

    def tested(self, number: int, metrics: Mapping[str, Measurement]) -> None:
        """Takes what a finished trial scores on the test split."""
        plain = {name: metric.model_dump(mode="json") for name, metric in metrics.items()}
        write_json(self._folder.trial(number).test, plain)

    def _next_trial(self) -> Task:
        if self._orphans:
            trial = self._reopened(self._orphans.pop(0))
        else:
            if self._cells is not None:
                self._cell_of[self._num_started] = self._cells.take()
            self._study.sampler = self._sampler(self._num_started)
            trial = self._study.ask()
            self._num_started += 1
        cell = self._cell_of.get(trial.number)
        if cell is not None:
            trial.set_user_attr("cell", cell)
        config = self._spec.suggest(trial.number, partial(suggested, trial), cell)
        folder = self._folder.trial(trial.number)
        write_json(folder.config, config.to_json())
        self._live[trial.number], self._gpus[trial.number] = trial, self.gpus_of(config)
        return Task(folder, config)

    def _left_to_test(self) -> list[TrialFolder]:
        members = to_test(StudyReader(self._folder).read())
        return [self._folder.trial(trial.number) for trial in members if not trial.test]

    def _reconcile(self) -> list[int]:
        """Tells the results that a dead driver did not; returns the numbers of the trials it left unfinished."""
        orphans = []
        for frozen in self._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
            folder = self._folder.trial(frozen.number)
            if folder.result.exists():
                folder.checkpoint.unlink(missing_ok=True)
                self._tell(self._reopened(frozen.number), TrialResult.model_validate_json(folder.result.read_bytes()))
            elif (last := last_rung(folder, self._early)) and (
                reason := self._why_stop(frozen.number, last.epoch, last.metrics)
            ):
                self._stop(self._reopened(frozen.number), reason)
            else:
                orphans.append(frozen.number)
        return sorted(orphans)

    def _why_stop(self, number: int, epoch: int, metrics: Mapping[str, float]) -> str | None:
        """Why a trial is stopped at a rung; None where it goes on: what others are compared with always does."""
        if self._early is None or not self._early.hear(number, epoch, metrics):
            return None
        reason = self._early.why_stop(number, epoch)
        if reason is None or self._given(number) is not None:
            return None
        config = TrialConfig.from_json_text(self._folder.trial(number).config.read_text())
        return f"stopped at epoch {epoch} of {config.training.epochs}: {reason}"

    def _stop(self, trial: optuna.Trial, reason: str) -> None:
        """Ends a trial early. The record comes first: all else is made up for by whoever goes on."""
        folder = self._folder.trial(trial.number)
        result = TrialResult(number=trial.number, state="PRUNED", reason=reason)
        folder.claim()  # its worker is told a moment later, and writes nothing more
        write_json(folder.result, result.model_dump(mode="json"))
        folder.checkpoint.unlink(missing_ok=True)
        self._tell(trial, result)

    def _open_cells(self) -> None:
        """Finds out which cell each trial of a design has, and which cells are left."""
        settled = set()
        for trial in self._study.get_trials(deepcopy=False):
            cell, config = trial.user_attrs.get("cell"), self._folder.trial(trial.number).config
            if cell is None and config.exists():
                cell = read_json(config).get("cell", trial.number)  # its number, before trials had a cell
            if cell is not None:
                self._cell_of[trial.number] = cell
                settled |= {cell} if trial.state != optuna.trial.TrialState.FAIL else set()
        self._cells = OpenCells(self._spec.search.trials, settled)
        for number in self._orphans:
            if number not in self._cell_of and self._cells:  # its driver died before it could say: the next one, again
                self._cell_of[number] = self._cells.take()

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        return make_sampler(self._spec, number, self._given(number))

    def _given(self, number: int) -> Cell | None:
        """The values that a trial has without a sampler: of a design; of the baseline, the first of the study's own."""
        return self._spec.given(self._cell_of.get(number, number - self._num_brought))

    def _reopened(self, number: int) -> optuna.Trial:
        """A begun trial: the parameters it has return as they were, the others are sampled."""
        self._study.sampler = self._sampler(number)
        storage, study_id = self._study._storage, self._study._study_id
        return optuna.Trial(self._study, storage.get_trial_id_from_study_id_trial_number(study_id, number))

    def _tell(self, trial: optuna.Trial, result: TrialResult) -> None:
        state = _OPTUNA_STATES[result.state]
        outside = violations(self._spec, result)
        for name, violation in outside.items():
            trial.set_constraint(name, violation)
        values = objective_values(self._spec, result)
        if result.state == "INFEASIBLE":
            trial.set_constraint(result.cause or "infeasible", 1.0)  # records from before have no cause
        elif result.state == "COMPLETE" and values is None:
            trial.set_constraint("unmeasured", 1.0)
            state = optuna.trial.TrialState.PRUNED
        if result.state == "FAILED" and self._cells is not None:
            self._cells.failed(self._cell_of[trial.number])
        complete = state == optuna.trial.TrialState.COMPLETE
        self._study.tell(trial, values if complete else None, state=state, skip_if_finished=True)
        counts = complete and all(violation <= 0 for violation in outside.values())
        self._growth.add(_losses(self._spec, values if counts else None))
        self._usage.save()


def _reference(spec: StudySpec) -> list[float | None]:
    """The study's references as losses; None for an objective that has none."""
    signs = {name: -1.0 if direction == "maximize" else 1.0 for name, direction in spec.directions.items()}
    return [signs[name] * spec.references[name] if name in spec.references else None for name in spec.objectives]


def _losses(spec: StudySpec, values: Sequence[float] | None) -> npt.NDArray[np.float64]:
    """The objectives of a trial as losses, (objectives,); NaN where it does not count."""
    known = dict(zip(spec.objectives, values, strict=True)) if values else {}
    row: npt.NDArray[np.float64] = losses([known], spec.directions)[0]
    return row


def ended_values(study: optuna.Study) -> list[list[float] | None]:
    """The objectives of the trials that have ended, in that order; None for one that does not count."""
    ended = [trial for trial in study.get_trials(deepcopy=False) if trial.datetime_complete]
    ended.sort(key=lambda trial: (trial.datetime_complete, trial.number))
    return [trial.values if all(value <= 0 for value in trial.constraints.values()) else None for trial in ended]


def objective_values(spec: StudySpec, result: TrialResult) -> list[float] | None:
    """The objectives in the study's order; None if one of them has no value."""
    values = [result.metrics[name].value if name in result.metrics else None for name in spec.objectives]
    if any(value is None or not math.isfinite(value) for value in values):
        return None
    return values  # type: ignore[return-value]


def violations(spec: StudySpec, result: TrialResult) -> dict[str, float]:
    """How far a trial lies outside each constraint, at most 0 within; of one that did not complete, where it is known.

    A complete trial without the metric counts as outside.
    """
    known = {name: metric.value for name, metric in result.metrics.items()}
    if result.state == "COMPLETE":
        known = dict.fromkeys(spec.constraints) | known
    return {name: bound.violation(known[name]) for name, bound in spec.constraints.items() if name in known}


def suggested(trial: optuna.Trial, name: str, distribution: Distribution) -> Scalar:
    """The value that Optuna proposes for a parameter."""
    if isinstance(distribution, Choice):
        return trial.suggest_categorical(name, distribution.choice)
    if isinstance(distribution, IntRange):
        low, high = distribution.bounds
        return trial.suggest_int(name, low, high, step=distribution.step, log=distribution.log)
    return trial.suggest_float(name, *distribution.bounds, step=distribution.step, log=distribution.log)

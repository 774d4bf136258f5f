"""The search without Ray: what runs next, whether it goes on, and how it ended.

The Optuna storage is the search's truth and each trial's `result.json` is its own; whoever runs the trials may forget
everything. An engine that dies at any call and is made anew goes on as if nothing had happened.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import optuna
from optuna.trial import FrozenTrial

from equitune.analysis.arms import to_test
from equitune.config.cell import Cell
from equitune.config.record import FORMAT
from equitune.config.resources import gpu_of
from equitune.config.space import Choice, Distribution, IntRange, Scalar
from equitune.config.study import StudySpec
from equitune.config.trial import TrialConfig
from equitune.records.checked import is_there
from equitune.records.durable import remove, rewrite
from equitune.records.folder import StudyFolder, TrialFolder, write_json
from equitune.records.info import read_info
from equitune.records.reader import StudyReader, read_config
from equitune.results.values import Measurement, TrialResult
from equitune.search.budget import Growth, Usage
from equitune.search.cells import OpenCells
from equitune.search.reconcile import must_run_again, place_in_design, readable_result, rebuilt
from equitune.search.rungs import last_rung, recorded_rungs
from equitune.search.samplers import make_sampler
from equitune.search.telling import TOLD, contradiction, losses_of, reference_losses, telling, values_of
from equitune.search.telling import ended_values as ended_values
from equitune.search.telling import objective_values as objective_values
from equitune.search.telling import violations as violations


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

    Trials that a dead driver left unfinished go first, under their own number; then those that have ended and whose
    record is lost, of which the search is told nothing twice.
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
        self._live: dict[int, optuna.Trial | FrozenTrial] = {}  # the trials that run, by number; frozen: once more
        self._again: list[FrozenTrial] = []  # the trials whose record is lost
        self.gpus_of: Callable[[TrialConfig], float] = lambda config: gpu_of(spec.resources)  # what a trial occupies
        self.is_at_work: Callable[[int], bool] = lambda number: True  # whether a trial has a place, or waits for one
        self._gpus: dict[int, float] = {}  # what the trials occupy, by number
        self._untested: list[TrialFolder] | None = None  # what is left to test; None: it is not known yet
        self.draining = False  # no more trials begin
        self.stopping = False  # those that run stop, and go on another time
        self.halted: str | None = None  # why nothing can be recorded any more
        self.hearing = threading.Lock()  # held while it hears of trials, and for good once Ray was left
        self._num_brought = int(read_info(folder.study).get("imported", 0))  # by a warm start: beside the budget
        self._early = recorded_rungs(spec, folder)
        self._usage = Usage(folder.usage, now)
        self._growth = Growth(spec.search, reference_losses(spec), self._num_brought)
        for values in ended_values(study) if self._growth.is_asked else ():
            self._growth.add(losses_of(spec, values))
        study._pop_waiting_trial_id = lambda: None  # type: ignore[method-assign] # reads every trial, and none ever waits
        self._num_started = len(study.get_trials(deepcopy=False))
        self._orphans = self._reconcile()
        for number in self._orphans:  # their workers went with their driver
            folder.trial(number).release()
        if spec.search.design:
            self._open_cells()

    def tick(self) -> None:
        """Time passes: to be called every few seconds at least."""
        self._usage.count(sum(self._gpus[number] for number in self._live if self.is_at_work(number)))

    def ended_by(self) -> str:
        """Return the budget that is used up."""
        trials = self._spec.search.trials
        begun = self._num_started - self._num_brought if self._cells is None else trials - len(self._cells)
        all_of_them = f"trials: {begun} of {trials}"
        return self._usage.used_up(self._spec.search) or self._growth.had_enough or all_of_them

    def has_trials_left(self) -> bool:
        """Whether any trial is to begin or to go on."""
        if self._again:
            return True  # whatever the budget: it has paid for them
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
        """Return what a free worker does next: `wait` while what runs may still decide, `over` when nothing is left."""
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
        stays = self._stays(number, epoch, metrics)
        return stays and (isinstance(self._live.get(number), FrozenTrial) or not self._usage.used_up(self._spec.search))

    def _stays(self, number: int, epoch: int, metrics: Mapping[str, float]) -> bool:
        """Whether early stopping leaves the trial running."""
        if self._early is None or number not in self._live:
            return True
        trial, heard = self._live[number], {epoch: metrics}
        if not all(self._early.has_heard(number, rung) for rung in self._early.rungs_before(epoch)):
            # Its worker died between the record of a rung and the report.
            heard = {record.epoch: record.metrics for record in self._folder.trial(number).read_epochs()} | heard
        for at in sorted(heard):
            reason = self._why_stop(number, at, heard[at]) if at <= epoch else None
            if reason and not isinstance(trial, FrozenTrial):  # one that runs once more went on there
                try:
                    self._stop(trial, reason)
                except OSError as error:
                    self.halted = f"{error.filename} cannot be written: {error.strerror}"
                    return True
                del self._live[number]
                return False
        return True

    def ended(self, number: int, result: TrialResult) -> None:
        """Take the result of a trial. A second one of the same trial changes nothing."""
        self.tick()
        trial = self._live.pop(number, None)
        if isinstance(trial, FrozenTrial):
            self._compare(trial, result)
        elif trial is not None:
            self._tell(trial, result)
        if self._early and result.state == "COMPLETE":
            self._early.complete(number)

    def lost(self, number: int) -> None:
        """Give up a trial whose worker died too often without an epoch in between."""
        trial = self._live.get(number)
        if trial is not None:
            reason = "its worker was lost again and again within one epoch: see its log.txt and the study's log"
            result = TrialResult(number=number, state="FAILED", reason=reason)
            folder = self._folder.trial(number)
            folder.claim()  # it may have been cut off only, and train on
            write_json(folder.result, result.model_dump(mode="json"))
            self.ended(number, result)

    def left(self, number: int) -> None:
        """Forget a trial that was stopped from outside: it stays RUNNING in the study, and goes on with the next
        driver.
        """
        self._live.pop(number, None)

    def tested(self, number: int, metrics: Mapping[str, Measurement]) -> None:
        """Takes what a finished trial scores on the test split."""
        plain = {name: metric.model_dump(mode="json") for name, metric in metrics.items()}
        write_json(self._folder.trial(number).test, {"format": FORMAT} | plain)

    def _next_trial(self) -> Task:
        if not self._orphans and self._again:
            return self._once_more(self._again.pop(0))
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

    def _once_more(self, told: FrozenTrial) -> Task:
        """Return a trial that has ended, and whose record is lost."""
        folder = self._folder.trial(told.number)
        config = read_config(folder)
        self._live[told.number], self._gpus[told.number] = told, self.gpus_of(config)
        return Task(folder, config)

    def _compare(self, told: FrozenTrial, result: TrialResult) -> None:
        """Hold a record that was made again against what the search had been told, which stays as it is."""
        why = contradiction(self._spec, result, told, by_the_clock=False)
        if why:
            self._say(f"trial {told.number} was trained again, and {why}; it was told so before, and that stays")
        if why or contradiction(self._spec, result, told):  # seconds: marked, and not said
            again = result.model_copy(update={"provenance": result.provenance | {TOLD: values_of(told)}})
            write_json(self._folder.trial(told.number).result, again.model_dump(mode="json"))

    def _left_to_test(self) -> list[TrialFolder]:
        members = to_test(StudyReader(self._folder).read())
        return [self._folder.trial(trial.number) for trial in members if not trial.test]

    def _reconcile(self) -> list[int]:
        """Tells the results that a dead driver did not; returns the numbers of the trials it left unfinished.

        Finds those that have ended, and must run once more.
        """
        orphans = []
        seen = self._folder.seen("config.json", "result.json")
        for frozen in self._study.get_trials(deepcopy=False):
            folder = seen.trial(frozen.number)
            if frozen.state.is_finished():
                cell = place_in_design(self._spec, folder, frozen)
                self._again += [frozen] if must_run_again(self._spec, folder, frozen, cell, self._say) else []
                continue
            result = readable_result(folder, bool(frozen.params) or not self._spec.parameters(), self._say)
            if result is not None:
                rewrite(folder.result)  # its worker may have died before it was flushed
                if not is_there(folder.config):
                    cell = place_in_design(self._spec, folder, frozen)
                    write_json(folder.config, rebuilt(self._spec, frozen, cell).to_json())
                remove(folder.checkpoint)
                self._tell(self._reopened(frozen.number), result)
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
        config = read_config(self._folder.trial(number))
        return f"stopped at epoch {epoch} of {config.training.epochs}: {reason}"

    def _stop(self, trial: optuna.Trial, reason: str) -> None:
        """End a trial early. The record comes first: all else is made up for by whoever goes on."""
        folder = self._folder.trial(trial.number)
        result = TrialResult(number=trial.number, state="PRUNED", reason=reason)
        folder.claim()  # its worker is told a moment later, and writes nothing more
        write_json(folder.result, result.model_dump(mode="json"))
        remove(folder.checkpoint)
        self._tell(trial, result)

    def _open_cells(self) -> None:
        """Find out which cell each trial of a design has, and which cells are left."""
        settled = set()
        for trial in self._study.get_trials(deepcopy=False):
            cell = place_in_design(self._spec, self._folder.trial(trial.number), trial)
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
        """Return the values that a trial has without a sampler: of a design; of the baseline, the first of the study's
        own.
        """
        return self._spec.given(self._cell_of.get(number, number - self._num_brought))

    def _reopened(self, number: int) -> optuna.Trial:
        """Return a begun trial: the parameters it has return as they were, the others are sampled."""
        self._study.sampler = self._sampler(number)
        storage, study_id = self._study._storage, self._study._study_id
        return optuna.Trial(self._study, storage.get_trial_id_from_study_id_trial_number(study_id, number))

    def _tell(self, trial: optuna.Trial, result: TrialResult) -> None:
        end = telling(self._spec, result)
        for name, violation in end.constraints.items():
            trial.set_constraint(name, violation)
        if result.state == "FAILED" and self._cells is not None:
            self._cells.failed(self._cell_of[trial.number])
        self._study.tell(trial, end.values, state=end.state, skip_if_finished=True)
        counts = all(violation <= 0 for violation in end.constraints.values())
        self._growth.add(losses_of(self._spec, end.values if counts else None))
        self._usage.save()


def suggested(trial: optuna.Trial, name: str, distribution: Distribution) -> Scalar:
    """Return the value that Optuna proposes for a parameter."""
    if isinstance(distribution, Choice):
        return trial.suggest_categorical(name, distribution.choice)
    if isinstance(distribution, IntRange):
        low, high = distribution.bounds
        return trial.suggest_int(name, low, high, step=distribution.step, log=distribution.log)
    return trial.suggest_float(name, *distribution.bounds, step=distribution.step, log=distribution.log)

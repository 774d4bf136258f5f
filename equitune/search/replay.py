"""A study without training: its engine on known learning curves, under a clock that jumps from event to event.

The records are those of a real study, so samplers, schedulers, budgets, going on and analysis are tried on thousands of
trials, a few milliseconds each; drivers may die anywhere.
"""

import csv
import heapq
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from equitune.config.study import StudySpec
from equitune.config.trial import TrialConfig
from equitune.errors import Infeasible
from equitune.records.durable import make_folder
from equitune.records.folder import StudyFolder, TrialFolder, write_json
from equitune.results.values import Epoch, Measurement, TrialResult
from equitune.search.engine import Engine, Task
from equitune.search.hung import Watchdog
from equitune.search.storage import open_storage
from equitune.search.study_record import begin, require_same_search

START_S = 1.7e9  # Unix time at which replays begin
TEST_S = 1.0  # that testing a trial lasts
LOOK_S = 60.0  # between two looks at workers that hang, where nothing else happens
MOST_LOOKS = 10_000  # at workers of which none is ever given up

# Of each epoch its seconds and the metrics after it; a worker hangs for math.inf of them. A curve may raise Infeasible
# or WorkerLost, at once or later.
Curve = Iterable[tuple[float, Mapping[str, float]]]
Curves = Callable[[TrialConfig], Curve]


class DriverDied(Exception):
    """What the driver knew is gone, and its workers with it. A test may raise it from inside a write, too."""


class WorkerLost(Exception):
    """Raised by a curve: the trial's worker died too often."""


class Clock:
    """Unix time in seconds, which passes only where a replay says so."""

    def __init__(self, now_s: float = START_S) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Tally:
    """What a replay took."""

    seconds: float = 0.0  # of virtual time, deaths of drivers included
    epochs: int = 0  # trained
    events: int = 0  # at which a driver could die
    drivers: int = 0
    given_up: int = 0  # workers that hung


def replay(
    spec: StudySpec,
    folder: StudyFolder,
    curves: Curves,
    *,
    workers: int = 1,
    dies: Callable[[int], bool] = lambda event: False,
    clock: Clock | None = None,
) -> Tally:
    """Run a study to its end, or go on with one that lies in the folder.

    Args:
        spec: the study.
        folder: takes its records.
        curves: how a trial learns: a function of its configuration, or else going on is another study.
        workers: how many trials run at a time.
        dies: whether the driver dies at that event, counted from 1 over all drivers. Another one then opens the folder.
        clock: read by whatever asks for the time.

    Raises:
        RuntimeError: the engine waits although nothing runs, or for a worker that hangs for ever.
    """
    make_folder(folder.path)
    if folder.study.exists():
        require_same_search(folder, spec)
    begin(folder, spec, None, ())
    clock = clock or Clock()
    started_s, tally = clock(), Tally()
    while True:
        tally.drivers += 1
        try:
            _Driver(spec, folder, curves, dies, clock, tally).run(workers)
        except DriverDied:
            continue
        finally:
            tally.seconds = clock() - started_s
        return tally


def recorded_curves(path: Path) -> Curves:
    """Curves that were recorded: a table with a line an epoch, such as `benchmarks/curves.py` makes.

    Its columns are the varied parameters by name, `epoch`, `seconds` and metrics; lines with # in front are comments.
    The curves raise KeyError where the table does not have a configuration.
    """
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    head, *rows = csv.reader(lines)
    at = head.index("epoch")
    table: dict[tuple[str, ...], list[tuple[float, dict[str, float]]]] = {}
    for row in sorted(rows, key=lambda row: int(row[at])):
        metrics = dict(zip(head[at + 2 :], map(float, row[at + 2 :]), strict=True))
        table.setdefault(tuple(row[:at]), []).append((float(row[at + 1]), metrics))
    return lambda config: table[tuple(str(config.params[name]) for name in head[:at])]


class _Driver:
    """One life of a driver: hands the engine's tasks to workers, each a generator of the seconds to its next event."""

    def __init__(
        self,
        spec: StudySpec,
        folder: StudyFolder,
        curves: Curves,
        dies: Callable[[int], bool],
        clock: Clock,
        tally: Tally,
    ) -> None:
        self._curves, self._dies, self._clock, self._tally = curves, dies, clock, tally
        self._engine = Engine(spec, folder, open_storage(folder, spec), now=clock)
        self._watchdog = Watchdog(spec.resources.hung_after, now=clock, most_tick_s=math.inf)
        self._events: list[tuple[float, int, Task, Iterator[float]]] = []  # when, in which order of equal times, whose
        self._order = itertools.count()
        self._hung: dict[int, tuple[Task, Iterator[float]]] = {}  # by trial, the workers that hang

    def run(self, workers: int) -> None:
        engine, events = self._engine, self._events
        while not (engine.stopping or engine.halted):
            task: object = None
            while len(events) + len(self._hung) < workers and isinstance(task := engine.next_task(), Task):
                self._event()
                self._begin(task)
            if events:
                self._clock.now_s, _, whose, worker = heapq.heappop(events)
                self._go_on(whose, worker)
                self._give_up()
            elif self._hung:
                self._wait_for_hung()
            elif task == "wait":
                raise RuntimeError("the engine waits although nothing runs")
            else:
                return

    def _begin(self, task: Task) -> None:
        config = task.config or TrialConfig.from_json_text(task.folder.config.read_text())
        self._watchdog.begin(task.number, config, len(task.folder.read_epochs()), is_test=task.config is None)
        self._go_on(task, self._trial(task, task.config) if task.config else self._test(task.folder))

    def _go_on(self, task: Task, worker: Iterator[float]) -> None:
        seconds = next(worker, None)
        if seconds is None:
            self._watchdog.end(task.number, is_complete=True)
        elif seconds == math.inf:
            self._hung[task.number] = task, worker
        else:
            heapq.heappush(self._events, (self._clock() + seconds, next(self._order), task, worker))

    def _wait_for_hung(self) -> None:
        """Lets time pass until a worker that hangs is given up. Raises RuntimeError where none ever is."""
        for _ in range(MOST_LOOKS):
            self._clock.now_s += LOOK_S
            self._engine.tick()
            if self._give_up():
                return
        raise RuntimeError(f"the workers of {len(self._hung)} trials hang for ever")

    def _give_up(self) -> bool:
        """Begins the trials again, from their last epochs, whose worker hangs; returns whether there was one."""
        found = [silence.number for silence in self._watchdog.look() if silence.is_over]
        for number in found:
            self._tally.given_up += 1
            self._begin(self._hung.pop(number)[0])
        return bool(found)

    def _trial(self, task: Task, config: TrialConfig) -> Iterator[float]:
        """Yield what a worker does with a trial, after its last recorded epoch."""
        number, folder, engine = task.number, task.folder, self._engine
        if isinstance(folder.config, Path):
            os.utime(folder.config, (self._clock(), self._clock()))
        num_known = len(folder.read_epochs())
        metrics: Mapping[str, float] = {}
        try:
            for epoch, (seconds, metrics) in enumerate(self._curves(config), 1):
                if epoch <= num_known:
                    continue
                yield seconds
                self._watchdog.hear(number, epoch)
                record = _epoch(epoch, self._clock(), seconds, metrics, config)
                folder.append_epoch(record)
                self._tally.epochs += 1
                self._event()
                if not engine.reached(number, epoch, record.metrics):
                    engine.left(number)  # as Tune says it of a trial that was stopped
                    self._event()
                    return
                self._event()
            result = TrialResult(number=number, state="COMPLETE", metrics=_measured(metrics, "validation"))
        except Infeasible as error:
            result = TrialResult(number=number, state="INFEASIBLE", reason=str(error), cause=error.cause)
        except WorkerLost:
            engine.lost(number)
            self._event()
            return
        write_json(folder.result, result.model_dump(mode="json"))
        self._event()
        engine.ended(number, result)
        engine.left(number)
        self._event()

    def _test(self, folder: TrialFolder) -> Iterator[float]:
        yield TEST_S
        self._event()
        *_, (_, metrics) = self._curves(TrialConfig.from_json_text(folder.config.read_text()))
        self._engine.tested(folder.number, _measured(metrics, "test"))
        self._event()

    def _event(self) -> None:
        self._tally.events += 1
        if self._dies(self._tally.events):
            raise DriverDied


def _epoch(epoch: int, time_s: float, seconds: float, metrics: Mapping[str, float], config: TrialConfig) -> Epoch:
    loss, accuracy = metrics.get("loss", 0.0), metrics.get("accuracy", 0.0)
    names = config.rung_metrics if epoch in config.rungs else ()
    return Epoch(
        epoch=epoch,
        time=time_s,
        train_loss=loss,
        validation_loss=loss,
        validation_accuracy=accuracy,
        lr=config.training.lr,
        train_s=seconds,
        images_per_s=0.0,
        metrics={name: metrics[name] for name in names if math.isfinite(metrics.get(name, math.nan))},
    )


def _measured(metrics: Mapping[str, float], split: Literal["validation", "test"]) -> dict[str, Measurement]:
    found = {}
    for name, value in metrics.items():
        is_number = math.isfinite(value)
        found[name] = Measurement(
            value=value if is_number else None,
            n=0,
            split=split,
            status="ok" if is_number else "undefined",
        )
    return found

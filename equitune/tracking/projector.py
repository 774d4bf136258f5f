"""Projects a study's folder into MLflow: once, or again and again while the study runs.

It reads what lies in the folder and sends what the store does not have yet, so it can stop, fail and begin again at any
moment; points carry the time of their record, which makes sending them twice harmless.
"""

import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from equitune.analysis.pareto import front
from equitune.errors import UserError
from equitune.records.folder import StudyFolder
from equitune.records.reader import StudyReader, StudyRecord, TrialRecord
from equitune.tracking.store import Point, Store, metric_points, sentence

WriteFront = Callable[[StudyRecord, Path], list[Path]]
WriteProfile = Callable[[TrialRecord, Path], bool]

FIRST_S = 8.0  # importing MLflow sooner would hold up the start of the workers
INTERVAL_S = 1.0
REST = 6  # a step that took a second is followed by so many of rest: the trials need the machine
LAST_FLUSH_S = 30.0
HURRIED_FLUSH_S = 8.0  # of the 30 s that a pod has between SIGTERM and SIGKILL
_STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "INFEASIBLE": "KILLED", "FAILED": "FAILED", "RUNNING": "RUNNING"}
_STUDY_STATUS = {"complete": "FINISHED", "interrupted": "KILLED", "running": "RUNNING"}

log = logging.getLogger(__name__)
log.addHandler(logging.NullHandler())  # without a log file, nothing is said on the terminal


class Projector:
    """Keeps the runs of one study up to date. Pictures are drawn by functions that it is given."""

    def __init__(
        self, folder: StudyFolder, tracking_uri: str, write_front: WriteFront, write_profile: WriteProfile
    ) -> None:
        self._folder, self._reader = folder, StudyReader(folder)
        self._store = Store(tracking_uri, folder)
        self._write_front, self._write_profile = write_front, write_profile
        self._epochs_sent: dict[int, int] = {}
        self._finished: set[int] = set()
        self._tested: set[int] = set()
        self._front: frozenset[int] = frozenset()
        self._num_ended = -1

    def open(self) -> None:
        """Connects, which takes seconds the first time: MLflow is imported, and its tables are made."""
        self._store.open(self._reader.read())

    def step(self) -> None:
        """Sends what is new. What fails raises, and is sent with the next step."""
        study = self._reader.read()
        self._store.open(study)
        for trial in study.trials:
            if trial.number not in self._finished:
                self._send_trial(study, trial)
            if trial.test and trial.number not in self._tested:
                self._store.log(trial.number, points=_test_points(trial))
                self._tested.add(trial.number)
        if len(study.ended()) != self._num_ended:
            self._send_front(study)
        self._store.set_status(None, _STUDY_STATUS[study.state], _last_s(study))

    def sees_the_end(self) -> bool:
        """Whether the last trial has ended and is not sent yet: then there is nothing left to rest for."""
        study = self._reader.read()
        return study.state == "complete" and len(self._finished) < len(study.trials)

    def _send_trial(self, study: StudyRecord, trial: TrialRecord) -> None:
        new = trial.epochs[self._epochs_sent.get(trial.number, 0) :]
        self._store.ensure_run(study, trial)
        self._store.log(trial.number, points=[point for epoch in new for point in _epoch_points(epoch)])
        self._epochs_sent[trial.number] = len(trial.epochs)
        if trial.result is None:
            return
        ended_s = trial.epochs[-1].time if trial.epochs else trial.started
        tags = {"equitune.state": trial.state, "equitune.reason": trial.reason or ""}
        tags |= {f"equitune.{name}": value for name, value in trial.result.provenance.items()}
        tags |= {f"equitune.exact.{symmetry}": verdict.said for symmetry, verdict in trial.exact.items()}
        if broken := study.violations(trial):
            tags["equitune.violates"] = "; ".join(f"{name}: {reason}" for name, reason in broken.items())
        self._store.log(trial.number, points=_final_points(trial, ended_s), tags=tags)
        with tempfile.TemporaryDirectory() as scratch:
            picture = Path(scratch) / "profile.png"
            if self._write_profile(trial, picture):
                self._store.add_file(trial.number, picture)
            folder = self._folder.trial(trial.number)
            for path in (folder.config, folder.result, folder.weights, folder.log):
                if path.exists():
                    self._store.add_file(trial.number, path)
        self._store.set_status(trial.number, _STATUS[trial.state], ended_s)
        self._finished.add(trial.number)

    def _send_front(self, study: StudyRecord) -> None:
        """The front as picture, page and table on the study's run, and as a tag on its members' runs."""
        members = frozenset(trial.number for trial in front(study))
        for number in members ^ self._front:
            if number in self._finished:
                self._store.log(number, tags={"equitune.front": str(number in members).lower()})
        with tempfile.TemporaryDirectory() as scratch:
            for path in self._write_front(study, Path(scratch)):
                self._store.add_file(None, path)
        if self._folder.searchspace.exists():
            self._store.add_file(None, self._folder.searchspace)
        points = [("trials_ended", float(len(study.ended()))), ("front_size", float(len(members)))]
        self._store.log(None, points=[Point(name, value, _last_s(study), len(study.ended())) for name, value in points])
        self._front, self._num_ended = members, len(study.ended())


def sync(folder: StudyFolder, tracking_uri: str, write_front: WriteFront, write_profile: WriteProfile) -> None:
    """Projects a whole study, once.

    Raises:
        UserError: the tracking store does not answer.
    """
    try:
        Projector(folder, tracking_uri, write_front, write_profile).step()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"MLflow at {tracking_uri} cannot be written: {sentence(error)}") from error


@contextmanager
def projecting(
    folder: StudyFolder,
    tracking_uri: str,
    write_front: WriteFront,
    write_profile: WriteProfile,
    warn: Callable[[str], None],
) -> Iterator[Callable[[], None]]:
    """Projects from a thread of its own while the block runs. A store that is slow or gone stops nothing.

    Gives a function that the block calls where the program has to end soon: the last flush is then a short one.
    """
    projector = Projector(folder, tracking_uri, write_front, write_profile)
    stop = threading.Event()
    behind = threading.Event()
    hurried = threading.Event()

    def loop() -> None:
        rest_s, rested_from = FIRST_S, time.monotonic()
        while not stop.wait(INTERVAL_S):
            rested = time.monotonic() - rested_from >= rest_s
            if not folder.study.exists() or not (rested or (not behind.is_set() and projector.sees_the_end())):
                continue
            try:
                projector.open()
                started = time.monotonic()
                projector.step()
            except Exception as error:  # whatever the store does, the study goes on
                log.warning("projection failed", exc_info=True)
                rest_s = min(max(rest_s, INTERVAL_S) * 2, 60.0)
                if not behind.is_set():
                    warn(f"MLflow at {tracking_uri} does not answer ({sentence(error)}): the study goes on without it")
                behind.set()
            else:
                rest_s = REST * (time.monotonic() - started)
                if behind.is_set():
                    warn(f"MLflow at {tracking_uri} is back and up to date")
                behind.clear()
            rested_from = time.monotonic()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield hurried.set
    finally:
        stop.set()
        last = threading.Thread(target=_last_step, args=(thread, projector, folder, behind), daemon=True)
        last.start()
        last.join(HURRIED_FLUSH_S if hurried.is_set() else LAST_FLUSH_S)
        if behind.is_set() or last.is_alive():
            warn(f"MLflow has not got everything: run `equitune mlflow sync {folder.name}` when it answers again")


def _last_step(thread: threading.Thread, projector: Projector, folder: StudyFolder, behind: threading.Event) -> None:
    thread.join()
    if folder.study.exists():
        try:
            projector.step()
            behind.clear()
        except Exception:
            log.warning("last projection failed", exc_info=True)
            behind.set()


def _last_s(study: StudyRecord) -> float:
    """When the study's last trial reported, as Unix time."""
    return max((trial.epochs[-1].time for trial in study.trials if trial.epochs), default=study.info["created"])


def _epoch_points(epoch: Any) -> list[Point]:
    names = ("train_loss", "validation_loss", "validation_accuracy", "lr", "images_per_s")
    points = [Point(name, getattr(epoch, name), epoch.time, epoch.epoch) for name in names]
    return points + [Point(f"rung_{name}", value, epoch.time, epoch.epoch) for name, value in epoch.metrics.items()]


def _final_points(trial: TrialRecord, time_s: float) -> list[Point]:
    points = list(metric_points(trial.metrics, time_s, step=trial.config.training.epochs))
    for layer, amount in trial.amounts.items():  # a metric each, in a section of their own, with its two values
        points.append(Point(f"amount/{layer}", amount.before, trial.started, 0))
        points.append(Point(f"amount/{layer}", amount.after, time_s, trial.config.training.epochs))
    return points


def _test_points(trial: TrialRecord) -> list[Point]:
    time_s = trial.epochs[-1].time if trial.epochs else trial.started
    sampled = {name: metric for name, metric in trial.test.items() if metric.split == "test"}
    return list(metric_points(sampled, time_s, step=trial.config.training.epochs, prefix="test_"))

"""The projection beside a running study, in a thread of its own that takes next to nothing of the machine."""

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from equitune.errors import StoreError, without_passwords
from equitune.records.folder import StudyFolder
from equitune.records.reader import StudyReader
from equitune.tracking.projector import Projector, WriteFront, WriteProfile
from equitune.tracking.store import sentence

FIRST_S = 8.0  # importing MLflow sooner would hold up the start of the workers
INTERVAL_S = 1.0
LEAST_REST_S = 3.0  # between two steps
SHARE = 0.01  # of the time, at most, that the thread computes: half of it for numbers, half for pictures
MOST_REST_S = 60.0  # between two tries of a store that does not answer
LAST_FLUSH_S = 30.0
HURRIED_FLUSH_S = 8.0  # of the 30 s that a pod has between SIGTERM and SIGKILL

log = logging.getLogger(__name__)
log.addHandler(logging.NullHandler())


class Follower:
    """Follows one study until it is told to stop. A store that is slow or gone stops nothing."""

    def __init__(self, projector: Projector, folder: StudyFolder, uri: str, warn: Callable[[str], None]) -> None:
        self.projector, self._folder, self._uri, self._warn = projector, folder, without_passwords(uri), warn
        self.stop = threading.Event()
        self.is_behind = False
        self.computed_s = 0.0  # by this thread, once it was connected
        self._failing: Callable[[], object] | None = None  # what failed, and has not succeeded since
        self._pause_s = LEAST_REST_S
        self._monitor: Any = None  # False: there can be none

    def run(self) -> None:
        step, draw = self._step, self._draw  # the very objects, to be told apart
        next_step, next_draw = time.monotonic() + FIRST_S, math.inf
        while not self.stop.wait(max(INTERVAL_S, self._folder.rest_s)):
            try:
                if not self._folder.study.exists():
                    continue
                hurries = self._failing is not step and self.projector.sees_the_end()
            except StoreError:
                continue  # who searches waits for it, too
            if time.monotonic() >= next_step or hurries:
                next_step = self._after(step)
                next_draw = min(next_draw, next_step)
            elif time.monotonic() >= next_draw and self._failing is not step:
                next_draw = self._after(draw)

    def _after(self, action: Callable[[], object]) -> float:
        """Do something and return when it may be done again: what it computes is half of SHARE of the time."""
        try:
            self.projector.open()
            before_s = time.thread_time()
            action()
        except Exception as error:  # whatever the store does, the study goes on
            _note("projection failed")
            if self._failing is None:
                self._warn(f"MLflow at {self._uri} does not answer ({sentence(error)}): the study goes on without it")
                self._failing, self.is_behind = action, True
            self._pause_s = min(2 * self._pause_s, MOST_REST_S)
            return time.monotonic() + self._pause_s
        if self._failing is action:
            self._warn(f"MLflow at {self._uri} is back and up to date")
            self._failing, self.is_behind, self._pause_s = None, False, LEAST_REST_S
        took_s = time.thread_time() - before_s
        self.computed_s += took_s
        return time.monotonic() + max(LEAST_REST_S, took_s * 2 / SHARE)

    def finish(self, most_s: float) -> None:
        """Send what is left: all numbers, and then pictures for as long as a user waits."""
        started = time.monotonic()
        try:
            if not self._folder.study.exists():
                return
            if self._monitor:
                self._monitor.finish()
            self.projector.step()
            self.is_behind = True
            while time.monotonic() - started < 0.8 * most_s:
                if not self.projector.draw_next():
                    self.is_behind = False
                    break
        except Exception:
            _note("last projection failed")
            self.is_behind = True

    def _step(self) -> None:
        self.projector.step()
        asked = os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "").lower()
        if self._monitor is None and asked in ("true", "1"):
            try:
                self._monitor = _monitor(self.projector)
            except ImportError as error:
                self._monitor = False
                self._warn(f"the machine's load is not logged ({error}): pip install psutil")

    def _draw(self) -> None:
        self.projector.draw_next()


@contextmanager
def projecting(
    folder: StudyFolder,
    tracking_uri: str,
    write_front: WriteFront,
    write_profile: WriteProfile,
    warn: Callable[[str], None],
    reader: StudyReader | None = None,
) -> Iterator[Callable[[], None]]:
    """Projects from a thread of its own while the block runs.

    Gives a function that the block calls where the program has to end soon: the last flush is then a short one.
    Where MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING is true, the load of the driver's machine becomes metrics of the study's
    run, by MLflow's own monitor.
    """
    projector = Projector(folder, tracking_uri, write_front, write_profile, everything=False, reader=reader)
    follower = Follower(projector, folder, tracking_uri, warn)
    thread = threading.Thread(target=follower.run, daemon=True)
    thread.start()
    hurried = threading.Event()
    try:
        yield hurried.set
    finally:
        follower.stop.set()
        most_s = HURRIED_FLUSH_S if hurried.is_set() else LAST_FLUSH_S
        last = threading.Thread(target=_last, args=(thread, follower, most_s), daemon=True)
        last.start()
        last.join(most_s)
        log.info("the projection computed %.2f s beside the study", follower.computed_s)
        if follower.is_behind or last.is_alive():
            warn(f"MLflow has not got everything: run `equitune mlflow sync {folder.name}` when it answers again")


def _note(what: str) -> None:
    """Write an error to the study's log; where that is closed by now, nowhere: the terminal gets a sentence."""
    if log.hasHandlers():
        log.warning(what, exc_info=True)


def _last(thread: threading.Thread, follower: Follower, most_s: float) -> None:
    thread.join()
    follower.finish(most_s)


def _monitor(projector: Projector) -> Any:
    """MLflow's monitor of this machine's load, at work on the study's run."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    store = projector.store
    monitor = SystemMetricsMonitor(store.run_id(None), resume_logging=True, tracking_uri=store.tracking_uri)
    monitor.start()
    return monitor

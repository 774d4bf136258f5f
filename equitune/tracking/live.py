"""The projection beside a running study, in a thread of its own that takes next to nothing of the machine."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from equitune.records.folder import StudyFolder
from equitune.tracking.projector import Projector, WriteFront, WriteProfile
from equitune.tracking.store import sentence

FIRST_S = 8.0  # importing MLflow sooner would hold up the start of the workers
INTERVAL_S = 1.0
LEAST_REST_S = 3.0  # between two steps
SHARE = 0.01  # of the time, at most, that the thread computes: half of it for numbers, half for pictures
MOST_REST_S = 60.0  # between two tries of a store that does not answer
LAST_FLUSH_S = 30.0

log = logging.getLogger(__name__)
log.addHandler(logging.NullHandler())


class _Follower:
    """Follows one study until it is told to stop. A store that is slow or gone stops nothing."""

    def __init__(self, projector: Projector, folder: StudyFolder, uri: str, warn: Callable[[str], None]) -> None:
        self.projector, self._folder, self._uri, self._warn = projector, folder, uri, warn
        self.stop = threading.Event()
        self.is_behind = False
        self.computed_s = 0.0  # by this thread, once it was connected
        self._monitor: Any = None

    def run(self) -> None:
        rest_s, rested_from = FIRST_S, time.monotonic()
        connected_at, drawn_s = 0.0, 0.0
        while not self.stop.wait(INTERVAL_S):
            now = time.monotonic()
            hurries = not self.is_behind and self._folder.study.exists() and self.projector.sees_the_end()
            if not self._folder.study.exists():
                continue
            if now - rested_from >= rest_s or hurries:
                took_s = self._try(self._step)
                connected_at = connected_at or now
                rest_s = min(max(2 * rest_s, INTERVAL_S), MOST_REST_S) if took_s is None else _rest_s(took_s)
                rested_from = time.monotonic()
            elif connected_at and not self.is_behind and drawn_s < SHARE / 2 * (now - connected_at):
                drawn_s += self._try(self.projector.draw_next) or 0.0

    def finish(self) -> None:
        """Sends what is left: all numbers, and then pictures for as long as a user waits."""
        started = time.monotonic()
        if not self._folder.study.exists():
            return
        if self._monitor is not None:
            self._monitor.finish()
        try:
            self.projector.step()
            self.is_behind = True
            while time.monotonic() - started < LAST_FLUSH_S - 5:
                if not self.projector.draw_next():
                    self.is_behind = False
                    break
        except Exception:
            log.warning("last projection failed", exc_info=True)
            self.is_behind = True

    def _step(self) -> None:
        self.projector.step()
        asked = os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "").lower()
        if self._monitor is None and asked in ("true", "1"):
            self._monitor = _monitor(self.projector)

    def _try(self, action: Callable[[], object]) -> float | None:
        """Does something and returns the seconds that it computed; None: it failed, which is told once."""
        try:
            self.projector.open()
            computed_s = time.thread_time()
            action()
        except Exception as error:  # whatever the store does, the study goes on
            log.warning("projection failed", exc_info=True)
            if not self.is_behind:
                self._warn(f"MLflow at {self._uri} does not answer ({sentence(error)}): the study goes on without it")
            self.is_behind = True
            return None
        if self.is_behind:
            self._warn(f"MLflow at {self._uri} is back and up to date")
        self.is_behind = False
        took_s = time.thread_time() - computed_s
        self.computed_s += took_s
        return took_s


@contextmanager
def projecting(
    folder: StudyFolder,
    tracking_uri: str,
    write_front: WriteFront,
    write_profile: WriteProfile,
    warn: Callable[[str], None],
) -> Iterator[None]:
    """Projects from a thread of its own while the block runs.

    Where MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING is true, the load of the driver's machine becomes metrics of the study's
    run, by MLflow's own monitor.
    """
    projector = Projector(folder, tracking_uri, write_front, write_profile, everything=False)
    follower = _Follower(projector, folder, tracking_uri, warn)
    thread = threading.Thread(target=follower.run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        follower.stop.set()
        last = threading.Thread(target=_last, args=(thread, follower), daemon=True)
        last.start()
        last.join(LAST_FLUSH_S)
        log.info("the projection computed %.2f s beside the study", follower.computed_s)
        if follower.is_behind or last.is_alive():
            warn(f"MLflow has not got everything: run `equitune mlflow sync {folder.name}` when it answers again")


def _last(thread: threading.Thread, follower: _Follower) -> None:
    thread.join()
    follower.finish()


def _rest_s(took_s: float) -> float:
    return max(LEAST_REST_S, took_s * 2 / SHARE)


def _monitor(projector: Projector) -> Any:
    """MLflow's monitor of this machine's load, at work on the study's run."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    store = projector.store
    monitor = SystemMetricsMonitor(store.run_id(None), resume_logging=True, tracking_uri=store.tracking_uri)
    monitor.start()
    return monitor

"""Tune's trials that have not ended: which have a worker, which wait for a place, and whose worker hangs.

Of Tune's controller this reads and sets what no public interface has: which worker serves a trial, whether one is kept
warm, and how many trials may wait.
"""

import logging
import time
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import ray

from equitune.config.study import StudySpec
from equitune.config.trial import TrialConfig
from equitune.data.splits import Splits
from equitune.driver.machines import look_at_cluster
from equitune.errors import StoreError, UserError
from equitune.networks.blueprint import describe
from equitune.records.folder import StudyFolder, read_json
from equitune.search.engine import Engine
from equitune.search.hung import Silence, Watchdog
from equitune.search.sharing import NOTHING, Cluster

LOOK_EVERY_S = 0.5  # between two looks at a cluster that others use, too
PATIENCE_S = 5.0  # that a study has had no worker before it says so; that a place given back is left to others
SLICE_S = 20.0  # that a worker keeps its place at least: to start another takes some seconds
REST_S = 0.05  # between two steps of Tune that have nothing to wait for

log = logging.getLogger(__name__)


class Attendance:
    """Watches the workers of a study, and gives its places back where others wait.

    Args:
        folder: the study's.
        watchdog: knows which silence is too long.
        say: is told what there is to know, a sentence at a time.
        is_shared: whether others may use the cluster; else nobody is asked about them.
        is_draining: whether no trial is to begin any more, also none that waits for a place.
        now: seconds on a clock of which only differences count.
    """

    def __init__(
        self,
        folder: StudyFolder,
        watchdog: Watchdog,
        say: Callable[[str], None],
        *,
        is_shared: bool,
        is_draining: Callable[[], bool] = lambda: False,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._watchdog, self._say, self._is_shared, self._now = folder, watchdog, say, is_shared, now
        self._is_draining = is_draining
        self._trials: dict[str, Any] = {}  # of Tune, by its ids
        self._added: dict[str, float] = {}  # when; of each of them
        self._workers: dict[str, Any] = {}  # actors, by the ids of the trials that have one
        self._started: WeakKeyDictionary[Any, float] = WeakKeyDictionary()  # when; of Tune's actors
        self._idle_since = now()  # when the study had no worker any more
        self._told_waiting = False
        self._looked = now()
        self._served: set[str] | None = None  # to whom a place has been given back; None: nobody is waited for
        self._served_since = 0.0
        self._in_vain: set[str] = set()  # who did not take one
        self._most_pending = 0

    def add(self, trial: Any) -> None:
        """Note a trial of Tune that is to run: a new one, or one that has lost its worker."""
        self._trials[trial.trial_id], self._added[trial.trial_id] = trial, self._now()

    def is_at_work(self, number: int) -> bool:
        """Return whether a trial has a worker."""
        return any(self._trials[name].config["number"] == number for name in self._workers)

    def hear(self, number: int, epoch: int) -> None:
        """Note that a trial has reported an epoch."""
        self._watchdog.hear(number, epoch)

    def drop(self, controller: Any, trial: Any, is_lost: bool = False) -> None:
        """Note that a trial has ended, or `is_lost`: that its worker has gone."""
        self._trials.pop(trial.trial_id, None)
        self._added.pop(trial.trial_id, None)
        self._watchdog.end(trial.config["number"], is_complete=not is_lost)
        if self._workers.pop(trial.trial_id, None) is not None and not self._workers:
            self._idle_since = self._now()
        if is_lost:
            controller._resetting_trials.discard(trial)  # Tune would wait for the reset of a worker that is gone
            self._release(trial)

    def look(self, controller: Any) -> None:
        """Look at everything once: to be called at each step of Tune."""
        for name, trial in list(self._trials.items()):
            if name not in self._workers and (worker := _worker_of(controller, trial)) is not None:
                self._workers[name] = worker
                self._started.setdefault(controller._trial_to_actor[trial], self._now())
                self._begin(trial)
            elif name not in self._workers and self._is_draining() and self._now() - self._added[name] > PATIENCE_S:
                controller.stop_trial(trial)  # it goes on with the next driver
        for silence in self._watchdog.look():
            self._act(silence)
        if self._served is not None and not self._workers:
            time.sleep(REST_S)  # Tune does not rest where it waits for nothing
        if not self._is_shared or self._now() - self._looked < LOOK_EVERY_S:
            return
        self._looked = self._now()
        if self._served is not None:
            self._go_on_giving(controller, _look(), self._served)
        self._tell_waiting()

    def hand_back(self, controller: Any, trial: Any) -> None:
        """Decide whether the worker of a trial that has ended is kept warm for another, or its place given back."""
        if not self._is_shared:
            return
        started = self._started.get(controller._trial_to_actor.get(trial), self._now())
        if self._served is None and self._now() - started < SLICE_S:
            controller._reuse_actors = True
            return
        cluster = _look()
        needy = cluster.in_need(_amounts(trial.placement_group_factory), _leaving(controller)) - self._in_vain
        controller._reuse_actors = not needy
        if needy and self._served is None:
            self._most_pending, controller._max_pending_trials = controller._max_pending_trials, 0
            log.info("a place is given back: others wait for %d", len(needy))
        if needy:
            self._served, self._served_since = (self._served or set()) | needy, self._now()

    def _go_on_giving(self, controller: Any, cluster: Cluster, served: set[str]) -> None:
        """Ask for places again where the others have theirs, or do not take what is free."""
        if cluster.in_need(NOTHING, _leaving(controller)) & served:
            self._served_since = self._now()  # more is needed: the next trial that ends gives its place back
        is_late = self._now() - self._served_since > PATIENCE_S
        left = cluster.behind(_leaving(controller)) & served
        if left and not is_late:
            return
        self._in_vain |= left & cluster.with_room()
        self._served, controller._max_pending_trials = None, self._most_pending

    def _tell_waiting(self) -> None:
        if self._workers or not self._trials:
            if self._told_waiting and self._workers:
                self._told_waiting = False
                self._say("a place is free: going on")
            return
        since = max(self._idle_since, min(self._added[name] for name in self._trials))
        if self._told_waiting or self._now() - since < PATIENCE_S:
            return
        if taken := _look().taken_by_others():
            self._told_waiting = True
            log.warning("waiting for a place: others have %s", taken)
            self._say(f"waiting for a place: others have {taken}")

    def _begin(self, trial: Any) -> None:
        number, is_test = trial.config["number"], bool(trial.config.get("test"))
        folder = self._folder.trial(number)
        try:
            config = TrialConfig.from_json_text(trial.config.get("trial") or folder.config.read_text())
            num_epochs = 0 if is_test else len(folder.read_epochs())
        except (OSError, StoreError, ValueError):
            log.warning("trial %d is not watched", number, exc_info=True)
            return
        self._watchdog.begin(number, config, num_epochs, is_test)

    def _act(self, silence: Silence) -> None:
        """Say that a worker is silent; give it up where it has been for too long, as if it had died."""
        sentence = describe_silence(silence, self._worker_named(silence.number))
        log.warning("%s", sentence)
        self._say(sentence)
        if silence.is_over:
            for name, trial in self._trials.items():
                if trial.config["number"] == silence.number and name in self._workers:
                    self._release(trial)  # first: what cannot be killed must not write
                    ray.kill(self._workers[name])

    def _release(self, trial: Any) -> None:
        if trial.config.get("test"):
            return
        try:
            self._folder.trial(trial.config["number"]).release()
        except (OSError, StoreError):  # the next worker claims the trial, or says why it cannot
            log.warning("trial %d is not released", trial.config["number"], exc_info=True)

    def _worker_named(self, number: int) -> str:
        try:
            worker = read_json(self._folder.trial(number).worker)
            return f"its worker (process {worker['pid']} on {worker['host']})"
        except (UserError, StoreError, KeyError, TypeError):
            return "its worker"


def attend(
    spec: StudySpec,
    folder: StudyFolder,
    splits: Splits,
    engine: Engine,
    say: Callable[[str], None],
    *,
    is_shared: bool,
) -> Attendance:
    """Return the attendance of a study, which knows a hung worker by what its networks compute."""

    def work_of(config: TrialConfig) -> float:

        return describe(config, splits.data_shape).cost.multiply_adds

    watchdog = Watchdog(spec.resources.hung_after, work_of)
    found = Attendance(folder, watchdog, say, is_shared=is_shared, is_draining=lambda: engine.draining)
    engine.is_at_work = found.is_at_work
    return found


def describe_silence(silence: Silence, worker: str) -> str:
    """Return what is to be said of a silence, in a sentence."""
    said = f"trial {silence.number} {silence.what} for {_duration(silence.silent_s)}"
    if silence.usual_s is None or silence.limit_s is None:
        return f"{said}, and none before it says how long that takes: if {worker} hangs, end that process"
    said += f", the slowest before it for {_duration(silence.usual_s)}"
    if silence.is_over:
        return f"{said}: {worker} is given up, and the trial goes on in another"
    return f"{said}: {worker} may hang, and is given up after {_duration(silence.limit_s)}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _look() -> Cluster:
    """Return the cluster; nothing of it where Ray's head does not say: it may be away, and trials go on without it."""
    try:
        return look_at_cluster()
    except Exception:
        log.warning("Ray does not say who waits for a place", exc_info=True)
        return Cluster("", (), {}, {})


def _worker_of(controller: Any, trial: Any) -> Any:
    """Return the Ray actor that serves a trial, from its creation on, before Tune calls the trial running; None: it
    waits.
    """
    tracked = controller._trial_to_actor.get(trial)
    live = controller._actor_manager._live_actors_to_ray_actors_resources
    return live[tracked][0] if tracked in live else None


def _leaving(controller: Any) -> dict[str, float]:
    """Return what the workers hold that are being ended."""
    found: dict[str, float] = {}
    for tracked in controller._stopping_actors:
        held = controller._actor_manager.get_actor_resources(tracked)
        for kind, amount in _amounts(held.resource_request).items() if held else ():
            found[kind] = found.get(kind, 0.0) + amount
    return found


def _amounts(request: Any) -> dict[str, float]:
    """Return the CPUs and GPUs of a request, which has one bundle."""
    return {kind: amount for kind, amount in request.bundles[0].items() if kind in ("CPU", "GPU")}

"""The workers of a study as Tune has them, without Ray and under a clock that a test sets."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from equitune.config.study import StudySpec
from equitune.config.trial import TrialConfig
from equitune.driver import attendance
from equitune.driver.attendance import SLICE_S, Attendance
from equitune.driver.tune_searcher import RungScheduler
from equitune.records.folder import StudyFolder, write_json
from equitune.search.hung import Watchdog
from equitune.search.sharing import Cluster

MULTIPLE = 20


class Clock:
    """Seconds, which pass only where a test says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Tracked:
    """What Tune knows of an actor."""


class Controller:
    """Of Tune's controller what is read and set."""

    def __init__(self) -> None:
        self._resetting_trials: set[Any] = set()
        self._trial_to_actor: dict[Any, Tracked] = {}
        self._stopping_actors: dict[str, float] = {}
        self._actor_manager = SimpleNamespace(
            _live_actors_to_ray_actors_resources={}, get_actor_resources=lambda tracked: None
        )
        self._max_pending_trials, self._reuse_actors = 2, True
        self._tune_controller = self
        self.stopped: list[Any] = []
        self.stop_trial = self.stopped.append

    def start(self, trial: Any) -> None:
        """Give a trial a worker."""
        self._trial_to_actor[trial] = tracked = Tracked()
        self._actor_manager._live_actors_to_ray_actors_resources[tracked] = (f"actor of {trial.trial_id}", None)

    def end(self, trial: Any) -> None:
        del self._trial_to_actor[trial]


class Trial:
    """Of Tune's trial what is read."""

    def __init__(self, folder: StudyFolder, config: TrialConfig) -> None:
        self.trial_id = f"t{config.number}"
        self.config = {"number": config.number, "trial": config.model_dump_json()}
        self.placement_group_factory = SimpleNamespace(bundles=[{"CPU": 1.0}])


class Scene:
    """A study whose workers are watched, under a clock."""

    def __init__(self, path: Path, spec: StudySpec, monkeypatch: pytest.MonkeyPatch, is_shared: bool = False) -> None:
        self.said: list[str] = []
        self.killed: list[Any] = []
        self.is_draining = False
        self.clock = Clock()
        self.folder = StudyFolder(path / "small")
        self.watchdog = Watchdog(MULTIPLE, now=self.clock, floor_s=10.0, most_tick_s=math.inf)
        self.attendance = Attendance(
            self.folder,
            self.watchdog,
            self.said.append,
            is_shared=is_shared,
            is_draining=lambda: self.is_draining,
            now=self.clock,
        )
        self.scheduler = RungScheduler(SimpleNamespace(reached=lambda *_: True), self.attendance)  # type: ignore[arg-type]
        self.controller = Controller()
        monkeypatch.setattr(attendance.ray, "kill", self.killed.append)
        monkeypatch.setattr(attendance.time, "sleep", lambda seconds: None)
        self.cluster: Cluster | None = None  # what a look at it shows
        self._spec = spec

    def trial(self, number: int) -> Trial:
        config = self._spec.suggest(number, lambda name, distribution: distribution.bounds[0])  # type: ignore[union-attr]
        write_json(self.folder.trial(number).config, config.to_json())
        trial = Trial(self.folder, config)
        self.scheduler.on_trial_add(self.controller, trial)
        return trial

    def end_trial(self, number: int, had_s: float = SLICE_S + 1) -> None:
        """A trial whose worker had its place for so many seconds."""
        trial = self.trial(number)
        self.controller.start(trial)
        self.pass_s(had_s)
        self.attendance.drop(self.controller, trial)
        self.attendance.hand_back(self.controller, trial)
        self.controller.end(trial)

    def pass_s(self, seconds: float) -> None:
        for _ in range(math.ceil(seconds)):
            self.clock.now_s += 1.0
            self.attendance.look(self.controller)

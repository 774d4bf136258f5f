"""Workers that hang are told of, then given up as lost; what is only slow is left alone."""

import math
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from invented import learns
from scene import MULTIPLE, Clock, Scene

from equitune.config.load import load_study
from equitune.config.study import StudySpec
from equitune.config.trial import TrialConfig
from equitune.driver.attendance import describe_silence
from equitune.errors import UserError
from equitune.records.folder import StudyFolder
from equitune.records.reader import StudyReader
from equitune.search import hung, replay
from equitune.search.hung import FLOOR_S, UNKNOWN_S, Silence, Watchdog

EPOCHS = 10


class Watched:
    """A watchdog under a clock that is looked at every few seconds, as Tune does."""

    def __init__(self, config: TrialConfig, **settings: Any) -> None:
        self.clock = Clock()
        self.watchdog = Watchdog(settings.pop("multiple", MULTIPLE), now=self.clock, **settings)
        training = config.training.model_copy(update={"epochs": EPOCHS})
        self._config = config.model_copy(update={"training": training})

    def config(self, number: int, **changes: Any) -> TrialConfig:
        return self._config.model_copy(update={"number": number, **changes})

    def wait(self, seconds: float, every_s: float = 2.0) -> list[Silence]:
        """What is said while so many seconds pass."""
        found: list[Silence] = []
        until = self.clock.now_s + seconds
        while self.clock.now_s < until:
            self.clock.now_s = min(until, self.clock.now_s + every_s)
            found += self.watchdog.look()
        return found

    def train(self, number: int, epoch_s: float = 1.0, measuring_s: float = 1.0, **changes: Any) -> list[Silence]:
        """A whole trial, and what was said meanwhile."""
        self.watchdog.begin(number, self.config(number, **changes))
        found = []
        for epoch in range(1, EPOCHS + 1):
            found += self.wait(epoch_s)
            self.watchdog.hear(number, epoch)
        found += self.wait(measuring_s)
        self.watchdog.end(number, is_complete=True)
        return found


@pytest.fixture
def watched(small_config: TrialConfig) -> Callable[..., Watched]:
    return lambda **settings: Watched(small_config, **settings)


def test_a_hung_worker_is_told_of_then_given_up(watched: Callable[..., Watched]) -> None:
    study = watched()
    study.watchdog.begin(0, study.config(0))
    assert not study.wait(100)
    study.watchdog.hear(0, 1)  # the start and an epoch took 100 s
    told, given_up = study.wait(100 * MULTIPLE + 10)
    assert (told.is_over, given_up.is_over) == (False, True)
    assert told.silent_s == pytest.approx(100 * MULTIPLE / 2, abs=5)
    assert given_up.silent_s == pytest.approx(100 * MULTIPLE, abs=5)
    assert told.usual_s == given_up.usual_s == pytest.approx(100)
    assert not study.wait(10_000)  # given up once; its trial begins again in another worker


def test_what_is_short_has_minutes(watched: Callable[..., Watched]) -> None:
    """Epochs of a second: what compiles, or waits for an object store, is no hung worker."""
    study = watched()
    study.train(0)
    study.watchdog.begin(1, study.config(1))
    assert not study.wait(FLOOR_S / 2)
    told, given_up = study.wait(FLOOR_S)
    assert given_up.silent_s == pytest.approx(FLOOR_S, abs=5)
    assert given_up.is_over
    assert not told.is_over


@pytest.mark.parametrize("phase", ["start", "measuring", "testing"])
def test_what_has_never_been_seen_is_told_of_and_left_alone(watched: Callable[..., Watched], phase: str) -> None:
    study = watched()
    study.watchdog.begin(0, study.config(0), is_test=phase == "testing")
    for epoch in range(1, EPOCHS + 1 if phase == "measuring" else 1):
        study.watchdog.hear(0, epoch)
    (told,) = study.wait(100 * UNKNOWN_S)
    assert told.silent_s == pytest.approx(UNKNOWN_S, abs=5)
    assert told.limit_s is None


@pytest.mark.parametrize("phase", ["start", "epoch", "rung", "measuring", "testing"])
def test_every_phase_is_watched(watched: Callable[..., Watched], phase: str) -> None:
    study = watched()
    study.train(0, rungs=(5,))
    study.watchdog.begin(0, study.config(0), is_test=True)
    study.wait(3)
    study.watchdog.end(0, is_complete=True)
    study.watchdog.begin(1, study.config(1, rungs=(5,)), is_test=phase == "testing")
    for epoch in range(1, 1 + {"epoch": 2, "rung": 4, "measuring": EPOCHS}.get(phase, 0)):
        study.wait(1)
        study.watchdog.hear(1, epoch)
    silences = study.wait(FLOOR_S + 10)
    assert [silence.is_over for silence in silences] == [False, True]
    assert {silence.what for silence in silences} == {hung.WHAT[phase]}  # type: ignore[index]


def test_a_large_network_may_take_as_much_longer_as_it_computes(watched: Callable[..., Watched]) -> None:
    """Epochs of a minute, and a network of 100 times the cost. The broken twin takes all networks for equal."""

    def said(**settings: Any) -> list[Silence]:
        study = watched(**settings)
        study.train(0, epoch_s=60, measuring_s=60)
        return study.train(1, epoch_s=6000, measuring_s=6000)

    cost = {0: 1e6, 1: 1e8}
    assert not said(work_of=lambda config: cost[config.number])
    assert any(silence.is_over for silence in said())


def test_small_batches_may_take_longer(watched: Callable[..., Watched], small_config: TrialConfig) -> None:
    study = watched()
    study.train(0, epoch_s=60)
    small = study.config(1).training.model_copy(update={"batch_size": 1})
    assert small_config.training.batch_size == 32
    assert not study.train(1, epoch_s=60 * 32, training=small)


def test_a_network_of_unknown_cost_is_never_given_up(watched: Callable[..., Watched]) -> None:
    def work_of(config: TrialConfig) -> float:
        raise UserError("no such network")

    study = watched(work_of=work_of)
    study.train(0)
    study.watchdog.begin(1, study.config(1))
    assert [silence.is_over for silence in study.wait(10 * UNKNOWN_S)] == [False]


@pytest.mark.parametrize("is_awake", [False, True])
def test_a_driver_that_slept_declares_nobody_hung(watched: Callable[..., Watched], is_awake: bool) -> None:
    """A lid that was closed, a driver that was stopped. The broken twin counts the time that it slept."""
    study = watched() if not is_awake else watched(most_tick_s=math.inf)
    for number in range(4):
        study.train(number)
    for number in range(4, 8):
        study.watchdog.begin(number, study.config(number))
    found = [silence.is_over for silence in study.wait(36_000, every_s=36_000)]
    assert found == ([True] * 4 if is_awake else [])
    if not is_awake:
        assert sum(silence.is_over for silence in study.wait(FLOOR_S + 10)) == 4, "awake, it sees again"


def test_without_a_multiple_nobody_is_given_up(watched: Callable[..., Watched]) -> None:
    study = watched(multiple=None)
    study.train(0)
    study.watchdog.begin(1, study.config(1))
    assert not study.wait(100 * FLOOR_S)


def test_a_trial_that_was_trained_is_measured_next(watched: Callable[..., Watched]) -> None:
    """It goes on in another worker; measuring takes longer than any start. The broken twin forgets its epochs."""
    for num_epochs, expected in ((EPOCHS, []), (0, [False, True])):
        study = watched()
        study.train(0, measuring_s=200)
        study.watchdog.begin(1, study.config(1), num_epochs)
        assert [silence.is_over for silence in study.wait(1900)] == expected


def test_a_silence_is_said_in_a_sentence() -> None:
    worker = "its worker (process 7 on host)"
    told = Silence(3, hung.WHAT["epoch"], 700.0, 70.0, 1400.0)
    assert describe_silence(told, worker) == (
        "trial 3 has not ended an epoch for 12 min, the slowest before it for 70 s: its worker (process 7 on host) may "
        "hang, and is given up after 23 min"
    )
    over = Silence(3, hung.WHAT["epoch"], 1401.0, 70.0, 1400.0)
    assert describe_silence(over, worker).endswith(f": {worker} is given up, and the trial goes on in another")
    unknown = Silence(3, hung.WHAT["start"], 1801.0, None, None)
    assert describe_silence(unknown, worker) == (
        "trial 3 has not ended its first epoch for 30 min, and none before it says how long that takes: if its worker "
        "(process 7 on host) hangs, end that process"
    )


def hangs_once(number: int, at: int, seen: list[int]) -> replay.Curves:
    """Curves of which one hangs at an epoch, the first time."""

    def curve(config: TrialConfig) -> Iterator[tuple[float, Any]]:
        for epoch, (seconds, metrics) in enumerate(learns(config), 1):
            hangs = (config.number, epoch) == (number, at) and not seen
            if hangs:
                seen.append(epoch)
            yield (math.inf if hangs else seconds), metrics

    return curve


def found_in(folder: StudyFolder) -> list[Any]:
    return [
        (trial.config.params, trial.state, [epoch.train_loss for epoch in trial.epochs], sorted(trial.test))
        for trial in StudyReader(folder).read().trials
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_study_ends_although_a_worker_hangs(workers: int, study_file: Callable[..., Path], tmp_path: Path) -> None:
    spec = load_study(study_file(), ("search.sampler=random", "search.trials=8"))
    expected = StudyFolder(tmp_path / "undisturbed" / "small")
    replay.replay(spec, expected, learns, workers=workers)
    folder, seen = StudyFolder(tmp_path / "small"), list[int]()
    tally = replay.replay(spec, folder, hangs_once(3, 2, seen), workers=workers)
    assert (seen, tally.given_up) == ([2], 1)
    assert found_in(folder) == found_in(expected)


def test_without_a_watchdog_it_never_ends(study_file: Callable[..., Path], tmp_path: Path) -> None:
    """The broken twin."""
    spec = load_study(study_file(), ("search.trials=8", "resources.hung_after=null"))
    with pytest.raises(RuntimeError, match="the workers of 1 trials hang for ever"):
        replay.replay(spec, StudyFolder(tmp_path / "small"), hangs_once(3, 2, []))


def test_a_worker_that_is_given_up_writes_nothing_more_and_is_killed(
    small_spec: StudySpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, small_spec, monkeypatch)
    trials = [scene.trial(number) for number in range(2)]
    claims = [scene.folder.trial(number) for number in range(2)]
    for trial, claim in zip(trials, claims, strict=True):
        scene.controller.start(trial)
        claim.claim()
    scene.pass_s(2)
    for number in range(2):
        scene.attendance.hear(number, 1)
    scene.pass_s(18)
    assert all(claim.is_held() for claim in claims)
    scene.pass_s(5)
    assert scene.killed == ["actor of t0", "actor of t1"]
    assert [claim.is_held() for claim in claims] == [False, False]
    assert not claims[0].worker.exists()
    assert [sentence.split(":")[0].split(" for ")[0] for sentence in scene.said] == [
        f"trial {number} has not ended an epoch" for number in (0, 1, 0, 1)
    ]
    assert f"its worker (process {os.getpid()} on {platform.node()}) may hang" in scene.said[0]
    assert "is given up, and the trial goes on in another" in scene.said[-1]


def test_a_trial_without_a_worker_is_not_watched(
    small_spec: StudySpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for a place, for as long as it takes."""
    scene = Scene(tmp_path, small_spec, monkeypatch)
    scene.trial(0)
    scene.pass_s(5000)
    assert (scene.said, scene.killed) == ([], [])


def test_a_lost_worker_loses_its_claim_and_tune_does_not_wait_for_its_reset(
    small_spec: StudySpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, small_spec, monkeypatch)
    trial, claim = scene.trial(0), scene.folder.trial(0)
    scene.controller.start(trial)
    claim.claim()
    scene.controller._resetting_trials.add(trial)
    scene.pass_s(1)
    scene.scheduler.on_trial_error(scene.controller, trial)
    assert not claim.is_held()
    assert scene.controller._resetting_trials == set()


def test_the_setting_is_no_part_of_the_search(study_file: Callable[..., Path]) -> None:
    plain = load_study(study_file())
    assert plain.resources.hung_after == 20
    for given, expected in (("50", 50), ("null", None)):
        other = load_study(study_file(), (f"resources.hung_after={given}",))
        assert other.resources.hung_after == expected
        assert other.fingerprint() == plain.fingerprint()
    with pytest.raises(UserError, match=r"resources.hung_after=1: must be >= 2.0, but got 1"):
        load_study(study_file(), ("resources.hung_after=1",))

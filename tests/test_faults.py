"""Two drivers, and workers that outlive theirs."""

import os
import platform
import time
from pathlib import Path

import pytest

from equitune.background import repeating
from equitune.config.study import StudySpec
from equitune.config.trial import TrialConfig
from equitune.data.on_device import DeviceData
from equitune.driver.lock import driving
from equitune.errors import GivenUp, TakenOver, UserError
from equitune.records.folder import StudyFolder, TrialFolder, write_json
from equitune.results.values import Epoch
from equitune.search.engine import Engine, Task
from equitune.search.storage import open_storage
from equitune.search.study_record import begin
from equitune.training.run import run_trial


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    study = StudyFolder(tmp_path / "small")
    study.path.mkdir()
    return study


def begun(folder: StudyFolder, token: str | None) -> TrialFolder:
    """A trial as a worker sees it that has this token; the driver of the token `first` holds the study."""
    write_json(folder.driver, {"token": "first"})
    trial = TrialFolder(folder.trial(0).path, token=token)
    trial.path.mkdir(parents=True)
    return trial


def written(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parametrize("token", ["first", None])  # without a token nobody is fenced: the broken twin
def test_a_worker_that_outlives_its_driver_writes_nothing_more(
    token: str | None, folder: StudyFolder, small_config: TrialConfig, small_data: DeviceData
) -> None:
    trial = begun(folder, token)
    before: dict[str, bytes] = {}

    def taken_over(epoch: Epoch) -> None:
        write_json(folder.driver, {"token": "second"})
        before.update(written(trial.path))

    if token is None:
        run_trial(small_config, small_data, folder=trial, on_epoch=taken_over)
        assert trial.result.exists()
        return
    with pytest.raises(TakenOver):
        run_trial(small_config, small_data, folder=trial, on_epoch=taken_over)
    assert written(trial.path) == before
    assert len(trial.read_epochs()) == 1
    assert not trial.result.exists()


def test_a_worker_does_not_write_the_result_of_another_s_trial(
    folder: StudyFolder, small_config: TrialConfig, small_data: DeviceData
) -> None:
    """Taken over after the last epoch: only the result is left to write."""
    trial = begun(folder, "first")

    def taken_over(epoch: Epoch) -> None:
        if epoch.epoch == small_config.training.epochs:
            write_json(folder.driver, {"token": "second"})

    with pytest.raises(TakenOver):
        run_trial(small_config, small_data, folder=trial, on_epoch=taken_over)
    assert {"epochs.jsonl", "checkpoint.pt"} == set(written(trial.path))


@pytest.mark.parametrize("claims", [True, False])  # who claims nothing fences nobody: the broken twin
def test_a_worker_that_was_given_up_writes_nothing_more(
    claims: bool, folder: StudyFolder, small_config: TrialConfig, small_data: DeviceData
) -> None:
    """Its machine was cut off, its driver gave the trial to another one, and it trains on."""
    trial = begun(folder, "first")
    trial.claim()

    def given_up(epoch: Epoch) -> None:
        other = TrialFolder(trial.path, token="first")
        if claims:
            other.claim()
            other.require_held()

    if not claims:
        run_trial(small_config, small_data, folder=trial, on_epoch=given_up)
        assert trial.result.exists()
        return
    with pytest.raises(TakenOver, match="another worker"):
        run_trial(small_config, small_data, folder=trial, on_epoch=given_up)
    assert len(trial.read_epochs()) == 1
    assert not trial.result.exists()


@pytest.mark.parametrize("how", ["stopped early", "lost"])
def test_what_the_driver_ends_no_worker_ends_again(how: str, folder: StudyFolder, small_spec: StudySpec) -> None:
    """The worker of a trial that was stopped early hears of it a moment later; a lost one may be cut off only."""
    begin(folder, small_spec, None, ())
    write_json(folder.driver, {"token": "first"})
    engine = Engine(small_spec, folder, open_storage(folder, small_spec))
    task = engine.next_task()
    assert isinstance(task, Task)
    worker = TrialFolder(task.folder.path, token="first")
    worker.claim()
    worker.require_held()
    if how == "lost":
        engine.lost(task.number)
    else:
        engine._stop(engine._live[task.number], "worse than others")
    with pytest.raises(GivenUp):
        worker.require_held()


def test_no_driver_holds_a_trial_whose_study_has_none(folder: StudyFolder) -> None:
    trial = TrialFolder(folder.trial(0).path, token="first")
    for text in (None, "", "{}", '{"token": "other"}'):
        if text is not None:
            folder.driver.write_text(text)
        with pytest.raises(TakenOver):
            trial.require_held()
    with driving(folder) as token:
        TrialFolder(trial.path, token=token).require_held()
    with driving(folder) as again:
        assert again != token
        with pytest.raises(TakenOver):
            TrialFolder(trial.path, token=token).require_held()


def test_a_driver_on_another_host_is_noticed_by_its_heartbeat(folder: StudyFolder) -> None:
    """Its lock does not reach this host, as on some network file systems: here nobody holds it."""
    write_json(folder.driver, {"pid": 7, "host": "elsewhere", "token": "first"})
    said = r"being searched already \(process 7 on elsewhere, whose file lock does not reach this machine"
    with repeating(folder.driver.touch, 0.1), pytest.raises(UserError, match=said), driving(folder, another_beat_s=2):
        raise AssertionError("two drivers")
    with driving(folder, another_beat_s=0.5) as token:  # its heart stopped
        assert token != "first"


@pytest.mark.parametrize(
    ("host", "age_s"), [(platform.node(), 0), ("elsewhere", 60)], ids=["of this host", "long dead"]
)
def test_a_dead_driver_is_not_waited_for(host: str, age_s: float, folder: StudyFolder) -> None:
    """On this host the lock itself says that it is gone."""
    write_json(folder.driver, {"pid": 7, "host": host, "token": "first"})
    then = time.time() - age_s
    os.utime(folder.driver, (then, then))
    began = time.monotonic()
    with driving(folder, another_beat_s=30):
        assert time.monotonic() - began < 5


def test_one_host_has_one_driver(folder: StudyFolder) -> None:
    with driving(folder), pytest.raises(UserError, match=f"process {os.getpid()} on "), driving(folder):
        raise AssertionError("two drivers")
    assert not folder.driver.exists()

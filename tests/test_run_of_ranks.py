"""What a Tune worker hears of the ranks that train its trial: epochs, a result, or why there is none. No Ray runs."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.train import ControllerError, TrainingFailedError, WorkerGroupError

from equitune.driver.team import Ended, _hand_on, _outcome
from equitune.errors import GivenUp, UserError, WorkerLost
from equitune.records.folder import StudyFolder, TrialFolder, write_json
from equitune.results.values import Epoch, TrialResult
from equitune.training.ranks import meeting, met

FULL = TrialResult(number=0, state="INFEASIBLE", reason="out of memory: none left", cause="out_of_memory")
DONE = TrialResult(number=0, state="COMPLETE")


@pytest.fixture
def folder(tmp_path: Path) -> TrialFolder:
    found = StudyFolder(tmp_path).trial(0)
    found.path.mkdir(parents=True)  # type: ignore[union-attr] # a path on disk
    found.checkpoint.write_bytes(b"of an epoch")
    return found


def epoch(number: int) -> Epoch:
    values = dict.fromkeys(("time", "train_loss", "validation_loss", "validation_accuracy", "lr", "train_s"), 0.0)
    return Epoch(epoch=number, images_per_s=0.0, **values)


def first_rank(port: int, epochs: int) -> list[bytes]:
    """Tells its epochs, each when it has heard of the one before; returns the answers."""
    store, answers = met(port), list[bytes]()
    for number in range(epochs):
        store.set(f"epoch {number}", epoch(number + 1).model_dump_json())
        answers.append(store.get(f"answer {number}"))
        if answers[-1] != b"on":
            break
    return answers


def failed(error: Exception) -> "Future[Any]":
    run: Future[Any] = Future()
    run.set_exception(error)
    return run


def test_each_epoch_is_handed_on_once_and_in_order() -> None:
    store, heard = meeting(), list[int]()
    with ThreadPoolExecutor(1) as thread:
        run = thread.submit(first_rank, store.port, 3)
        _hand_on(store, run, lambda epoch: heard.append(epoch.epoch))
    assert heard == [1, 2, 3]
    assert run.result() == [b"on"] * 3


def test_a_trial_that_tune_stops_trains_no_further() -> None:
    """Tune ends the thread within its report; a first rank that heard nothing would wait for ever."""

    def stop(epoch: Epoch) -> None:
        if epoch.epoch == 2:
            raise SystemExit

    store = meeting()
    with ThreadPoolExecutor(1) as thread:
        run = thread.submit(first_rank, store.port, 5)
        with pytest.raises(SystemExit):
            _hand_on(store, run, stop)
    assert run.result() == [b"on", b"end"]


def test_the_first_rank_gives_the_result_back(folder: TrialFolder) -> None:
    run: Future[Any] = Future()
    run.set_result(type("Result", (), {"return_value": DONE.model_dump_json()}))
    assert _outcome(run, folder) == DONE


@pytest.mark.parametrize("rank", [0, 1])
def test_the_verdict_of_one_rank_is_the_trial_s(rank: int, folder: TrialFolder) -> None:
    lost = {1 - rank: WorkerLost("another worker of the trial has gone")}
    run = failed(WorkerGroupError("", lost | {rank: Ended(FULL.model_dump_json())}))
    assert _outcome(run, folder) == FULL
    assert TrialResult.model_validate_json(folder.result.read_bytes()) == FULL
    assert not folder.checkpoint.exists()


def test_what_the_first_rank_has_written_stays(folder: TrialFolder) -> None:
    write_json(folder.result, {"as": "it is"})
    _outcome(failed(WorkerGroupError("", {0: Ended(FULL.model_dump_json())})), folder)
    assert folder.result.read_text() == '{\n "as": "it is"\n}'


@pytest.mark.parametrize("error", [GivenUp(116, "another worker"), OSError(28, "full"), UserError("no such folder")])
def test_what_is_not_the_trial_s_fault_is_raised_as_it_was(error: Exception, folder: TrialFolder) -> None:
    with pytest.raises(type(error)) as raised:
        _outcome(failed(WorkerGroupError("", {0: error})), folder)
    assert raised.value is error


LOST: list[TrainingFailedError | Exception] = [
    WorkerGroupError("", {1: ActorDiedError()}),
    WorkerGroupError("", {0: WorkerLost("the GPU does not answer any more")}),
    WorkerGroupError("", {1: OSError(5, "of a rank that writes nothing")}),
    ControllerError(TimeoutError("no worker came up")),
    ActorDiedError(),
]


@pytest.mark.parametrize("error", LOST, ids=lambda error: str(error)[:40])
def test_a_rank_that_is_lost_is_no_result(error: Exception, folder: TrialFolder) -> None:
    with pytest.raises(WorkerLost):
        _outcome(failed(error), folder)
    assert not folder.result.exists()
    assert folder.checkpoint.exists()

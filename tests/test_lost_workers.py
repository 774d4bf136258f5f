"""How often a trial may lose its worker, as Ray Tune counts it, and workers of machines that leave.

`tests/test_losses.py` has real losses.
"""

import json
import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from equitune.config.resources import Resources
from equitune.config.trial import TrialConfig
from equitune.data.splits import Splits
from equitune.driver import worker as trainable
from equitune.driver.attendance import Attendance
from equitune.driver.machines import is_leaving
from equitune.driver.tune_searcher import MAX_LOST_WORKERS, RungScheduler
from equitune.errors import WorkerLost
from equitune.records.folder import StudyFolder, write_json
from equitune.search.hung import Watchdog


class Trained:
    """An engine that lets every trial go on."""

    stopping = False
    halted = None

    def __init__(self) -> None:
        self.hearing = threading.Lock()

    def reached(self, number: int, epoch: int, metrics: dict[str, float]) -> bool:
        return True


@pytest.fixture
def scheduler(tmp_path: Path) -> RungScheduler:
    watched = Attendance(StudyFolder(tmp_path / "small"), Watchdog(None), print, is_shared=False)
    return RungScheduler(Trained(), watched)  # type: ignore[arg-type]


def survives(deaths_after: list[int], scheduler: Any) -> bool:
    """Whether Tune tries a trial again after each of its worker's deaths; each after so many epochs."""
    no_files: Any = SimpleNamespace(trial_driver_staging_path=None)
    trial = Trial("trainable", stub=True, config={"number": 0}, max_failures=MAX_LOST_WORKERS, storage=no_files)
    epoch = 0
    for reached in deaths_after:
        while epoch < reached:
            epoch += 1
            said = scheduler.on_trial_result(None, trial, {"epoch": epoch, "metrics": json.dumps({})})
            assert said == TrialScheduler.CONTINUE
        trial.handle_error(ActorDiedError())
        if not trial.should_recover():
            return False
    return True


@pytest.mark.parametrize(
    ("deaths_after", "expected"),
    [
        (list(range(1, 11)), True),  # ten machines left it, each after an epoch
        ([0, 0, 0, 1, 1, 1, 2, 2, 2], True),
        ([5] * MAX_LOST_WORKERS, True),
        ([5] * (MAX_LOST_WORKERS + 1), False),  # it kills its own worker
        ([0] * (MAX_LOST_WORKERS + 1), False),
        ([1, 2, 3, 3, 3, 3], False),
    ],
)
def test_a_trial_that_gets_on_is_never_given_up(
    deaths_after: list[int], expected: bool, scheduler: RungScheduler
) -> None:
    assert survives(deaths_after, scheduler) == expected


def test_without_renewal_ten_machines_are_too_many() -> None:
    """The broken twin: Tune's own count."""
    forgetful = SimpleNamespace(on_trial_result=lambda *_: TrialScheduler.CONTINUE)
    assert not survives(list(range(1, 11)), forgetful)


@pytest.mark.parametrize("leaving", [True, False])
def test_a_worker_of_a_machine_that_leaves_begins_no_trial(
    leaving: bool, small_config: TrialConfig, small_splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken twin: one that does not look begins it."""
    reports: list[dict[str, Any]] = []
    monkeypatch.setattr(trainable.tune, "report", reports.append)
    monkeypatch.setattr(trainable, "is_leaving", lambda: leaving)
    study = StudyFolder(tmp_path / "small")
    write_json(study.driver, {"token": "ours"})
    asked = {"folder": str(study.trial(0).path), "trial": small_config.model_dump_json()}
    with pytest.raises(WorkerLost, match="drained") if leaving else nullcontext():
        trainable.trainable(asked, small_splits, Resources(), "ours")
    assert study.trial(0).worker.exists() != leaving
    assert bool(reports) != leaving


def test_where_ray_says_nothing_no_machine_leaves() -> None:
    assert not is_leaving()


def test_tune_keeps_little_of_a_trial_that_has_ended(scheduler: RungScheduler) -> None:
    """The broken twin: Tune's own scheduler leaves a result and the history of every number where they are."""
    for each, most in ((scheduler, 500), (FIFOScheduler(), None)):
        no_files: Any = SimpleNamespace(trial_driver_staging_path=None)
        trial = Trial("trainable", stub=True, config={"number": 0}, storage=no_files)
        for epoch in range(1, 11):
            trial.update_last_result({"epoch": epoch, "time_this_iter_s": 1.0, "result": "x" * 10_000})
        each.on_trial_complete(None, trial, trial.last_result)  # type: ignore[arg-type]
        kept = trial.run_metadata
        size = len(repr((kept.last_result, kept.metric_analysis, kept.metric_n_steps)))
        assert size < most if most else size > 10_000
        assert trial.last_result["epoch"] == 10

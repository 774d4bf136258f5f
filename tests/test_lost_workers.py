"""How often a trial may lose its worker, as Ray Tune counts it. `tests/test_losses.py` has real ones."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from equitune.search.searcher import MAX_LOST_WORKERS, RungScheduler


class Trained:
    """An engine that lets every trial go on."""

    stopping = False
    halted = None

    def reached(self, number: int, epoch: int, metrics: dict[str, float]) -> bool:
        return True


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
def test_a_trial_that_gets_on_is_never_given_up(deaths_after: list[int], expected: bool) -> None:
    assert survives(deaths_after, RungScheduler(Trained())) == expected  # type: ignore[arg-type]


def test_without_renewal_ten_machines_are_too_many() -> None:
    """The broken twin: Tune's own count."""
    forgetful = SimpleNamespace(on_trial_result=lambda *_: TrialScheduler.CONTINUE)
    assert not survives(list(range(1, 11)), forgetful)

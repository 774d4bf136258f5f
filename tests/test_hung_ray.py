"""A worker that is stopped for good, under Ray. Slow."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from equitune.config.load import load_study
from equitune.driver.outcome import Outcome
from equitune.driver.run_study import run_study
from equitune.records.folder import StudyFolder
from equitune.records.reader import StudyReader
from equitune.search import hung
from equitune.training.run import run_trial

pytestmark = pytest.mark.slow

FLOOR_S = 6.0
STUDY = """\
study: small
data: {name: digits, limit: 200}
model: {name: resnet, depth: 8, width: {int: [2, 4]}}
augmentation: {translate: {max_px: {float: [0, 2]}}}
training: {epochs: 8, batch_size: 32}
measures: [{name: equivariance, most_images: 32}]
objectives: {accuracy: maximize, translation_error: minimize}
search: {sampler: random, trials: 3, seed: 3}
resources: {hung_after: 3, concurrent: 2}
"""


def stop_worker(trial: Any, stopped: list[int], is_over: threading.Event) -> None:
    """Stops the worker of a trial after its fourth epoch, for good."""
    while not is_over.is_set():
        if len(trial.read_epochs()) >= 4:
            stopped.append(json.loads(trial.worker.read_text())["pid"])
            os.kill(stopped[0], signal.SIGSTOP)
            return
        time.sleep(0.02)


def test_a_study_whose_worker_is_stopped_ends_with_the_same_numbers(
    study_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_data: Any
) -> None:
    monkeypatch.setattr(hung, "FLOOR_S", FLOOR_S)
    file, folder, said = study_file(STUDY), StudyFolder(tmp_path / "small"), list[str]()
    stopped, is_over = list[int](), threading.Event()
    stopper = threading.Thread(target=stop_worker, args=(folder.trial(1), stopped, is_over), daemon=True)
    stopper.start()
    try:
        assert run_study(load_study(file), folder, source=file, say=said.append) == Outcome("complete")
    finally:
        is_over.set()
        stopper.join()
    assert len(stopped) == 1
    of_trial_1 = [sentence for sentence in said if sentence.startswith("trial 1 ")]
    assert any(f"(process {stopped[0]} on " in sentence and "may hang" in sentence for sentence in of_trial_1), said
    assert any("is given up, and the trial goes on in another" in sentence for sentence in of_trial_1), said
    assert not os.path.exists(f"/proc/{stopped[0]}"), "what is given up is killed"
    study = StudyReader(folder).read()
    assert [trial.state for trial in study.trials] == ["COMPLETE"] * 3
    for trial in study.trials:
        lines = [json.loads(line)["epoch"] for line in folder.trial(trial.number).epochs.read_text().splitlines()]
        assert list(dict.fromkeys(lines)) == list(range(1, 9))
    assert len(lines) <= 9, (
        "it may have been stopped between an epoch's line and its checkpoint, and wrote nothing more"
    )
    (undisturbed,) = [run_alone(trial.config) for trial in study.trials if trial.number == 1]
    found = study.trials[1].metrics
    for name in ("accuracy", "translation_error"):
        assert found[name].value == undisturbed.metrics[name].value


def run_alone(config: Any) -> Any:
    """The same trial in this process."""
    from equitune.data.on_device import to_device
    from equitune.data.splits import load_splits

    return run_trial(config, to_device(load_splits(config.data), "cpu"))

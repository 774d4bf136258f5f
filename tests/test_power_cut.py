"""The power fails, the file system is checked, and the same command goes on to the undisturbed answer."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos import Search, marked
from loop_disk import LoopDisk, torn
from prerequisites import require

from equitune.config.load import load_study
from equitune.records.folder import StudyFolder, read_json
from equitune.records.reader import StudyReader
from equitune.search.storage import open_storage

EPOCHS, TRIALS = 6, 6
STUDY = f"""\
study: small
data: {{name: digits, limit: 200}}
model: {{name: resnet, depth: 8, width: {{int: [2, 4]}}}}
augmentation: {{translate: {{max_px: {{float: [0, 2]}}}}}}
training: {{epochs: {EPOCHS}, batch_size: 32, lr: {{float: [1e-3, 1e-2], log: true}}}}
measures: [{{name: equivariance, most_images: 32}}]
objectives: {{accuracy: maximize, translation_error: minimize}}
search: {{sampler: random, trials: {TRIALS}, seed: 3}}
"""
MOMENTS: dict[str, Callable[[Search], bool]] = {
    "study.json is there": lambda search: (search.folder / "study.json").exists(),
    "a trial has begun": lambda search: any(search.folder.glob("trials/*/config.json")),
    "epoch 4": lambda search: search.num_epochs() >= 4,
    "epoch 9": lambda search: search.num_epochs() >= 9,
    "a result": lambda search: any(search.folder.glob("trials/*/result.json")),
    "epoch 18": lambda search: search.num_epochs() >= 18,
    "epoch 24": lambda search: search.num_epochs() >= 24,
    "epoch 31": lambda search: search.num_epochs() >= 31,
    "all results": lambda search: len(list(search.folder.glob("trials/*/result.json"))) == TRIALS,
    "a test": lambda search: any(search.folder.glob("trials/*/test.json")),
}


@pytest.fixture
def file(study_file: Callable[..., Path]) -> Path:
    return study_file(STUDY)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[LoopDisk]:
    require("loop")
    made = LoopDisk(tmp_path)
    yield made
    made.close()


@pytest.fixture
def search(file: Path, disk: LoopDisk) -> Iterator[Search]:
    made = Search(file, disk.root)
    yield made
    end(made)


def end(search: Search) -> None:
    """Kills every process of a search, and waits until none is left: each holds the disk."""
    limit = time.monotonic() + 60
    while marked(search.mark):
        assert time.monotonic() < limit
        search.kill_all()
        time.sleep(0.1)
    if search.process:
        search.process.wait()


def cut(search: Search, disk: LoopDisk) -> list[str]:
    """Cuts the power; returns the records that are torn when the machine is up again."""
    disk.abort()
    end(search)
    disk.repair()
    return torn(search.folder)


def undisturbed(file: Path, root: Path) -> list[dict[str, Any]]:
    search = Search(file, root)
    try:
        search.start()
        assert search.wait(300) == 0, search.output
    finally:
        end(search)
    return answer(search.folder)


def answer(folder: Path) -> list[dict[str, Any]]:
    """All that `show --json` says of a study's trials, but for times, and what they score on the test split."""
    command = [sys.executable, "-m", "equitune", "show", "small", "--root", str(folder.parent), "--json"]
    shown = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    tests = {trial.number: trial.test for trial in StudyReader(StudyFolder(folder)).read().trials}
    assert shown["trials"]
    assert any(tests.values())
    for trial in shown["trials"]:
        del trial["metrics"]["seconds"]  # no two runs take the same
        trial["test"] = {name: metric.model_dump() for name, metric in tests[trial["number"]].items()}
    return list(shown["trials"])


def require_whole(folder: StudyFolder) -> None:
    """Each trial is there once, complete, told as its folder says, with all epochs and nothing unfinished."""
    records = StudyReader(folder).read().trials
    assert [record.number for record in records] == list(range(TRIALS))
    assert {record.state for record in records} == {"COMPLETE"}
    spec = load_study(folder.searchspace, tuple(read_json(folder.study)["overrides"]))
    told = open_storage(folder, spec).get_trials()
    assert [(trial.number, trial.state.name) for trial in told] == [(n, "COMPLETE") for n in range(TRIALS)]
    for trial, record in zip(told, records, strict=True):
        assert trial.values == [record.metrics[name].value for name in spec.objectives]
        assert [epoch.epoch for epoch in record.epochs] == list(range(1, EPOCHS + 1))
    for each in folder.trials():
        assert not each.checkpoint.exists()
        assert each.weights.stat().st_size


@pytest.mark.power
def test_ten_power_cuts_end_with_the_undisturbed_answer(file: Path, search: Search, disk: LoopDisk) -> None:
    expected = undisturbed(file, file.parent / "undisturbed")
    for moment, is_there in MOMENTS.items():
        search.start()
        assert search.until(lambda is_there=is_there: is_there(search)), search.output  # type: ignore[misc]
        before = search.num_epochs()
        lost = cut(search, disk)
        print(f"| {moment} | {before} | {search.num_epochs()} | {', '.join(lost) or 'none'} |", flush=True)
        assert not lost
    search.start()
    assert search.wait(300) == 0, search.output
    assert answer(search.folder) == expected
    require_whole(StudyFolder(search.folder))


@pytest.mark.power
def test_the_twin_that_flushes_nothing_loses_records(
    search: Search, disk: LoopDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "twin").mkdir()
    (tmp_path / "twin" / "sitecustomize.py").write_text("import os\nos.fsync = lambda descriptor: None\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'twin'}:{os.environ.get('PYTHONPATH', '')}")
    search.start()
    assert search.until(lambda: search.num_epochs() >= 20), search.output
    reported = search.num_epochs()
    lost = cut(search, disk)
    assert lost or search.num_epochs() < reported - 4, "two trials may lose the epoch that they were writing"


@pytest.mark.slow
def test_a_power_cut_ends_with_the_undisturbed_answer(file: Path, search: Search, disk: LoopDisk) -> None:
    expected = undisturbed(file, file.parent / "undisturbed")
    search.start()
    assert search.until(lambda: search.num_epochs() >= 20), search.output
    assert cut(search, disk) == []
    search.start()
    assert search.wait(300) == 0, search.output
    assert answer(search.folder) == expected
    require_whole(StudyFolder(search.folder))


@pytest.mark.power
def test_a_disk_that_becomes_read_only_is_said_and_gone_on_with(file: Path, search: Search, disk: LoopDisk) -> None:
    expected = undisturbed(file, file.parent / "undisturbed")
    search.start()
    assert search.until(lambda: search.num_epochs() >= 20), search.output
    disk.abort()
    assert search.wait(120) == 2, search.output
    assert "run the same command again; nothing is lost" in search.output
    assert "Traceback" not in search.output
    end(search)
    disk.repair()
    assert torn(search.folder) == []
    search.start()
    assert search.wait(300) == 0, search.output
    assert answer(search.folder) == expected
    require_whole(StudyFolder(search.folder))

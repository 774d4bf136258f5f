"""SIGKILL to driver and workers at random moments changes nothing. Slow."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos import Chaos, Search
from postgres import server

from equitune.records.folder import StudyFolder, read_json
from equitune.records.reader import StudyReader
from equitune.search.searcher import MAX_LOST_WORKERS
from equitune.search.storage import open_storage, storage_at
from equitune.spec.load import load_study

pytestmark = pytest.mark.slow

EPOCHS, TRIALS = 20, 24
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
SEED = int(os.environ.get("CHAOS_SEED", "1"))


@pytest.fixture
def file(study_file: Callable[..., Path]) -> Path:
    return study_file(STUDY)


@pytest.fixture
def search(file: Path, tmp_path: Path) -> Iterator[Callable[..., Search]]:
    begun: list[Search] = []

    def begin(root: str, *arguments: str) -> Search:
        begun.append(Search(file, tmp_path / root, *arguments))
        return begun[-1]

    yield begin
    for each in begun:
        each.kill_all()


def answer(folder: Path) -> list[dict[str, Any]]:
    """What a study found: parameters, state, objectives and place on the front of each trial."""
    command = [sys.executable, "-m", "equitune", "show", "small", "--root", str(folder.parent), "--json"]
    shown = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return [
        {name: trial[name] for name in ("number", "state", "params", "front")}
        | {name: trial["metrics"][name] for name in ("accuracy", "translation_error")}
        for trial in shown["trials"]
    ]


def require_whole(folder: StudyFolder, trials: int, url: str | None = None, epochs: int = EPOCHS) -> None:
    """Every trial is there once, told as its folder says, its epochs without a gap."""
    spec = load_study(folder.searchspace, tuple(read_json(folder.study)["overrides"]))
    records = StudyReader(folder).read().trials
    assert [record.number for record in records] == list(range(trials))
    assert {record.state for record in records} == {"COMPLETE"}
    with storage_at(url, folder, spec) as database:
        told = open_storage(folder, spec, database).get_trials()
    assert [trial.number for trial in told] == list(range(trials))
    assert {trial.state.name for trial in told} == {"COMPLETE"}
    for trial, record in zip(told, records, strict=True):
        assert trial.params == record.config.params
        assert trial.values == [record.metrics[name].value for name in spec.objectives]
    for each in folder.trials():
        found = [json.loads(line)["epoch"] for line in each.epochs.read_text().splitlines()]
        assert sorted(set(found)) == list(range(1, epochs + 1)), each.path
        assert not each.checkpoint.exists()


def tellings(journal: Path) -> Counter[int]:
    """How often the end of each trial stands in a journal."""
    from optuna.storages.journal._storage import JournalOperation

    operations = [json.loads(line) for line in journal.read_text().splitlines()]
    finished = [
        operation["trial_id"]
        for operation in operations
        if operation["op_code"] == JournalOperation.SET_TRIAL_STATE_VALUES and operation["state"] != 0
    ]
    return Counter(finished)


def mlflow_states(root: Path) -> Counter[str]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    return Counter(run.info.status for run in client.search_runs([experiment.experiment_id]))


def test_24_trials_through_20_kills(search: Callable[..., Search], tmp_path: Path) -> None:
    disturbed = search("disturbed")
    chaos = Chaos(disturbed, SEED, EPOCHS * TRIALS)
    kinds = ["worker"] * 12 + ["driver"] * 4
    chaos.random.shuffle(kinds)
    kinds = [each for kind in kinds for each in ((kind, "starting") if kind == "driver" else (kind,))]
    assert len(kinds) == 20
    chaos.run(kinds, MAX_LOST_WORKERS)
    assert len(chaos.killed) == 20
    folder = StudyFolder(disturbed.folder)
    require_whole(folder, TRIALS)
    assert tellings(folder.journal) == Counter(dict.fromkeys(range(TRIALS), 1))
    assert mlflow_states(folder.path.parent) == {"FINISHED": TRIALS + 1}
    undisturbed = search("undisturbed")
    undisturbed.start()
    assert undisturbed.wait(300) == 0, undisturbed.output
    assert answer(disturbed.folder) == answer(undisturbed.folder)


def test_kills_and_a_restarted_server_with_postgres(
    search: Callable[..., Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = 8
    with server() as database:
        monkeypatch.setenv("EQUITUNE_STORAGE", database.url)
        disturbed = search("disturbed", "--set", f"search.trials={trials}")
        chaos = Chaos(disturbed, SEED, EPOCHS * trials)
        disturbed.start()
        assert disturbed.until(lambda: disturbed.num_epochs() > EPOCHS), disturbed.output
        database.stop()
        database.start()
        chaos.run(["worker", "driver", "worker", "driver", "starting"], MAX_LOST_WORKERS)
        require_whole(StudyFolder(disturbed.folder), trials, database.url)

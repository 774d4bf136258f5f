"""SIGKILL to driver and workers at random moments changes nothing. Slow."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chaos import Chaos, Search, answer, mlflow_states, require_whole, tellings
from postgres import server

from equitune.driver.tune_searcher import MAX_LOST_WORKERS
from equitune.records.folder import StudyFolder

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

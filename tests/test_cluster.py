"""A whole tour from the laptop over a real Ray cluster with a token, its driver on a worker. Slow."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL_STUDY
from dashboards import proxy
from ray_cluster import TOKEN, RayCluster, ray_cluster

from equitune import cli
from equitune.errors import UserError
from equitune.records.folder import StudyFolder
from equitune.records.reader import StudyReader
from equitune.remote.jobs import Cluster
from equitune.remote.submit import followed, submit_study, verdict

pytestmark = pytest.mark.slow

EPOCHS, TRIALS = 80, 9
STUDY = (
    SMALL_STUDY.replace("epochs: 2", f"epochs: {EPOCHS}")
    .replace("trials: 4", f"trials: {TRIALS}")
    .replace("limit: 200", "limit: 100")
)
Run = Callable[..., tuple[str, str]]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    with ray_cluster(tmp_path_factory.mktemp("cluster") / "studies") as started:
        yield started


@pytest.fixture
def equitune(cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> Run:
    """Calls the shell in this process, with the token in the environment; returns what it printed and said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("EQUITUNE_CLUSTER", cluster.url)

    def run(*arguments: object, code: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["equitune", *map(str, arguments)])
        ended = cli._exit_code()
        out, err = capfd.readouterr()
        assert ended == code, out + err
        assert TOKEN not in out + err
        return out, err

    return run


def test_the_token_is_asked_for_refused_and_taken(cluster: RayCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)  # a search in this process has left one
    with pytest.raises(UserError, match="asks for a token"):
        Cluster(cluster.url, None)
    with pytest.raises(UserError, match="refuses the token"):
        Cluster(cluster.url, "wrong")
    assert {"CPU", "driver"} <= Cluster(cluster.url, TOKEN).resources()
    with pytest.raises(UserError, match="no machine of .* has the resource 'drivers'"):
        Cluster(cluster.url, TOKEN).submit("x@1", ["true"], driver_on="drivers", metadata={})


def test_a_job_ends_as_its_program_and_one_that_is_not_there_is_named(cluster: RayCluster, tmp_path: Path) -> None:
    connection, program = Cluster(cluster.url, TOKEN), tmp_path / "program.py"
    program.write_text("import sys\nprint('equitune ends with code', sys.argv[1])\nsys.exit(int(sys.argv[1]))\n")
    commands = {f"ends{code}": [sys.executable, "program.py", str(code)] for code in (0, 1, 2, 130)}
    commands |= {"missing": ["equitune-of-another-image"], "module": [sys.executable, "-m", "equitune_"]}
    how: dict[str, Any] = {"driver_on": "driver", "ship": [program], "environment": {}}
    jobs = {name: submit_study(connection, name, command, **how) for name, command in commands.items()}
    ended, shown, said = {}, dict.fromkeys(jobs, ""), list[str]()
    for name, job in jobs.items():

        def show(text: str, name: str = name) -> None:
            shown[name] += text

        ended[name] = verdict(followed(connection, job, show, said.append))
    assert {name: code for name, (code, _) in ended.items()} == {
        "ends0": 0,
        "ends1": 1,
        "ends2": 2,
        "ends130": 130,
        "missing": 2,
        "module": 1,  # another module than ours is another matter
    }, ended
    assert "the cluster's image has no equitune" in (ended["missing"][1] or "")
    assert shown["ends1"].splitlines()[-1] == "equitune ends with code 1"


def test_a_study_goes_there_is_watched_stopped_goes_on_and_comes_back(
    cluster: RayCluster, equitune: Run, study_file: Callable[..., Path], tmp_path: Path
) -> None:
    study_file(STUDY, "small.yaml")
    there = StudyFolder(cluster.root / "small")
    breaks = threading.Event()
    with proxy(cluster.url, cuts=lambda number: breaks.is_set() and number % 4 == 0) as (way, broken):
        out, _ = equitune("submit", "small.yaml", "--no-register", "--cluster", way)
        assert f"small@1: {TRIALS} trials" in out
        shown, said = [""], list[str]()

        def show(text: str) -> None:
            shown[0] += text

        connection = Cluster(way, TOKEN)
        watching = threading.Thread(target=followed, args=(connection, connection.job("small"), show, said.append))
        breaks.set()
        watching.start()
        _, err = equitune("submit", "small.yaml", code=2)
        assert "study small is being searched already: job small@1" in err
        limit = time.monotonic() + 200
        while f"1/{TRIALS} " not in shown[0] and watching.is_alive() and time.monotonic() < limit:
            time.sleep(0.1)
        first = {trial.number: trial.result.read_bytes() for trial in there.trials() if trial.result.exists()}
        assert first, shown[0]
        stopped, _ = equitune("cancel", "small")
        watching.join(60)
        log = Cluster(cluster.url, TOKEN).log(Cluster(cluster.url, TOKEN).job("small@1"))
        assert shown[0] == log, "no line is lost or doubled"
        assert broken
        assert any("broke the connection: trying again" in line for line in said)
    assert "stopping" in stopped
    assert "small: interrupted, " in stopped
    assert "Go on:   equitune submit small.yaml" in stopped  # what was typed here, not the job's own command
    assert not there.driver.exists(), "the driver has left by itself"
    out, _ = equitune("submit", "small.yaml", "--no-register", "--wait")
    assert f"small: complete, {TRIALS} of {TRIALS} trials" in out
    for number, result in first.items():
        assert there.trial(number).result.read_bytes() == result, "what had ended was kept"
    for trial in there.trials():
        epochs = [json.loads(line)["epoch"] for line in trial.epochs.read_text().splitlines()]
        assert sorted(set(epochs)) == list(range(1, EPOCHS + 1))
        assert len(epochs) <= EPOCHS + 2, "it went on from its last epoch"
    node = {job["submission_id"]: job["driver_node_id"] for job in cluster.get("/api/jobs/") if job["submission_id"]}
    assert node["small@1"] != head(cluster), "the driver lies on the worker"
    everything = json.dumps(cluster.get("/api/jobs/"))
    assert TOKEN not in everything

    out, _ = equitune("fetch", "small", "--root", tmp_path / "home", "--weights")
    here = StudyFolder(tmp_path / "home" / "small")
    assert {trial.number: trial.metrics for trial in StudyReader(here).read().trials} == {
        trial.number: trial.metrics for trial in StudyReader(there).read().trials
    }
    assert here.trial(0).weights.read_bytes() == there.trial(0).weights.read_bytes()
    assert f"small: complete, {TRIALS} of {TRIALS} trials" in equitune("show", "small", "--root", tmp_path / "home")[0]
    _, err = equitune("fetch", "smell", "--root", tmp_path / "home", code=2)
    assert "unknown study 'smell': did you mean 'small'?" in err


def head(cluster: RayCluster) -> str:
    nodes = cluster.get("/api/v0/nodes?detail=1")["data"]["result"]["result"]
    return str(next(node["node_id"] for node in nodes if node["is_head_node"]))

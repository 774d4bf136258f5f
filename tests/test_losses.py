"""What a study on a cluster survives: the RayCluster of deploy/ on hosts of this machine, each loss as it happens there.
`pytest -m netns`, as root; some minutes. What each costs is printed, and stands in docs/losses.md.
"""

import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from backends import REDIS_PASSWORD, STORE, Database, Service, answers, object_store, postgres, redis, tracking_server
from hosts import Host, Network, until
from losses import TRIALS, Study
from mlflow import MlflowClient
from pods import TOKEN, WRONG_TOKEN, Cluster
from prerequisites import require

from equitune.driver.tune_searcher import MAX_LOST_WORKERS
from equitune.records.folder import read_json
from equitune.records.reader import StudyReader

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Short: sockets lie in it."""
    for name in ("netns", "redis", "kustomize"):
        require(name)
    with tempfile.TemporaryDirectory(prefix="eqL", dir="/tmp", ignore_cleanup_errors=True) as path:
        yield Path(path)


@pytest.fixture(scope="module")
def network(folder: Path) -> Iterator[Network]:
    made = Network(folder)
    yield made
    made.end()


@pytest.fixture(scope="module")
def database(network: Network) -> Iterator[Database]:
    with postgres(network) as server:
        yield server


@pytest.fixture(scope="module")
def tracking(network: Network, folder: Path) -> Iterator[Service]:
    with tracking_server(network, folder / "mlflow") as server:
        yield server


@pytest.fixture(scope="module")
def door(network: Network, folder: Path) -> Iterator[Service]:
    """The one before the object store."""
    with object_store(network, folder / "store") as shut:
        yield shut


@pytest.fixture(scope="module")
def cluster(network: Network, database: Database, tracking: Service, door: Service, folder: Path) -> Iterator[Cluster]:
    """The head, and two workers of the group cpu."""
    values = {
        "EQUITUNE_ROOT": str(folder / "studies"),
        "EQUITUNE_DATA": str(folder / "data"),
        "optuna/url": database.url,
        "redis/password": REDIS_PASSWORD,
        "mlflow-client/username": "equitune",
        "mlflow-client/password": "-",
    }
    with redis(network, folder / "redis"):
        started = Cluster(network, values, STORE)
        started.start(started.head)
        started.worker("first", 11)
        started.worker("second", 12)
        yield started
        for host in network.hosts.values():
            host.kill()


@pytest.fixture
def hosts(cluster: Cluster) -> tuple[Host, Host]:
    """Both workers, alive whatever the test before did."""
    for host in (cluster.head, *cluster.workers.values()):
        if not host.is_on:
            cluster.replace(host)
    cluster.wait(*cluster.workers.values())
    return cluster.workers["first"], cluster.workers["second"]


@pytest.fixture(scope="module")
def begin(cluster: Cluster, database: Database, folder: Path) -> Callable[..., Study]:
    def begin(name: str, *settings: str, **where: bool) -> Study:
        return Study(cluster, database, folder / "studies", name, *settings, **where)

    return begin


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, begin: Callable[..., Study], database: Database) -> tuple[list[Any], float]:
    """What the study finds where nothing is lost, and the seconds it takes."""
    cluster.wait(*cluster.workers.values())
    warming = begin("warming", "search.trials=1", "training.epochs=1")
    warming.start(cluster.workers["first"])
    assert warming.wait()[0] == 0, warming.output
    database.count_tellings()
    study = begin("undisturbed")
    study.start(cluster.workers["first"])
    code, took_s = study.wait()
    assert code == 0, study.output
    study.require_whole()
    assert study.repeated() == 0
    print(f"\nundisturbed: {took_s:.0f} s")
    return study.answer(), took_s


@pytest.fixture
def ends_whole(undisturbed: tuple[list[Any], float]) -> Callable[..., None]:
    """Lets a study end, and holds it against the undisturbed one. Given the moment of the loss, it tells how soon a lost
    trial went on.
    """

    def ends_whole(study: Study, lost: str, until_on_s: float | None = None) -> None:
        code, took_s = study.wait()
        assert code == 0, study.output
        assert "Traceback" not in study.output
        study.require_whole()
        assert study.answer() == undisturbed[0]
        on = "" if until_on_s is None else f"its trial goes on after {until_on_s:.0f} s; "
        print(f"\n{lost}: {on}{took_s - undisturbed[1]:+.0f} s, {study.repeated()} epochs twice")

    return ends_whole


def goes_on(study: Study, number: int) -> float:
    """Waits until a trial that lost its worker is trained by another one; returns the seconds."""
    before = study.claims()[number]
    known = len(study.epochs(number))
    return study.until(
        lambda: study.claims()[number] != before and len(study.epochs(number)) > known, f"trial {number} goes on"
    )


def test_a_worker_killed(
    hosts: tuple[Host, Host], begin: Callable[..., Study], ends_whole: Callable[..., None]
) -> None:
    study = begin("worker")
    study.start(hosts[0])
    number = study.trained(hosts[1])
    os.kill(study.training_on(hosts[1])[number], signal.SIGKILL)
    ends_whole(study, "a worker killed", goes_on(study, number))


def test_workers_killed_again_and_again(
    hosts: tuple[Host, Host], begin: Callable[..., Study], undisturbed: tuple[list[Any], float]
) -> None:
    """One trial loses its worker more often than it may within an epoch, but comes on between: it gets to its end. The
    other never ends its first epoch, as if it crashed its worker: it is given up, and the study goes on.
    """
    epochs = 4 * (MAX_LOST_WORKERS + 2)
    study = begin("again", "search.trials=2", f"training.epochs={epochs}", "data.limit=null")
    study.start(hosts[0])
    deaths = {0: 0, 1: 0}
    seen = {0: 0, 1: 0}  # epochs of each when it was killed last

    def kill() -> bool:
        for host in hosts:
            for number, pid in study.training_on(host).items():
                done = len(study.epochs(number))
                due = done == 0 if number == 0 else done > seen[1] and deaths[1] < MAX_LOST_WORKERS + 2
                if due and not study.folder.trial(number).result.exists():
                    seen[number] = done
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        deaths[number] += 1
                        until(lambda host=host, number=number: number not in study.training_on(host), "it is dead", 30)
        return deaths[1] == MAX_LOST_WORKERS + 2 and study.folder.trial(0).result.exists()

    study.until(kill, "both trials have been killed often enough", 400)
    code, _ = study.wait()
    assert code == 1, study.output
    assert deaths[0] == MAX_LOST_WORKERS + 1
    given_up, gets_on = StudyReader(study.folder).read().trials
    assert given_up.state == "FAILED"
    assert "its worker was lost again and again within one epoch" in str(given_up.reason)
    assert gets_on.state == "COMPLETE"
    assert sorted(set(study.epochs(1))) == list(range(1, epochs + 1))
    assert study.database.tellings(study.name) == {0: 1, 1: 1}


def test_a_node_killed(
    hosts: tuple[Host, Host], cluster: Cluster, begin: Callable[..., Study], ends_whole: Callable[..., None]
) -> None:
    study = begin("node")
    study.start(hosts[0])
    number = study.trained(hosts[1])
    hosts[1].kill()
    cluster.replace(hosts[1], 13)
    ends_whole(study, "a node killed, and replaced at once", goes_on(study, number))


def test_a_node_drained_in_time(
    hosts: tuple[Host, Host], cluster: Cluster, begin: Callable[..., Study], ends_whole: Callable[..., None]
) -> None:
    """It goes by itself, within the manifest's grace, once its trial has ended there: its warm worker begins no other."""
    study = begin("drained")
    study.start(hosts[0])
    number = study.trained(hosts[1])
    before, known = study.claims(), {trial.number for trial in study.folder.trials()}
    grace_s = cluster.group(hosts[1]).grace_s
    took_s = hosts[1].terminate(grace_s)
    assert took_s < grace_s
    assert study.claims()[number] == before[number]
    assert study.folder.trial(number).result.exists()
    begun_since = {trial.number for trial in study.folder.trials() if trial.worker.exists()} - known
    assert {read_json(study.folder.trial(each).worker)["host"] for each in begun_since} <= {hosts[0].name}
    cluster.replace(hosts[1], 14)
    ends_whole(study, f"a node drained, its trial ended there in {took_s:.0f} s")


def test_a_node_drained_too_late(
    hosts: tuple[Host, Host], cluster: Cluster, begin: Callable[..., Study], ends_whole: Callable[..., None]
) -> None:
    """Its notice is shorter than its trial, which goes on elsewhere."""
    hosts[1].kill()
    cluster.replace(hosts[1], RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S="1")
    cluster.wait(*hosts)
    study = begin("notice")
    study.start(hosts[0])
    number = study.trained(hosts[1])
    hosts[1].terminate(8)
    assert not study.folder.trial(number).result.exists()
    cluster.replace(hosts[1], 15)
    ends_whole(study, "a node gone after a short notice, and replaced", goes_on(study, number))


def test_a_node_that_joins_late(
    hosts: tuple[Host, Host], cluster: Cluster, begin: Callable[..., Study], ends_whole: Callable[..., None]
) -> None:
    hosts[1].kill()
    cluster.wait(hosts[0])
    study = begin("late")
    study.start(hosts[0])
    study.trained(hosts[0])
    cluster.replace(hosts[1], 16)
    study.trained(hosts[1])
    ends_whole(study, "a node joins late")
    assert set(study.hosts_of_trials()) == {"first", "second"}


@pytest.mark.parametrize("number", [10, 20], ids=["at its address", "at another address"])
def test_the_head_killed_and_back(
    number: int,
    hosts: tuple[Host, Host],
    cluster: Cluster,
    begin: Callable[..., Study],
    ends_whole: Callable[..., None],
) -> None:
    """Driver and trials go on without it; no trial is begun again."""
    study = begin(f"head{number}")
    study.start(hosts[0])
    study.trained(hosts[1])
    before = study.claims()
    cluster.head.kill()
    cluster.replace(cluster.head, number)
    cluster.wait(*hosts)
    ends_whole(study, f"the head killed, and back {'at its' if number == 10 else 'at another'} address")
    assert study.repeated() == 0
    assert {each: study.claims()[each] for each in before} == before


def test_the_node_of_the_driver_killed(
    hosts: tuple[Host, Host], cluster: Cluster, begin: Callable[..., Study], ends_whole: Callable[..., None]
) -> None:
    """Without a word to anybody: first its cable is cut. The same command goes on from another host."""
    study = begin("driver")
    study.start(hosts[0])
    study.trained(hosts[0])
    hosts[0].connect(False)
    hosts[0].kill()
    study.start(hosts[1])
    since_s = study.until(lambda: study.output.count("trials at a time") == 2, "the second driver has the study")
    hosts[0].connect(True)
    cluster.replace(hosts[0], 17)
    ends_whole(study, f"the driver's node killed; the next driver begins after {since_s:.0f} s")


def test_a_submitted_study_whose_driver_dies(
    hosts: tuple[Host, Host], cluster: Cluster, begin: Callable[..., Study], ends_whole: Callable[..., None]
) -> None:
    """The job fails with its machine; submitted again, another one goes on."""
    study = begin("submitted")
    study.submit()
    study.until(lambda: study.folder.holder().get("host"), "its driver has begun")
    lost = cluster.workers[study.folder.holder()["host"]]
    study.trained(lost)
    lost.kill()
    assert study.wait()[0] not in (0, None), study.output
    study.submit()
    cluster.replace(lost, 18)
    ends_whole(study, "a submitted driver's node killed, and submitted again when its job had failed")


def test_postgresql_restarted(
    hosts: tuple[Host, Host], database: Database, begin: Callable[..., Study], ends_whole: Callable[..., None]
) -> None:
    study = begin("restarted")
    study.start(hosts[0])
    study.trained(hosts[1])
    database.stop("immediate")
    time.sleep(10)
    database.start()
    ends_whole(study, "PostgreSQL away for 10 s")


def test_the_object_store_refuses_for_a_minute(
    hosts: tuple[Host, Host], door: Service, begin: Callable[..., Study], ends_whole: Callable[..., None]
) -> None:
    study = begin("bucket", in_bucket=True)
    study.start(hosts[0])
    study.until(lambda: " COMPLETE: " in study.output, "a trial has ended")
    door.kill()
    time.sleep(60)
    assert not study.is_over(), study.output
    door.start()
    ends_whole(study, "the object store refuses for a minute")


def test_mlflow_down_for_a_minute(
    hosts: tuple[Host, Host],
    tracking: Service,
    folder: Path,
    begin: Callable[..., Study],
    ends_whole: Callable[..., None],
    cluster: Cluster,
) -> None:
    study = begin("untracked")
    study.start(hosts[0])
    study.trained(hosts[1])
    tracking.kill()
    back = threading.Timer(60, tracking.start)
    back.start()
    ends_whole(study, "MLflow down for a minute")
    back.join()
    until(lambda: answers(cluster.network, f"http://{cluster.network.outside}:5000/health"), "MLflow is back", 180)
    if "equitune mlflow sync" in study.output:  # it ended before MLflow was back
        sync = [sys.executable, "-m", "equitune", "mlflow", "sync", study.name]
        code, said = hosts[0].run(sync, cluster.environment(hosts[0]), 300)
        assert code == 0, said
    client = MlflowClient(f"sqlite:///{folder}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name(study.name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert Counter(run.info.status for run in runs) == {"FINISHED": TRIALS + 1}


@pytest.mark.parametrize("changes", [{"RAY_AUTH_TOKEN": WRONG_TOKEN}, {"RAY_AUTH_MODE": "disabled"}])
def test_a_wrong_token(
    changes: dict[str, str], hosts: tuple[Host, Host], cluster: Cluster, begin: Callable[..., Study]
) -> None:
    """Neither a worker nor a driver gets in; the driver says why and leaves nothing behind."""
    stranger = cluster.network.hosts.get("stranger") or cluster.network.host("stranger", 30)
    cluster.start(stranger, **changes)
    study = begin(f"token{len(changes)}")
    study.start(hosts[0], **changes)
    code, _ = study.wait()
    assert code == 2, study.output
    assert "refuses the token of this process" in study.output.splitlines()[-1]
    assert not study.folder.study.exists()
    for secret in (TOKEN, WRONG_TOKEN):
        assert secret not in study.output
    until(lambda: not stranger.is_on, "the stranger has given up", 180)
    assert "token" in stranger.log.read_text().lower()
    assert cluster.alive() == {cluster.head.address, *(host.address for host in hosts)}
    stranger.kill()

"""What a study on a cluster survives: the RayCluster of deploy/ on hosts of this machine, each loss as it happens there.
`pytest -m netns`, as root; some minutes. What each costs is printed, and stands in docs/losses.md.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from backends import REDIS_PASSWORD, Database, Service, mlflow, postgres, redis
from hosts import Host, Network
from losses import Study
from prerequisites import require
from raycluster import Cluster

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
    with mlflow(network, folder / "mlflow") as server:
        yield server


@pytest.fixture(scope="module")
def cluster(network: Network, database: Database, tracking: Service, folder: Path) -> Iterator[Cluster]:
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
        started = Cluster(network, values)
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
    def begin(name: str, *settings: str) -> Study:
        return Study(cluster, database, folder / "studies", name, *settings)

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
    """Lets a study end, and holds it against the undisturbed one."""

    def ends_whole(study: Study, lost: str) -> None:
        code, took_s = study.wait()
        assert code == 0, study.output
        study.require_whole()
        assert study.answer() == undisturbed[0]
        print(f"\n{lost}: {took_s - undisturbed[1]:+.0f} s, {study.repeated()} epochs twice")

    return ends_whole


def test_a_worker_killed(
    hosts: tuple[Host, Host], begin: Callable[..., Study], ends_whole: Callable[..., None]
) -> None:
    import os

    study = begin("worker")
    study.start(hosts[0])
    number = study.trained(hosts[1])
    os.kill(study.training_on(hosts[1])[number], 9)
    ends_whole(study, "a worker killed")


def test_a_node_killed(
    hosts: tuple[Host, Host], cluster: Cluster, begin: Callable[..., Study], ends_whole: Callable[..., None]
) -> None:
    study = begin("node")
    study.start(hosts[0])
    study.trained(hosts[1])
    hosts[1].kill()
    cluster.replace(hosts[1], 13)
    ends_whole(study, "a node killed")

"""A cluster of several nodes on this machine: one is lost, others join. Slow."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos import MARK, Search, trial_of
from test_chaos import STUDY, require_whole, tellings

from equitune.records.folder import StudyFolder

pytestmark = pytest.mark.slow

TRIALS, EPOCHS = 6, 120
FAST_CHECKS = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head that carries no work."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv(MARK, "nodes")
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": FAST_CHECKS})
    yield started
    started.shutdown()


def test_a_lost_node_costs_no_trial_and_one_that_joins_late_is_used(
    cluster: Any, study_file: Callable[..., Path], tmp_path: Path
) -> None:
    memory = 80_000_000  # bytes of each node's object store
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=memory) for _ in range(2)]
    cluster.wait_for_nodes()
    changes = (f"search.trials={TRIALS}", f"training.epochs={EPOCHS}", "resources.concurrent=3")
    settings = [part for change in changes for part in ("--set", change)]
    search = Search(study_file(STUDY), tmp_path / "studies", *settings, "--address", cluster.address)
    search.mark = "nodes"

    def training() -> set[int]:
        return {number for pid in search.workers() if (number := trial_of(pid)) is not None}

    try:
        search.start()
        assert search.until(lambda: len(training()) == 2 and search.num_epochs() > EPOCHS // 3), search.output
        cluster.remove_node(nodes[1], allow_graceful=False)
        assert search.until(lambda: len(training()) == 1), search.output
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=memory)
        assert search.until(lambda: len(training()) == 3), search.output
        assert search.wait(300) == 0, search.output
    finally:
        search.kill_driver()
    folder = StudyFolder(search.folder)
    require_whole(folder, TRIALS, epochs=EPOCHS)
    assert set(tellings(folder.journal).values()) == {1}
    for trial in folder.trials():
        epochs = [json.loads(line)["epoch"] for line in trial.epochs.read_text().splitlines()]
        assert len(epochs) <= EPOCHS + 2  # it went on from its checkpoint

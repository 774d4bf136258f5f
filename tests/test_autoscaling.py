"""Machines by need: the RayCluster of deploy/, with Ray's fake machines in place of pods, goes from none to what a study
asks for and back. Slow.

Ray's own code translates the manifest's groups for the autoscaler, as KubeRay's sidecar does; only the provider and the
seconds of idleness are the test's. Machines of 8 CPUs and a GPU are made of words: a trial on them runs on this CPU.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from chaos import MARK, Search, marked
from manifests import Manifest, clusters, of_kind, rendered
from test_chaos import STUDY, require_whole, tellings

from equitune.records.folder import StudyFolder

pytestmark = pytest.mark.slow

IDLE_S = 3  # the manifest has 180
TRIALS, EPOCHS = 3, 4
ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def as_configured(cluster: Manifest, gcs: str) -> dict[str, Any]:
    """What KubeRay's sidecar makes of a RayCluster, with fake machines: processes of this host."""
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    config = _derive_autoscaling_config_from_ray_cr(cluster)
    types = config["available_node_types"]
    types[FAKE_HEAD_NODE_TYPE] = types.pop(config["head_node_type"])
    for node_type in types.values():
        node_type["resources"]["object_store_memory"] = 80_000_000
        del node_type["resources"]["memory"]  # a fake machine has no word for it
    config["provider"] = {
        # Not `fake_multinode`, whose defaults lie in a file that Ray's wheel forgot.
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "gcs_address": gcs,
        "head_node_id": FAKE_HEAD_NODE_ID,
        "launch_multiple": True,
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    }
    return config | {"head_node_type": FAKE_HEAD_NODE_TYPE, "idle_timeout_minutes": IDLE_S / 60}


class Growing:
    """A cluster that starts its machines by need. Its head carries no work."""

    def __init__(self, cluster: Manifest, folder: str) -> None:
        from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

        self.mark, self.address = uuid.uuid4().hex, f"127.0.0.1:{free_port()}"
        config = Path(folder) / "config.json"
        config.write_text(json.dumps(as_configured(cluster, self.address)))
        version = cluster["spec"]["autoscalerOptions"]["version"]
        environment = {
            MARK: self.mark,
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": str(int(version == "v2")),
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "AUTOSCALER_METRIC_PORT": str(free_port()),
        }
        command = [
            str(Path(sys.executable).parent / "ray"),
            "start",
            "--head",
            "--block",
            "--num-cpus=0",
            f"--port={self.address.rpartition(':')[2]}",
        ]
        command += ["--node-ip-address=127.0.0.1", "--include-dashboard=false", f"--temp-dir={folder}"]
        command += ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
        command += [f"--ray-client-server-port={free_port()}", "--object-store-memory=80000000"]
        with (Path(folder) / "output").open("w") as output:
            self._process = subprocess.Popen(
                [*command, f"--autoscaling-config={config}"],
                env=os.environ | environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def status(self) -> Any:
        from ray.autoscaler.v2.sdk import get_cluster_status

        return get_cluster_status(self.address)

    def machines(self) -> Counter[str]:
        """How many of each group are up, the head apart."""
        status = self.status()
        up = Counter(node.ray_node_type_name for node in (*status.active_nodes, *status.idle_nodes))
        return Counter({group: number for group, number in up.items() if group in ("cpu", "gpu")})

    def num_pending(self) -> int:
        """The trials that wait for a machine, as the autoscaler sees them."""
        return len(self.status().resource_demands.placement_group_demand)

    def until(self, condition: Callable[[], bool], timeout_s: float = 120) -> None:
        limit = time.monotonic() + timeout_s
        while True:
            with suppress(Exception):  # not up yet
                if condition():
                    return
            assert time.monotonic() < limit, "waited in vain"
            time.sleep(0.4)

    def end(self) -> None:
        for pid in marked(self.mark):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(10)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Growing]:
    (manifest,) = of_kind(rendered("prod"), "RayCluster")
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(dir="/tmp") as folder:  # short: sockets
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        started = Growing(manifest, folder)
        try:
            yield started
        finally:
            started.end()


@pytest.fixture
def search(cluster: Growing, study_file: Callable[..., Path], tmp_path: Path) -> Iterator[Callable[..., Search]]:
    begun: list[Search] = []

    def begin(*changes: str) -> Search:
        settings = [part for change in changes for part in ("--set", change)]
        begun.append(Search(study_file(STUDY), tmp_path / "studies", *settings, "--address", cluster.address))
        begun[-1].start()
        return begun[-1]

    yield begin
    for each in begun:
        each.kill_all()


def test_the_groups_are_the_manifests() -> None:
    (manifest,) = of_kind(rendered("prod"), "RayCluster")
    ((_, spec),) = clusters([manifest])
    types = as_configured(manifest, "127.0.0.1:1")["available_node_types"]
    for group in spec["workerGroupSpecs"]:
        ours = types[group["groupName"]]
        assert (ours["min_workers"], ours["max_workers"]) == (group["minReplicas"], group["maxReplicas"])
        assert {name: str(ours["resources"][name]) for name in group["resources"]} == group["resources"]
    assert types["gpu"]["min_workers"] == 0


def test_a_study_brings_machines_up_from_none_and_they_go_again(
    cluster: Growing, search: Callable[..., Search]
) -> None:
    """A trial of 8 CPUs fits on the machines of group `gpu` alone, of which there are none."""
    cluster.until(lambda: cluster.machines() == {"cpu": 1})
    running = search(
        f"search.trials={TRIALS}", f"training.epochs={EPOCHS}", "resources.cpu=8", "resources.concurrent=2"
    )
    seen: list[tuple[int, int]] = []

    def is_over() -> bool:
        seen.append((cluster.num_pending(), cluster.machines()["gpu"]))
        return running.is_over()

    cluster.until(is_over, 240)
    assert running.wait(1) == 0, running.output
    assert "waiting for machines: 8 CPUs for a trial" in running.output
    assert "2 trials at a time" in running.output
    assert seen[0][1] == 0
    assert any(pending and up == 1 for pending, up in seen), seen  # a trial that has been begun waits for the second
    assert max(up for _, up in seen) == 2
    folder = StudyFolder(running.folder)
    require_whole(folder, TRIALS, epochs=EPOCHS)
    assert set(tellings(folder.journal).values()) == {1}
    cluster.until(lambda: cluster.machines() == {"cpu": 1})


ASK = """\
import sys, ray
from equitune.errors import UserError
from equitune.driver.machines import require_machines
from equitune.config.resources import Resources
ray.init(address=sys.argv[1], log_to_driver=False)
for asked in (Resources(cpu=9), Resources(gpu="auto")):
    print("GPUs", ray.cluster_resources().get("GPU", 0), flush=True)
    try:
        require_machines(asked, print)
    except UserError as error:
        print(error)
print("GPUs", ray.cluster_resources()["GPU"])
"""


def test_a_gpu_is_brought_up_and_what_no_group_has_is_refused_at_once(cluster: Growing) -> None:
    """No study: Ray counts the GPU of the fake machine, torch would see none."""
    command = [sys.executable, "-c", ASK, cluster.address]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert said.splitlines() == [
        "GPUs 0",
        "waiting for machines: 9 CPUs for a trial",
        "resources: a trial asks for 9 CPUs, but the cluster has no machine with that and can start none: "
        "ask for less, or give the cluster such machines",
        "GPUs 0",
        "waiting for machines: 1 CPU and 0.05 GPU for a trial",
        "as many trials run at once as fit now: resources.concurrent lets the cluster grow further",
        "GPUs 1.0",
    ]
    cluster.until(lambda: cluster.machines() == {"cpu": 1})

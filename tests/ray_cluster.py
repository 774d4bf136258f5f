"""A Ray cluster on this machine as `deploy/` has it: a head without CPUs, a worker with `driver`, a token."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

TOKEN = "0123456789abcdef" * 4
REPOSITORY = Path(__file__).parent.parent


@dataclass
class RayCluster:
    """The parts of it that a test needs."""

    url: str
    root: Path  # EQUITUNE_ROOT of its machines
    environment: dict[str, str]
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def get(self, path: str) -> Any:
        """What the dashboard answers, as JSON."""
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    def is_up(self) -> bool:
        try:
            nodes = self.get("/api/v0/nodes?detail=1")["data"]["result"]["result"]
            return any("driver" in node["resources_total"] for node in nodes) and bool(self.get("/api/jobs/") or True)
        except (OSError, urllib.error.URLError, KeyError, TypeError):
            return False


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def ray_cluster(root: Path, num_cpus: int = 5) -> Iterator[RayCluster]:
    """A cluster while the block runs; its processes end with it, by their ids."""
    bin_folder = str(Path(sys.executable).parent)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "EQUITUNE_", "MLFLOW_"))},
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "OMP_NUM_THREADS": "1",
        "EQUITUNE_ROOT": str(root),
    }
    gcs, dashboard = free_port(), free_port()
    cluster = RayCluster(f"http://127.0.0.1:{dashboard}", root, environment)
    temporary = tempfile.mkdtemp(prefix="eqj", dir="/tmp")  # short: the paths of sockets are limited
    common = ["--block", "--node-ip-address=127.0.0.1", "--object-store-memory=80000000", "--disable-usage-stats"]

    def start(name: str, *options: str) -> None:
        ray = [f"{bin_folder}/ray", "start", *common, f"--dashboard-agent-listen-port={free_port()}", *options]
        with Path(temporary, f"{name}.log").open("wb") as log:
            node = subprocess.Popen(ray, env=environment, start_new_session=True, stdout=log, stderr=log)
        cluster.nodes.append(node)

    try:
        ports = (f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={free_port()}")
        start("head", "--head", "--num-cpus=0", "--dashboard-host=127.0.0.1", f"--temp-dir={temporary}/h", *ports)
        _wait(lambda: bool(cluster.get("/api/version")), temporary)
        # Ray looks for a driver's log by the address of its machine, and here two machines share one.
        session = cluster.get("/api/version")["session_name"]
        Path(temporary, "w", session).mkdir(parents=True)
        Path(temporary, "w", session, "logs").symlink_to(Path(temporary, "h", session, "logs"))
        worker = (f"--address=127.0.0.1:{gcs}", f"--num-cpus={num_cpus}", '--resources={"driver": 4}')
        start("worker", f"--temp-dir={temporary}/w", *worker)
        _wait(cluster.is_up, temporary)
        yield cluster
    finally:
        for node in reversed(cluster.nodes):
            end(node)
        shutil.rmtree(temporary, ignore_errors=True)


def end(node: subprocess.Popen[bytes]) -> None:
    """Ends a `ray start --block` and all that it began."""
    try:
        begun = [child.pid for child in psutil.Process(node.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        begun = []
    node.terminate()
    try:
        node.wait(20)
    except subprocess.TimeoutExpired:
        node.kill()
        node.wait()
    for pid in begun:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _wait(condition: Any, folder: str, limit_s: float = 120) -> None:
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            if condition():
                return
        time.sleep(0.2)
    logs = "\n".join(path.read_text()[-2000:] for path in Path(folder).glob("*.log"))
    raise TimeoutError(f"the cluster did not come up in {limit_s:.0f} s:\n{logs}")

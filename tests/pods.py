"""The RayCluster of deploy/ on hosts of this machine: with the manifest's flags, environment and grace, and what KubeRay
adds to them. Only addresses, folders, sizes of memory and the values of secrets are this machine's.
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hosts import Host, Network, until
from manifests import clusters, groups, rendered

HEAD = "equitune-head-svc"
TOKEN, WRONG_TOKEN = "t0ken" * 8, "wr0ng" * 8
BIN = Path(sys.executable).parent
PACKAGE = Path(__file__).parent.parent


@dataclass(frozen=True)
class Group:
    """A group of pods: how one of them starts, what its environment says, and the seconds from SIGTERM to SIGKILL."""

    command: str
    environment: Mapping[str, str]
    grace_s: float


def as_pods(values: Mapping[str, str], overlay: str = "dev") -> dict[str, Group]:
    """The head and the groups of workers, as KubeRay makes pods of them (ray-operator, controllers/ray/common/pod.go).

    `values` are those of the environment's variables and of the secrets' keys (`redis/password`), which take the place of
    the manifest's.
    """
    ((_, spec),) = [(where, spec) for where, spec in clusters(rendered(overlay)) if where == "RayCluster/equitune"]
    tolerance = spec["gcsFaultToleranceOptions"]
    assert tolerance["backend"] == "redis"
    assert spec["authOptions"]["mode"] == "token"
    found = {}
    for name, group in groups(spec):
        (container,) = group["template"]["spec"]["containers"]
        flags = dict(group.get("rayStartParams", {}))
        for resource, amount in group.get("resources", {}).items():
            if flag := {"CPU": "num-cpus", "GPU": "num-gpus"}.get(resource):
                flags[flag] = amount
        others = {key: float(n) for key, n in group.get("resources", {}).items() if key not in ("CPU", "GPU", "memory")}
        flags |= {"resources": json.dumps(others)} if others else {}
        environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": values["ray-auth/auth_token"]}
        for variable in container["env"]:
            environment[variable["name"]] = values.get(variable["name"], "") or _value(variable, values)
        if name == "head":
            environment["RAY_REDIS_ADDRESS"] = tolerance["redisAddress"]
            environment["RAY_external_storage_namespace"] = "uid-of-the-cluster"
            flags["redis-password"] = values[_key(tolerance["redisPassword"]["valueFrom"])]
            start = "ray start --head"
        else:
            environment["RAY_gcs_rpc_server_reconnect_timeout_s"] = "600"
            start = f"ray start --address={HEAD}:6379"
        flags |= {"dashboard-agent-listen-port": "52365", "metrics-export-port": "8080"}
        words = " ".join(f"--{flag}={shlex.quote(value)}" for flag, value in flags.items())
        grace_s = group["template"]["spec"]["terminationGracePeriodSeconds"]
        found[name] = Group(f"ulimit -n 65536; {start} --block {words}", environment, grace_s)
    return found


def _key(source: Mapping[str, Mapping[str, str]]) -> str:
    return f"{source['secretKeyRef']['name']}/{source['secretKeyRef']['key']}"


def _value(variable: Mapping[str, object], values: Mapping[str, str]) -> str:
    source = variable.get("valueFrom")
    return values[_key(source)] if source else str(variable["value"])  # type: ignore[arg-type]


class Cluster:
    """The head and the workers, each a pod on a host of its own, started and lost one by one."""

    def __init__(self, network: Network, values: Mapping[str, str], beside: Mapping[str, str]) -> None:
        """`values`: see `as_pods`; `beside`: what every environment says besides."""
        self._beside = dict(beside)
        self.network, self._groups = network, as_pods({"ray-auth/auth_token": TOKEN} | dict(values))
        self.head = network.host("head", 10)
        network.name(HEAD, self.head.address)
        self.workers: dict[str, Host] = {}

    def group(self, host: Host) -> Group:
        return self._groups["head" if host is self.head else "cpu"]

    def environment(self, host: Host) -> dict[str, str]:
        """Of every process there."""
        (host.folder / "home").mkdir(exist_ok=True)
        own = {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HOME": str(host.folder / "home"),
            "PYTHONPATH": str(PACKAGE),
            "OMP_NUM_THREADS": "1",
            "RAY_raylet_start_wait_time_s": "120",  # this machine may be slow
            "RAY_ADDRESS": f"{HEAD}:6379" if host is not self.head else "127.0.0.1:6379",
        }
        return own | self._beside | dict(self.group(host).environment)

    def start(self, host: Host, **changes: str) -> None:
        """Starts the pod of a host that is off; `changes` of its environment are those of a test."""
        own = f" --node-ip-address={host.address} --object-store-memory=80000000 --disable-usage-stats"
        disk = tempfile.mkdtemp(prefix="r", dir=host.folder)  # a pod begins with an empty one
        command = f"{self.group(host).command}{own} --temp-dir={disk}"
        host.start(command, self.environment(host) | changes)

    def worker(self, name: str, number: int, **changes: str) -> Host:
        """Makes a host and starts a worker there."""
        self.workers[name] = self.network.host(name, number)
        self.start(self.workers[name], **changes)
        return self.workers[name]

    def replace(self, host: Host, number: int | None = None, **changes: str) -> None:
        """Starts the pod of a host that was lost anew, as the operator does; at another address, where one is given."""
        if number is not None:
            host.move(number)
            if host is self.head:
                self.network.name(HEAD, host.address)
        self.start(host, **changes)

    def wait(self, *hosts: Host) -> None:
        """Until just these workers live, and the head; one whose pod has failed is started again, as the operator does."""
        expected = {host.address for host in (self.head, *hosts)}

        def live() -> bool:
            for host in (self.head, *hosts):
                if not host.is_on:
                    host.kill()
                    self.start(host)
            return self.alive() == expected

        until(live, f"the nodes {sorted(expected)} live", 240)

    def alive(self) -> set[str]:
        """The addresses of the nodes that live, as the head's dashboard says; empty where it says nothing."""
        url, header = f"http://{self.head.address}:8265/nodes?view=summary", f"Authorization: Bearer {TOKEN}"
        asked = [*self.network.within, "curl", "--silent", "--max-time", "5", "--header", header, url]
        said = subprocess.run(asked, capture_output=True, text=True)
        try:
            nodes = json.loads(said.stdout)["data"]["summary"]
        except (ValueError, KeyError):
            return set()
        return {node["raylet"]["nodeManagerAddress"] for node in nodes if node["raylet"]["state"] == "ALIVE"}

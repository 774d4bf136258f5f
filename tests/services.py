"""The services of deploy/ on this machine: each container's own command, arguments, environment and files, as an overlay
renders them. Others are only hosts, ports, the places of volumes and of the image, and the values of Secrets.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from chaos import MARK, marked
from manifests import DEPLOY, Manifest, clusters, groups, of_kind, rendered
from postgres import Server

IMAGE = "/opt/venv/bin"  # where the images have their programs
LOOPBACK = "127.0.0.1"
MEMORY = "--object-store-memory=80000000"  # bytes
README = (DEPLOY / "README.md").read_text(encoding="utf-8")


class Place:
    """Stands for the namespace: knows its ConfigMaps, invents the values of its Secrets, runs its containers."""

    def __init__(self, folder: Path, manifests: list[Manifest]) -> None:
        self.folder, self.manifests = folder, manifests
        self.config = {it["metadata"]["name"]: it["data"] for it in of_kind(manifests, "ConfigMap")}
        self.secrets = {
            (secret["metadata"]["name"], key): secrets.token_hex(24)
            for secret in yaml.safe_load_all((DEPLOY / "secrets.example.yaml").read_text(encoding="utf-8"))
            for key in secret["stringData"]
        }
        self.stands_for = {IMAGE: str(Path(sys.executable).parent), "0.0.0.0": LOOPBACK}
        self._started: list[subprocess.Popen[bytes]] = []

    def template(self, kind: str, start: str) -> Manifest:
        """The pod of the workload of this kind whose name begins so."""
        (found,) = [it for it in of_kind(self.manifests, kind) if it["metadata"]["name"].startswith(start)]
        return found["spec"]["template"]["spec"]

    def environment(self, pod: Manifest, container: Manifest) -> dict[str, str]:
        """What a container is given, and the PATH of this machine; nothing else of this process."""
        found = {"PATH": os.environ["PATH"]}
        for variable in container.get("env", []):
            source = variable.get("valueFrom", {})
            if "secretKeyRef" in source:
                found[variable["name"]] = self.secrets[source["secretKeyRef"]["name"], source["secretKeyRef"]["key"]]
            elif "configMapKeyRef" in source:
                reference = source["configMapKeyRef"]
                if reference["key"] in self.config[reference["name"]] or not reference.get("optional"):
                    found[variable["name"]] = self._here(
                        pod, container, self.config[reference["name"]][reference["key"]]
                    )
            else:
                found[variable["name"]] = self._here(pod, container, variable["value"])
        return found

    def command(self, pod: Manifest, container: Manifest) -> list[str]:
        """Its command line; $(NAME) stands for a variable, as Kubernetes has it."""
        values = self.environment(pod, container)
        words = [self._here(pod, container, word) for word in container["command"] + container.get("args", [])]
        return [re.sub(r"\$\((\w+)\)", lambda found: values[found[1]], word) for word in words]

    def run(self, pod: Manifest, container: Manifest, **changed: str | None) -> subprocess.CompletedProcess[str]:
        """Runs it to its end, with some variables changed, or taken away where None."""
        process = self.start(pod, container, "run", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **changed)
        said, _ = process.communicate(timeout=180)
        return subprocess.CompletedProcess(process.args, process.returncode, said.decode())

    def start(
        self, pod: Manifest, container: Manifest, log: str, *, stdout: Any = None, stderr: Any = None, **changed: Any
    ) -> subprocess.Popen[bytes]:
        """Starts it; what it says goes to NAME.log in the folder."""
        environment = {
            name: value for name, value in (self.environment(pod, container) | changed).items() if value is not None
        }
        self._mount(pod, container)
        with (self.folder / f"{log}.log").open("ab") as file:
            process = subprocess.Popen(
                self.command(pod, container),
                env=environment,
                cwd=self.folder,
                stdout=stdout or file,
                stderr=stderr or subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def said(self, log: str) -> str:
        return (self.folder / f"{log}.log").read_text(errors="replace")

    def end(self) -> None:
        """Ends what was started here, with its children."""
        for process in self._started:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            process.wait()

    def _mount(self, pod: Manifest, container: Manifest) -> None:
        """Makes the container's volumes, as folders: its own files from ConfigMaps and Secrets, else empty ones."""
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        for mount in container.get("volumeMounts", []):
            volume, path = volumes.get(mount["name"], {}), self._path(mount)
            path.mkdir(parents=True, exist_ok=True)
            files = self.config[volume["configMap"]["name"]] if "configMap" in volume else {}
            files = {name: self._here(pod, container, text) for name, text in files.items()}
            for item in volume.get("secret", {}).get("items", []):
                files[item["path"]] = self.secrets[volume["secret"]["secretName"], item["key"]]
            for name, text in files.items():
                (path / name).write_text(text, encoding="utf-8")

    def _path(self, mount: Manifest) -> Path:
        return self.folder / "volumes" / str(mount["name"])

    def _here(self, pod: Manifest, container: Manifest, text: str) -> str:
        """A text of the container's with what stands for its hosts, ports and paths here."""
        paths = {mount["mountPath"]: str(self._path(mount)) for mount in container.get("volumeMounts", [])}
        known = self.stands_for | paths
        words = "|".join(map(re.escape, sorted(known, key=len, reverse=True)))
        return re.sub(rf"(?<![\w/.-])({words})(?![\w-])", lambda found: known[found[1]], text)


class Services(Place):
    """PostgreSQL, S3 and MLflow of the overlay `dev`, the latter two started as their pods would be.

    PostgreSQL is reached through its socket, and S3 is moto's server, which takes every key.
    """

    def __init__(self, folder: Path, database: Server, s3: str) -> None:
        super().__init__(folder, rendered("dev"))
        self.database, self.s3, self.port = database, s3, free_port()
        self.url = f"http://localhost:{self.port}"
        self.stands_for |= {"http://s3:8333": s3, "--port=5000": f"--port={self.port}"}
        self.secrets["mlflow-client", "username"] = "equitune"
        self._make_databases(self.secrets["dev-backends", "postgres-password"])
        self.secrets["mlflow-auth-config", "basic_auth.ini"] = self.users_file("mlflow_auth")
        self.deployment = self.template("Deployment", "mlflow")
        self.migration = self.template("Job", "mlflow-db-upgrade")
        self.admin = f"admin:{self.secrets['mlflow-secrets', 'admin-password']}"
        self.user = f"equitune:{self.secrets['mlflow-client', 'password']}"

    def address(self, name: str) -> str:
        """Of a database, as its owner."""
        password = self.secrets["dev-backends", "postgres-password"]
        return f"postgresql+psycopg2://equitune:{password}@/{name}?host={self.database.path}"

    def users_file(self, name: str) -> str:
        """MLflow's file of its users' database, as README.md writes it."""
        (written,) = re.findall(r"cat > \$S/mlflow-auth-config/basic_auth.ini <<END\n(.*?)\nEND", README, re.DOTALL)
        return re.sub(r"\$\(cat \S+\)", lambda _: self.address(name), written)

    def _make_databases(self, password: str) -> None:
        """By a role that owns them, whose addresses go where README.md writes them."""
        self.database.sql(f"CREATE ROLE equitune LOGIN PASSWORD '{password}'")
        (script,) = next(data for name, data in self.config.items() if name.startswith("postgres-init")).values()
        for statement in filter(None, map(str.strip, script.split(";"))):
            self.database.sql(f"{statement} OWNER equitune")
        places = re.findall(r'printf %s "([\w+]+)://\$AT/(\w+)" > \$S/([\w-]+)/([\w-]+)', README)
        assert len(places) == 3
        for scheme, name, secret, key in places:
            self.secrets[secret, key] = self.address(name).replace("postgresql+psycopg2", scheme, 1)

    def driver(self) -> dict[str, str]:
        """What the environment of a pod that holds drivers says."""
        ((_, cluster),) = clusters(self.manifests)
        pod = dict(groups(cluster))["cpu"]["template"]["spec"]
        self.stands_for["http://mlflow:5000"] = self.url
        return self.environment(pod, pod["containers"][0])

    def post(self, user: str | None, path: str, **fields: Any) -> tuple[int, Any]:
        status, body = answer(self.url + path, user, data=json.dumps(fields).encode(), method="POST")
        return status, json.loads(body) if status == 200 else body

    def add_user(self, user: str) -> None:
        """As README.md says: by a call of the admin's."""
        name, _, password = user.partition(":")
        assert self.post(self.admin, "/api/2.0/mlflow/users/create", username=name, password=password)[0] == 200


class Nodes:
    """Ray on this machine, each node with a folder and a mark of its own, which its processes carry.

    Started are the programs that the operator would start: with the group's parameters, its container's environment and
    the token. Others are the sizes, and how fast a lost node is noticed.
    """

    def __init__(self, services: Services) -> None:
        ((_, self.cluster),) = clusters(services.manifests)
        self._services, self._folder = (
            services,
            Path(tempfile.mkdtemp(prefix="eqT", dir="/tmp")),
        )  # sockets want it short
        self.token = services.secrets[self.cluster["authOptions"]["secretName"], "auth_token"]
        self.marks: list[str] = []
        self.port, self.dashboard = free_port(), free_port()
        self.url = f"http://{LOOPBACK}:{self.dashboard}"
        services.stands_for["http://mlflow:5000"] = services.url

    def start(self, group: str, *options: str) -> str:
        """Starts a node of a group; returns its mark."""
        content = dict(groups(self.cluster))[group]
        pod = content["template"]["spec"]
        (container,) = pod["containers"]
        self.marks.append(f"eqT-{uuid.uuid4().hex}")
        parameters = [f"--{name}={value}" for name, value in content.get("rayStartParams", {}).items()]
        own = [f"--temp-dir={self._folder}/{len(self.marks)}", f"--dashboard-agent-listen-port={free_port()}"]
        program = {
            **container,
            "command": [f"{IMAGE}/ray", "start", "--block", *parameters, *own, *options],
            "args": [],
        }
        by_operator = {"RAY_AUTH_MODE": self.cluster["authOptions"]["mode"], "RAY_AUTH_TOKEN": self.token}
        machine = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.environ.get("PYTHONPATH", ""), MARK: self.marks[-1]}
        self._services.start(pod, program, "ray", **by_operator, **machine)
        return self.marks[-1]

    def start_head(self) -> None:
        checks = (
            '{"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}'
        )
        ports = [f"--port={self.port}", f"--dashboard-port={self.dashboard}"]
        self.start("head", "--head", *ports, f"--system-config={checks}", MEMORY)
        wait_until(lambda: self.get("/api/version", self.token)[0] == 200, 60, lambda: self._services.said("ray"))

    def start_worker(self, cpus: int) -> str:
        resources = f'--resources={{"driver": {dict(groups(self.cluster))["cpu"]["resources"]["driver"]}}}'
        return self.start("cpu", f"--address={LOOPBACK}:{self.port}", f"--num-cpus={cpus}", resources, MEMORY)

    def get(self, path: str, token: str | None = None, **fields: Any) -> tuple[int, bytes]:
        """Asks the dashboard, or tells it something in JSON."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        data = json.dumps(fields).encode() if fields else None
        try:
            return answer(self.url + path, headers=headers, data=data, method="POST" if fields else "GET")
        except OSError:
            return 0, b""

    def logs(self) -> Iterator[Path]:
        return (path for path in self._folder.rglob("*") if path.is_file())

    def lose(self, mark: str) -> None:
        """All processes of a node at once, as with its machine."""
        for pid in marked(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def end(self) -> None:
        for mark in self.marks:
            self.lose(mark)
        shutil.rmtree(self._folder, ignore_errors=True)


def answer(
    url: str,
    user: str | None = None,
    *,
    headers: dict[str, str] | None = None,
    data: bytes | None = None,
    method: str = "GET",
) -> tuple[int, bytes]:
    """The status and the body with which a server answers; `user` is NAME:PASSWORD."""
    request = urllib.request.Request(url, data=data, method=method, headers={"Content-Type": "application/json"})
    for name, value in (headers or {}).items():
        request.add_header(name, value)
    if user is not None:
        request.add_header("Authorization", "Basic " + b64encode(user.encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def wait_until(condition: Callable[[], bool], seconds: float, said: Callable[[], str] = lambda: "") -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"waited {seconds} s in vain\n{said()[-3000:]}"
        time.sleep(0.2)


def answers(url: str) -> bool:
    try:
        return answer(url)[0] == 200
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        return int(free.getsockname()[1])

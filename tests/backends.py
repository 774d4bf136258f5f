"""What lies beside a cluster of hosts: Redis, PostgreSQL and MLflow, at the address outside of a network."""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hosts import NETWORK, Network, until
from manifests import of_kind, rendered
from postgres import QUOTED, Server

REDIS_PASSWORD = "redis-s3cr3t"


class Service:
    """A program beside the cluster, killed and started again at will."""

    def __init__(self, network: Network, command: list[str], log: Path, **environment: str) -> None:
        self._command, self._log = [*network.within, *command], log
        self._environment = os.environ | environment
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=subprocess.STDOUT, env=self._environment, start_new_session=True
            )

    def kill(self) -> None:
        """With its children, by SIGKILL."""
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, 9)
            self._process.wait()
            self._process = None


@contextmanager
def redis(network: Network, folder: Path) -> Iterator[None]:
    """Redis with the manifest's configuration, at the manifest's address."""
    (text,) = [m["data"]["redis.conf"] for m in of_kind(rendered("dev"), "ConfigMap") if "redis.conf" in m["data"]]
    folder.mkdir()
    (folder / "password.conf").write_text(f"requirepass {REDIS_PASSWORD}\n")
    text = text.replace("/run/redis/password.conf", str(folder / "password.conf")).replace("/data", str(folder))
    (folder / "redis.conf").write_text(text)
    network.name("redis", network.outside)
    service = Service(network, ["redis-server", str(folder / "redis.conf")], folder / "log")
    try:
        until(lambda: "Ready to accept connections" in (folder / "log").read_text(), "Redis answers", 60)
        yield
    finally:
        service.kill()


@contextmanager
def tracking_server(network: Network, folder: Path) -> Iterator[Service]:
    """MLflow's server at the manifest's address, on a file."""
    folder.mkdir()
    network.name("mlflow", network.outside)
    store = [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    serve = ["--host", network.outside, "--port", "5000", "--workers", "1", "--allowed-hosts", "mlflow:5000,mlflow"]
    service = Service(
        network,
        [str(Path(sys.executable).parent / "mlflow"), "server", *store, *serve],
        folder / "log",
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    )
    try:
        until(lambda: answers(network, f"http://{network.outside}:5000/health"), "MLflow answers", 180)
        yield service
    finally:
        service.kill()


BUCKET = "studies"
STORE = {
    "AWS_ENDPOINT_URL": f"http://{NETWORK}.1:9000",
    "AWS_ACCESS_KEY_ID": "nobody-at-all",
    "AWS_SECRET_ACCESS_KEY": "s3-s3cr3t",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def object_store(network: Network, folder: Path) -> Iterator[Service]:
    """An S3 server with an empty bucket, which STORE finds; gives the door before it, which may be shut."""
    folder.mkdir()
    behind = "127.0.0.1:9001"
    moto = [str(Path(sys.executable).parent / "moto_server"), "-H", "127.0.0.1", "-p", "9001"]
    server = Service(network, moto, folder / "log")
    relay = [sys.executable, str(Path(__file__).parent / "relay.py"), f"{network.outside}:9000", behind]
    door = Service(network, relay, folder / "door")
    try:
        until(lambda: answers(network, f"http://{network.outside}:9000/moto-api/"), "the object store answers", 120)
        make = f"import boto3; boto3.client('s3').create_bucket(Bucket={BUCKET!r})"
        subprocess.run([*network.within, sys.executable, "-c", make], check=True, env=os.environ | STORE)
        yield door
    finally:
        door.kill()
        server.kill()


def fetched(network: Network, name: str, folder: Path) -> None:
    """Copies what the bucket holds below a name into a folder of this machine."""
    code = f"import s3fs; s3fs.S3FileSystem().get('{BUCKET}/{name}/', '{folder}/', recursive=True)"
    subprocess.run([*network.within, sys.executable, "-c", code], check=True, env=os.environ | STORE)


def answers(network: Network, url: str) -> bool:
    asked = [*network.within, "curl", "--silent", "--fail", "--max-time", "3", url]
    return subprocess.run(asked, capture_output=True).returncode == 0


class Database(Server):
    """PostgreSQL that the hosts reach by TCP."""

    def __init__(self, path: Path, network: Network) -> None:
        super().__init__(path)
        with (path / "pg_hba.conf").open("a") as file:
            file.write(f"host all all {NETWORK}.0/24 scram-sha-256\n")
        self.stop("fast")
        self._within, self._address = network.within, network.outside
        network.name("postgres", network.outside)
        self.start()
        self.url = f"postgresql+psycopg2://lab:{QUOTED}@postgres:5432/lab"

    def start(self) -> None:
        self._control("-w", "-l", str(self.path / "log"), "-o", f"-h {self._address} -k {self.path}", "start")

    def _control(self, *arguments: str) -> None:
        from pgserver._commands import POSTGRES_BIN_PATH

        command = [str(POSTGRES_BIN_PATH / "pg_ctl"), "-D", str(self.path), *arguments]
        if user := self._server.system_user:
            command = ["runuser", "-u", user, "--", *command]
        within = getattr(self, "_within", [])
        subprocess.run(
            [*within, *command], check=True, timeout=60, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd="/"
        )

    def count_tellings(self) -> None:
        """From now on each ending of a trial is written down; the tables must be there."""
        self.sql(
            "CREATE TABLE told (study integer, number integer)",
            "GRANT ALL ON told TO lab",
            "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS "
            "$$BEGIN INSERT INTO told VALUES (NEW.study_id, NEW.number); RETURN NEW; END$$",
            "CREATE TRIGGER told AFTER UPDATE ON trials FOR EACH ROW "
            "WHEN (NEW.state <> 'RUNNING' AND NEW.state IS DISTINCT FROM OLD.state) EXECUTE FUNCTION tell()",
            database="lab",
        )

    def tellings(self, study: str) -> Counter[int]:
        """How often the end of each trial was told."""
        rows = self.sql(
            f"SELECT number FROM told JOIN studies ON told.study = study_id WHERE study_name = '{study}'",
            database="lab",
        )
        return Counter(number for (number,) in rows)


@contextmanager
def postgres(network: Network) -> Iterator[Database]:
    with tempfile.TemporaryDirectory(prefix="equitune-pg-") as folder:
        database = Database(Path(folder) / "data", network)
        try:
            yield database
        finally:
            database.stop("fast")
            database.end()

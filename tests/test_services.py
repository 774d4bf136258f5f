"""The services of deploy/, run as their manifests say on real PostgreSQL, an S3 server, MLflow and Redis: who gets in,
who does not, and what a client needs. Slow.
"""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from manifests import rendered
from postgres import server
from prerequisites import require
from services import LOOPBACK, Place, Services, answer, answers, free_port, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:datetime.datetime.utc:DeprecationWarning"),
]

# One of each family of MLflow's routes: none answers who has no user.
CLOSED = """
GET /
GET /version
GET /metrics
POST /graphql
POST /v1/traces
GET /signup
GET /get-artifact?path=a&run_uuid=b
GET /model-versions/get-artifact?name=a&version=1&path=b
POST /api/2.0/mlflow/experiments/search
POST /ajax-api/2.0/mlflow/experiments/search
POST /api/2.0/mlflow/runs/create
POST /ajax-api/2.0/mlflow/upload-artifact?run_uuid=a&path=b
GET /api/2.0/mlflow/registered-models/search
GET /api/2.0/mlflow/users/get?username=admin
POST /api/2.0/mlflow/users/create
PATCH /api/2.0/mlflow/users/update-password
POST /api/2.0/mlflow/users/create-ui
GET /api/2.0/mlflow/webhooks
GET /ajax-api/2.0/mlflow/get-trace-artifact?request_id=..
GET /api/2.0/mlflow-artifacts/artifacts
GET /api/2.0/mlflow-artifacts/artifacts/a
PUT /api/2.0/mlflow-artifacts/artifacts/a
DELETE /ajax-api/2.0/mlflow-artifacts/artifacts/a
POST /api/2.0/mlflow-artifacts/mpu/create/a
POST /ajax-api/3.0/jobs/
POST /ajax-api/3.0/jobs/search
GET /ajax-api/3.0/jobs/a
POST /ajax-api/2.0/mlflow/gateway-proxy
POST /gateway/mlflow/v1/chat/completions
POST /ajax-api/3.0/mlflow/assistant/message
POST /ajax-api/3.0/mlflow/demo/generate
GET /api/3.0/mlflow/mcp-servers
GET /openapi.json
""".strip().splitlines()
OPEN = ("/health", "/api/3.0/mlflow/server-info", "/static-files/index.html")  # kind of the store, no data
OUT = ("../../a", "..%2F..%2Fa", "%2e%2e/%2e%2e/a", "%252e%252e%252fa", "a/../../../b")
ARTEFACTS = "/api/2.0/mlflow-artifacts/artifacts"


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """The databases, made by the migration job's containers one after the other, while a server's pod waits for them."""
    from moto.server import ThreadedMotoServer

    s3 = ThreadedMotoServer(LOOPBACK, free_port(), verbose=False)
    s3.start()
    with server() as database:
        services = Services(
            tmp_path_factory.mktemp("services"), database, "http://{}:{}".format(*s3.get_host_and_port())
        )
        try:
            bucket, (waiter,) = services.template("Job", "s3-bucket"), services.deployment["initContainers"]
            waiting = services.start(services.deployment, waiter, "waiting")
            making = services.start(bucket, bucket["containers"][0], "bucket")
            for container in services.migration["initContainers"] + services.migration["containers"]:
                assert waiting.poll() is None, services.said("waiting")
                done = services.run(services.migration, container)
                assert done.returncode == 0, done.stdout
            assert making.wait(60) == 0, services.said("bucket")
            assert waiting.wait(60) == 0, services.said("waiting")
            yield services
        finally:
            services.end()
            s3.stop()


@pytest.fixture(scope="module")
def refused(migrated: Services) -> dict[str, tuple[int, str]]:
    """How servers end that must not start: with users but no admin's password; on a schema of another version."""
    copies = {"nobody": "mlflow_auth", "old": "mlflow"}
    for copy, name in copies.items():
        migrated.database.sql(f"CREATE DATABASE {copy} TEMPLATE {name} OWNER equitune")
    migrated.database.sql("UPDATE alembic_version SET version_num = '1bd49d398cd23'", database="old")
    (container,) = migrated.deployment["containers"]
    own = migrated.secrets["mlflow-auth-config", "basic_auth.ini"]
    changed: dict[str, dict[str, Any]] = {
        "nobody": {"MLFLOW_AUTH_ADMIN_PASSWORD": None},
        "old": {"MLFLOW_BACKEND_STORE_URI": migrated.address("old")},
    }
    migrated.secrets["mlflow-auth-config", "basic_auth.ini"] = migrated.users_file("nobody")
    begun = {case: migrated.start(migrated.deployment, container, case, **changes) for case, changes in changed.items()}
    ends = {case: (process.wait(180), migrated.said(case)) for case, process in begun.items()}
    migrated.secrets["mlflow-auth-config", "basic_auth.ini"] = own
    return ends


@pytest.fixture(scope="module")
def mlflow(migrated: Services) -> Iterator[Services]:
    """MLflow's server as its Deployment starts it, with the user whose name the driver has, and a stranger."""
    process = migrated.start(migrated.deployment, migrated.deployment["containers"][0], "mlflow")
    wait_until(lambda: answers(f"{migrated.url}/health"), 120, lambda: migrated.said("mlflow"))
    for user in (migrated.user, STRANGER):
        migrated.add_user(user)
    yield migrated
    process.terminate()
    assert process.wait(60) == 0, migrated.said("mlflow")


STRANGER = "stranger:has-a-password-too"


@pytest.fixture(scope="module")
def run(mlflow: Services) -> tuple[str, str]:
    """A run of the driver's, and the place of its artefacts."""
    _, made = mlflow.post(mlflow.user, "/api/2.0/mlflow/experiments/create", name="own")
    _, found = mlflow.post(mlflow.user, "/api/2.0/mlflow/runs/create", experiment_id=made["experiment_id"])
    info = found["run"]["info"]
    return info["run_id"], info["artifact_uri"].removeprefix("mlflow-artifacts:")


def test_a_migration_may_be_made_again(migrated: Services) -> None:
    assert "waiting for the migration job" in migrated.said("waiting")
    (container,) = migrated.migration["containers"]
    done = migrated.run(migrated.migration, container)
    assert done.returncode == 0, done.stdout


def test_a_server_without_a_password_for_its_admin_does_not_start(refused: dict[str, tuple[int, str]]) -> None:
    code, said = refused["nobody"]
    assert code not in (0, None)
    assert "MLflow ships no default admin password" in said


def test_a_server_on_an_old_schema_does_not_start(refused: dict[str, tuple[int, str]]) -> None:
    code, said = refused["old"]
    assert code not in (0, None)
    assert "out-of-date database schema" in said


@pytest.mark.parametrize("user", [None, "nobody:nothing"])
def test_no_route_answers_who_is_no_user(user: str | None, mlflow: Services) -> None:
    answered = {}
    for route in CLOSED:
        method, path = route.split()
        answered[route] = answer(mlflow.url + path, user, data=None if method == "GET" else b"{}", method=method)[0]
    assert {route: status for route, status in answered.items() if status != 401} == {}
    assert {path: answer(mlflow.url + path, user)[0] for path in OPEN} == dict.fromkeys(OPEN, 200)


def test_users_are_let_in_with_their_password(mlflow: Services) -> None:
    assert answer(f"{mlflow.url}/", "admin:wrong")[0] == 401
    for user in (mlflow.admin, mlflow.user):
        assert mlflow.post(user, "/api/2.0/mlflow/experiments/search", max_results=1)[0] == 200
        assert answer(f"{mlflow.url}/", user)[0] == 200


@pytest.mark.parametrize("port", ["", ":5000"])
@pytest.mark.parametrize(
    "host", ["mlflow", "mlflow.equitune", "mlflow.equitune.svc", "mlflow.equitune.svc.cluster.local"]
)
def test_its_own_names_are_hosts(host: str, port: str, mlflow: Services) -> None:
    assert answer(f"{mlflow.url}/", mlflow.admin, headers={"Host": host + port})[0] == 200


@pytest.mark.parametrize("host", ["evil.example.com", "evil.localhost:5000", "mlflow:5001", "10.0.0.7:5000"])
def test_a_foreign_host_is_refused(host: str, mlflow: Services) -> None:
    """A page whose name was rebound to the server's address (DNS rebinding) brings its own name along."""
    assert answer(f"{mlflow.url}/", mlflow.admin, headers={"Host": host})[0] == 403
    own = {"Origin": f"http://{host}"}
    assert (
        answer(f"{mlflow.url}/api/2.0/mlflow/runs/create", mlflow.admin, headers=own, data=b"{}", method="POST")[0]
        == 403
    )


@pytest.mark.parametrize("path", OUT)
def test_no_artefact_lies_outside_its_place(path: str, mlflow: Services, run: tuple[str, str]) -> None:
    run_id, place = run
    for method in ("GET", "PUT", "DELETE"):
        data = b"evil" if method == "PUT" else None
        assert answer(f"{mlflow.url}{ARTEFACTS}{place}/{path}", mlflow.admin, data=data, method=method)[0] == 400
    assert answer(f"{mlflow.url}/get-artifact?path={path}&run_uuid={run_id}", mlflow.admin)[0] == 400


def test_the_servers_own_files_are_no_artefacts(mlflow: Services) -> None:
    """A user may name a folder of the server as an experiment's place; what lies in it stays unread."""
    secret = mlflow.folder / "volumes" / "auth"
    assert "password" not in (secret / "basic_auth.ini").name
    status, made = mlflow.post(
        mlflow.user, "/api/2.0/mlflow/experiments/create", name="local", artifact_location=secret.as_uri()
    )
    assert status == 200
    _, found = mlflow.post(mlflow.user, "/api/2.0/mlflow/runs/create", experiment_id=made["experiment_id"])
    run_id = found["run"]["info"]["run_id"]
    for path in ("basic_auth.ini", "../../basic_auth.ini", f"{secret}/basic_auth.ini"):
        status, body = answer(f"{mlflow.url}/get-artifact?path={path}&run_uuid={run_id}", mlflow.user)
        assert status != 200
        assert mlflow.secrets["dev-backends", "postgres-password"].encode() not in body
    source = f"{secret.as_uri()}/basic_auth.ini"
    mlflow.post(mlflow.user, "/api/2.0/mlflow/registered-models/create", name="local")
    assert mlflow.post(mlflow.user, "/api/2.0/mlflow/model-versions/create", name="local", source=source)[0] == 400


def test_a_client_without_keys_writes_to_the_bucket_and_reads(
    mlflow: Services, run: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3
    from mlflow import MlflowClient

    given = mlflow.driver()
    assert not [name for name in given if name.startswith("AWS_") or "S3" in name]
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, given[name])
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "MLFLOW_S3_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "answer.txt").write_text("42")
    client, (run_id, place) = MlflowClient(mlflow.url), run
    client.log_artifact(run_id, str(tmp_path / "answer.txt"))
    (tmp_path / "back").mkdir()
    back = client.download_artifacts(run_id, "answer.txt", str(tmp_path / "back"))
    assert Path(back).read_text() == "42"
    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
    stored = boto3.client("s3", endpoint_url=mlflow.s3, **keys).get_object(
        Bucket="mlflow", Key=f"artifacts{place}/answer.txt"
    )
    assert stored["Body"].read() == b"42"


def test_a_user_sees_no_experiment_of_another(mlflow: Services, run: tuple[str, str]) -> None:
    run_id, place = run
    for path in (
        "experiments/get-by-name?experiment_name=own",
        f"runs/get?run_id={run_id}",
        f"artifacts/list?run_id={run_id}",
    ):
        assert answer(f"{mlflow.url}/api/2.0/mlflow/{path}", STRANGER)[0] == 403
        assert answer(f"{mlflow.url}/api/2.0/mlflow/{path}", mlflow.user)[0] == 200
    for method in ("GET", "PUT", "DELETE"):
        data = b"evil" if method == "PUT" else None
        assert answer(f"{mlflow.url}{ARTEFACTS}{place}/a.txt", STRANGER, data=data, method=method)[0] == 403
    found = mlflow.post(STRANGER, "/api/2.0/mlflow/experiments/search", max_results=100)
    assert found == (200, {})


def test_redis_keeps_what_it_was_told_and_answers_nobody_without_the_password(tmp_path: Path) -> None:
    require("redis")
    place = Place(tmp_path, rendered("dev"))
    pod, port = place.template("StatefulSet", "redis"), free_port()
    (container,) = pod["containers"]
    place.stands_for |= {"bind * -::*": f"bind {LOOPBACK}\nport {port}", "redis-cli": f"redis-cli -p {port}"}
    probe = {**container, "command": container["readinessProbe"]["exec"]["command"], "args": []}
    try:
        for expected in (b"$-1", b"$5\r\nworld"):
            process = place.start(pod, container, "redis")
            wait_until(lambda: place.run(pod, probe).returncode == 0, 20, lambda: place.said("redis"))
            with socket.create_connection((LOOPBACK, port), 5) as stranger:
                assert asked(stranger, "GET hello").startswith(b"-NOAUTH")
                assert asked(stranger, "AUTH wrong").startswith(b"-WRONGPASS")
                assert asked(stranger, f"AUTH {place.secrets['redis', 'password']}") == b"+OK\r\n"
                assert asked(stranger, "GET hello").startswith(expected)
                assert asked(stranger, "SET hello world") == b"+OK\r\n"
                assert asked(stranger, "CONFIG GET maxmemory-policy").endswith(b"noeviction\r\n")
            process.terminate()
            assert process.wait(20) == 0, place.said("redis")
    finally:
        place.end()
    assert place.secrets["redis", "password"] not in " ".join(place.command(pod, container)) + place.said("redis")


def asked(connection: socket.socket, line: str) -> bytes:
    connection.sendall(line.encode() + b"\r\n")
    return connection.recv(4096)

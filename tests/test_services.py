"""The services of deploy/, run as their manifests say on real PostgreSQL, an S3 server, MLflow and Ray: who gets in,
who does not, and what a client needs. Slow.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos import marked, trial_of
from postgres import server
from services import LOOPBACK, Nodes, Services, answer, answers, free_port, wait_until
from test_chaos import require_whole

from equitune.records.folder import StudyFolder

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
COPIES = {"nobody": "mlflow_auth", "old": "mlflow"}  # for servers that must not start
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
            for copy, name in COPIES.items():  # now, before a server reads there
                database.sql(f"CREATE DATABASE {copy} TEMPLATE {name} OWNER equitune")
            database.sql("UPDATE alembic_version SET version_num = '1bd49d398cd23'", database="old")
            assert making.wait(60) == 0, services.said("bucket")
            assert waiting.wait(60) == 0, services.said("waiting")
            yield services
        finally:
            services.end()
            s3.stop()


@pytest.fixture(scope="module")
def refused(migrated: Services) -> dict[str, tuple[int, str]]:
    """How servers end that must not start: with users but no admin's password; on a schema of another version."""
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


STUDY = """\
study: small
data: {name: digits, limit: 200}
model: {name: resnet, depth: 8, width: {int: [2, 4]}}
training: {epochs: 60, batch_size: 32}
measures: [{name: equivariance, most_images: 32}]
objectives: {accuracy: maximize, translation_error: minimize}
search: {sampler: random, trials: 4, seed: 3}
"""


@pytest.fixture(scope="module")
def nodes(mlflow: Services) -> Iterator[Nodes]:
    """Ray's head, which carries no work, and two nodes that take drivers and trials."""
    started = Nodes(mlflow)
    try:
        started.start_head()
        for _ in range(2):
            started.start_worker(cpus=2)
        wait_until(lambda: started.get("/nodes?view=summary", started.token)[1].count(b'"ALIVE"') == 3, 60)
        yield started
    finally:
        started.end()


def test_only_the_token_opens_rays_routes(nodes: Nodes) -> None:
    for path in ("/api/version", "/api/jobs/", "/nodes?view=summary", "/api/v0/tasks", "/logical/actors", "/events"):
        assert [nodes.get(path, token)[0] for token in (None, "wrong")] == [401, 403], path
    for path in ("/api/version", "/api/jobs/", "/nodes?view=summary"):
        assert nodes.get(path, nodes.token)[0] == 200, path
    for token, status in ((None, 401), ("wrong", 403)):
        assert nodes.get("/api/jobs/", token, entrypoint="touch /tmp/eqT-entered")[0] == status
    assert [nodes.get(path)[0] for path in ("/", "/api/gcs_healthz")] == [200, 200]  # a static page; no data
    assert not Path("/tmp/eqT-entered").exists()


def test_a_study_through_all_services_survives_a_lost_node_and_no_secret_is_written(
    nodes: Nodes, mlflow: Services
) -> None:
    given = mlflow.driver()
    root = Path(given["EQUITUNE_ROOT"])
    (root / "small.yaml").write_text(STUDY)
    program = f"{Path(sys.executable).parent}/equitune search {root}/small.yaml --address auto --no-register"
    asked = {"entrypoint_num_cpus": 1, "entrypoint_resources": {"driver": 1}, "submission_id": "small"}
    assert nodes.get("/api/jobs/", nodes.token, entrypoint=program, **asked)[0] == 200

    def status() -> str:
        return str(json.loads(nodes.get("/api/jobs/small", nodes.token)[1])["status"])

    def log() -> str:
        return nodes.get("/api/jobs/small/logs", nodes.token)[1].decode() + mlflow.said("ray")

    def training(mark: str) -> bool:
        return any(trial_of(pid) is not None for pid in marked(mark))

    folder = StudyFolder(root / "small")
    wait_until(lambda: all(map(training, nodes.marks[1:])), 120, log)
    drives = {mark: any(" search " in command for command in marked(mark).values()) for mark in nodes.marks[1:]}
    assert sorted(drives.values()) == [False, True]
    commands = " ".join(command for mark in nodes.marks for command in marked(mark).values())
    (lost,) = [mark for mark, has_driver in drives.items() if not has_driver]
    nodes.lose(lost)
    wait_until(lambda: status() not in ("PENDING", "RUNNING"), 240, log)
    assert status() == "SUCCEEDED", log()
    require_whole(folder, 4, given["EQUITUNE_STORAGE"], epochs=60)

    _, found = mlflow.post(mlflow.user, "/api/2.0/mlflow/experiments/search", max_results=100)
    (own,) = [each["experiment_id"] for each in found["experiments"] if each["name"] == "small"]
    _, found = mlflow.post(mlflow.user, "/api/2.0/mlflow/runs/search", experiment_ids=[own])
    assert [each["info"]["status"] for each in found["runs"]] == ["FINISHED"] * 5  # four trials and the study

    files = [*folder.path.rglob("*"), *mlflow.folder.glob("*.log"), *nodes.logs()]
    written = {str(path): path.read_bytes() for path in files if path.is_file()}
    written |= {
        database: mlflow.database.everything(database).encode() for database in ("mlflow", "mlflow_auth", "optuna")
    }
    written["command lines"] = commands.encode()
    assert b"small" in written["mlflow"] + written["optuna"], "the searched text is there"
    secrets = {name: value.encode() for name, value in mlflow.secrets.items() if value != "equitune"}
    assert [(name, where) for name, value in secrets.items() for where, text in written.items() if value in text] == []

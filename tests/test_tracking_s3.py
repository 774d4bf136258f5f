"""Artifacts on S3, against a server on loopback that speaks like it: written directly, and through MLflow's server."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from invented import invent
from services import free_port
from test_registry import invent_networks

from equitune.config.study import StudySpec
from equitune.errors import UserError
from equitune.measuring.servable import loader
from equitune.report.front import write_front
from equitune.report.profile import write_profile
from equitune.tracking.projector import sync
from equitune.tracking.registry import register_front

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:datetime.datetime.utc:DeprecationWarning"),
]

BUCKET = "studies"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of an S3 server that holds an empty bucket; what MLflow reads of the environment points there."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", free_port(), verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "MLFLOW_S3_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    urllib.request.urlopen(
        f"http://{host}:{port}/moto-api/reset", data=b""
    ).close()  # servers of a process share it all
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
    client.create_bucket(Bucket=BUCKET)
    yield client
    server.stop()


def keys(bucket: Any) -> list[str]:
    return [item["Key"] for item in bucket.list_objects_v2(Bucket=BUCKET).get("Contents", [])]


def named(bucket: Any, end: str) -> int:
    return sum(key.endswith(end) for key in keys(bucket))


def test_artifacts_go_to_s3(
    tmp_path: Path, small_spec: StudySpec, store: str, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_DEFAULT_ARTIFACT_ROOT", f"s3://{BUCKET}/lab")
    folder = invent_networks(tmp_path / "small", small_spec, 2)
    sync(folder, store, write_front, write_profile)
    register_front(folder, store, loader(folder))
    assert named(bucket, "front.html") == 1
    assert named(bucket, "profile.json") == 2
    assert named(bucket, "model.pt2") == 2
    assert all(key.startswith("lab/small/") for key in keys(bucket))
    assert not (tmp_path / "mlartifacts").exists()
    before = keys(bucket)
    sync(folder, store, write_front, write_profile)
    register_front(folder, store, loader(folder))
    assert keys(bucket) == before
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert mlflow.pytorch.load_model("models:/small@best_accuracy") is not None


def test_a_bucket_that_is_not_there_is_said(
    tmp_path: Path, small_spec: StudySpec, store: str, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_DEFAULT_ARTIFACT_ROOT", "s3://other/lab")
    folder = invent(tmp_path / "small", small_spec, 1)
    with pytest.raises(UserError, match="cannot be written: .*NoSuchBucket"):
        sync(folder, store, write_front, write_profile)


def test_a_server_in_front_of_s3(tmp_path: Path, small_spec: StudySpec, store: str, bucket: Any) -> None:
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--port", str(port)]
    command += ["--artifacts-destination", f"s3://{BUCKET}/lab", "--workers", "1"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    server = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    uri = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{uri}/health").close()
                break
            except OSError:
                assert server.poll() is None, "the server ended"
                time.sleep(0.2)
        folder = invent_networks(tmp_path / "small", small_spec, 2)
        for _ in range(2):
            sync(folder, uri, write_front, write_profile)
            register_front(folder, uri, loader(folder))
        assert named(bucket, "front.html") == 1
        assert named(bucket, "model.pt2") == 2
        from mlflow import MlflowClient

        client = MlflowClient(uri)
        assert len(client.search_model_versions("name = 'small'")) == 2
        place = client.get_experiment_by_name("small")
        assert place is not None
        assert len(client.search_runs([place.experiment_id], "tags.equitune.front = 'true'")) == 2
    finally:
        server.terminate()
        server.wait(30)

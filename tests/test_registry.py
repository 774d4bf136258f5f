"""The models of a front in MLflow's registry: real networks, loaded and served as MLflow's users do."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from invented import add_trial, invent
from safetensors.torch import save_file

from equitune.config.data_shape import DataShape
from equitune.config.study import StudySpec
from equitune.errors import UserError
from equitune.measuring import servable
from equitune.measuring.servable import Servable, loader
from equitune.networks.build import initial_model
from equitune.records.folder import StudyFolder
from equitune.records.reader import StudyReader
from equitune.report.front import write_front
from equitune.report.profile import write_profile
from equitune.tracking.projector import Projector
from equitune.tracking.registry import register_front

pytestmark = pytest.mark.slow

SHAPE = (1, 12, 12)


def invent_networks(path: Path, spec: StudySpec, num_trials: int) -> StudyFolder:
    """A study whose trials have real networks; all of them are on the front."""
    folder = invent(path, spec, num_trials)
    for trial in StudyReader(folder).read().trials:
        give_weights(folder, trial.number)
    return folder


def give_weights(folder: StudyFolder, number: int) -> None:
    trial = StudyReader(folder).read().trials[number]
    model = initial_model(trial.config, DataShape(SHAPE, 10))
    save_file({name: weight.contiguous() for name, weight in model.state_dict().items()}, folder.trial(number).weights)


def versions(uri: str) -> dict[str, Any]:
    """The versions of the study's model by trial."""
    from mlflow import MlflowClient

    return {v.tags["equitune.trial"]: v for v in MlflowClient(uri).search_model_versions("name = 'small'")}


@pytest.fixture
def no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow refuses every stored model that could run code."""
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")


@pytest.mark.usefixtures("no_pickle")
def test_the_front_is_registered_once_and_loads(
    tmp_path: Path, small_spec: StudySpec, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    from mlflow import MlflowClient

    folder, said = invent_networks(tmp_path / "small", small_spec, 3), []
    Projector(folder, store, write_front, write_profile).step()
    assert register_front(folder, store, loader(folder), said.append) == 3
    assert said == ["registering 3 models of the front in MLflow"]
    first, client = versions(store), MlflowClient(store)
    assert set(first) == {"0", "1", "2"}
    assert first["2"].tags["equitune.accuracy"] == "0.66"
    assert client.get_registered_model("small").aliases == {
        "best_accuracy": int(first["2"].version),
        "best_translation_error": int(first["0"].version),
    }
    assert register_front(folder, store, loader(folder), said.append) == 0
    assert {number: version.version for number, version in versions(store).items()} == {
        number: version.version for number, version in first.items()
    }
    run = client.get_run(first["2"].run_id)
    assert len(run.outputs.model_outputs) == 1
    models = client.search_logged_models([run.info.experiment_id])
    assert {model.name: {metric.key for metric in model.metrics} for model in models} == {
        f"trial_{number}": {"accuracy", "translation_error"} for number in range(3)
    }
    assert len(client.get_metric_history(run.info.run_id, "accuracy")) == 1

    expected = loader(folder)(StudyReader(folder).read().trials[2])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    model = mlflow.pytorch.load_model("models:/small@best_accuracy")
    with torch.no_grad():
        scores = model(torch.from_numpy(expected.images[:5]))
    assert torch.equal(scores, torch.from_numpy(expected.scores[:5])) or torch.allclose(
        scores, torch.from_numpy(expected.scores[:5]), rtol=1e-5
    )
    about = mlflow.models.get_model_info("models:/small@best_accuracy")
    assert about.signature.inputs.to_dict()[0]["tensor-spec"] == {"dtype": "float32", "shape": (-1, *SHAPE)}
    assert about.saved_input_example_info["type"] == "ndarray"
    assert not list((tmp_path / "mlartifacts").rglob("*.pth"))  # no pickle


def test_a_member_that_left_the_front_is_marked(tmp_path: Path, small_spec: StudySpec, store: str) -> None:
    folder = invent_networks(tmp_path / "small", small_spec, 2)
    register_front(folder, store, loader(folder))
    add_trial(folder, small_spec, 2)
    give_weights(folder, 2)
    result = json.loads(folder.trial(2).result.read_text())
    result["metrics"]["translation_error"] |= {"value": 0.0}
    folder.trial(2).result.write_text(json.dumps(result))
    assert register_front(folder, store, loader(folder)) == 1
    found = versions(store)
    assert {number: version.tags["equitune.front"] for number, version in found.items()} == {
        "0": "false",
        "1": "false",
        "2": "true",
    }


def test_a_call_that_died_is_gone_on_from(
    tmp_path: Path, small_spec: StudySpec, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    folder = invent_networks(tmp_path / "small", small_spec, 2)
    create, finalize = MlflowClient.create_model_version, MlflowClient.finalize_logged_model

    def gone(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("gone")

    for call in ("finalize_logged_model", "create_model_version"):  # a torn model, and a whole one
        monkeypatch.setattr(MlflowClient, call, gone)
        with pytest.raises(UserError, match="registry of MLflow .* cannot be written: gone"):
            register_front(folder, store, loader(folder))
        monkeypatch.setattr(MlflowClient, "create_model_version", create)
        monkeypatch.setattr(MlflowClient, "finalize_logged_model", finalize)
    assert register_front(folder, store, loader(folder)) == 2
    client = MlflowClient(store)
    assert len(client.search_logged_models([client.get_experiment_by_name("small").experiment_id])) == 2  # type: ignore[union-attr]


def test_a_model_that_gives_other_scores_is_not_registered(tmp_path: Path, small_spec: StudySpec, store: str) -> None:
    folder, said = invent_networks(tmp_path / "small", small_spec, 2), []
    load = loader(folder)

    def broken(trial: Any) -> Servable:
        network = load(trial)
        return Servable(network.model, network.images, network.scores + (trial.number == 1))

    assert register_front(folder, store, broken, said.append) == 1
    assert set(versions(store)) == {"0"}
    assert "the model of trial 1 is not registered: the exported model's scores differ by" in said[1]


def test_missing_weights_and_missing_data_are_said(
    tmp_path: Path, small_spec: StudySpec, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, said = invent_networks(tmp_path / "small", small_spec, 2), []
    folder.trial(1).weights.unlink()
    assert register_front(folder, store, loader(folder), said.append) == 1
    assert (
        said[1]
        == "the model of trial 1 is not registered: small/1 has no weights: it is COMPLETE; name a trial that is COMPLETE"
    )

    def missing(*_: Any) -> None:
        raise UserError("the data are missing")

    monkeypatch.setattr(servable, "recorded_data", missing)
    said.clear()
    assert register_front(folder, store, loader(folder), said.append) == 0
    assert said[1].endswith("the data are missing")


def test_a_study_without_a_front_registers_nothing(tmp_path: Path, small_spec: StudySpec) -> None:
    folder = invent(tmp_path / "small", small_spec, 2, states={0: "FAILED", 1: "INFEASIBLE"})
    assert register_front(folder, "http://127.0.0.1:9", loader(folder)) == 0  # nobody is asked


@contextmanager
def serving(uri: str, model: str) -> Iterator[str]:
    """`mlflow models serve` on loopback, as a user starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where it looks for its web server
    settings = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    environment = {**os.environ, **settings, "PATH": path}
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        model,
        "--env-manager",
        "local",
        "--port",
        str(port),
    ]
    server = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping").close()
                break
            except OSError:
                assert server.poll() is None, "the server ended"
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


def test_mlflow_serves_the_model(tmp_path: Path, small_spec: StudySpec, store: str) -> None:
    folder = invent_networks(tmp_path / "small", small_spec, 1)
    register_front(folder, store, loader(folder))
    expected = loader(folder)(StudyReader(folder).read().trials[0])
    with serving(store, "models:/small@best_accuracy") as address:
        body = json.dumps({"inputs": expected.images.tolist()}).encode()
        request = urllib.request.Request(f"{address}/invocations", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            scores = np.array(json.load(answer)["predictions"])
    # Numbers travel as decimals of single precision.
    np.testing.assert_allclose(scores, expected.scores, rtol=1e-5, atol=1e-6)

"""MLflow as a projection: a real store, projected from invented studies, again and again, with the store gone between."""

import io
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from invented import add_trial, invent
from rich.console import Console

from equitune.analysis.hypervolume import hypervolume, reference_point
from equitune.analysis.pareto import losses, objective_values
from equitune.config.objectives import Bound
from equitune.config.study import StudySpec
from equitune.errors import UserError
from equitune.records import reader
from equitune.records.folder import StudyFolder, TrialFolder, write_json
from equitune.records.reader import StudyReader, TrialRecord, read_trial
from equitune.report.front import write_front
from equitune.report.profile import write_profile
from equitune.report.terminal import StudyView
from equitune.results.values import Measurement
from equitune.search.study_record import begin
from equitune.tracking import live
from equitune.tracking.live import projecting
from equitune.tracking.projector import Projector, sync
from equitune.tracking.store import connect, default_tracking_uri, flat

LOAD = "system/cpu_utilization_percentage"
pytestmark = pytest.mark.slow  # MLflow makes its tables: seconds


def runs(uri: str, name: str = "small") -> dict[str, Any]:
    """The runs of a study by name."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def artifacts(uri: str, run: Any) -> set[str]:
    from mlflow import MlflowClient

    return {file.path for file in MlflowClient(uri).list_artifacts(run.info.run_id)}


def project(folder: StudyFolder, uri: str) -> Projector:
    made = Projector(folder, uri, write_front, write_profile)
    made.step()
    while made.draw_next():
        pass
    return made


def test_a_study_becomes_one_experiment_with_a_run_a_trial(tmp_path: Path, small_spec: StudySpec, store: str) -> None:
    folder = invent(tmp_path / "small", small_spec, 4, states={1: "FAILED", 2: "INFEASIBLE"}, tested=(3,))
    sync(folder, store, write_front, write_profile)
    found = runs(store)
    assert set(found) == {"small", "trial 0", "trial 1", "trial 2", "trial 3"}
    parent, trial = found["small"], found["trial 3"]
    assert trial.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert trial.data.tags["equitune.state"] == "COMPLETE"
    assert trial.data.tags["equitune.front"] == "true"
    assert trial.data.tags["equitune.torch"] == "2.13"
    assert trial.data.tags["equitune.seed"].isdecimal()
    assert {name: value for name, value in trial.data.tags.items() if ".exact." in name} == {
        "equitune.exact.translation": "exact",
        "equitune.exact.translation_substride": "stages.3: its strides do not follow",
        "equitune.exact.c4": "exact until trained: stem: w is learned",
    }
    assert trial.data.params["model.name"] == "resnet"
    assert trial.data.params["model.width"] == "4"
    assert trial.data.params["augmentation.translate.max_px"] == "2.0"
    assert trial.data.params["measures"] == "equivariance"
    assert not [name for name in trial.data.params if name.startswith(("bounds", "rung"))]
    assert trial.data.metrics["accuracy"] == pytest.approx(0.74)
    assert trial.data.metrics["accuracy_stderr"] == 0.02
    assert trial.data.metrics["translation_error_untrained"] == 0.7
    assert trial.data.metrics["test_accuracy"] == 0.6
    assert artifacts(store, trial) == {
        "config.json",
        "result.json",
        "profile.png",
        "profile.json",
        "weights.safetensors",
    }
    assert artifacts(store, parent) == {"front.png", "front.html", "front.csv"}
    assert {name: run.info.status for name, run in found.items()} == {
        "small": "FINISHED",
        "trial 0": "FINISHED",
        "trial 1": "FAILED",
        "trial 2": "KILLED",
        "trial 3": "FINISHED",
    }
    assert found["trial 1"].data.tags["equitune.reason"] == 'because of <b>"1"</b>'
    assert parent.data.metrics["trials_ended"] == 4


def test_epochs_are_a_curve_against_epochs(tmp_path: Path, small_spec: StudySpec, store: str) -> None:
    from mlflow import MlflowClient

    folder = invent(tmp_path / "small", small_spec, 1)
    project(folder, store)
    history = MlflowClient(store).get_metric_history(runs(store)["trial 0"].info.run_id, "validation_accuracy")
    assert [(point.step, point.value) for point in history] == [(1, 0.51), (2, 0.52)]
    assert history[0].timestamp == 1_700_000_001_000


def test_rungs_are_points_and_a_broken_constraint_is_a_tag(tmp_path: Path, small_spec: StudySpec, store: str) -> None:
    from mlflow import MlflowClient

    constraints = {"accuracy": Bound(at_least=0.55), "parameters": Bound(at_most=1e4)}
    folder = invent(tmp_path / "small", small_spec.model_copy(update={"constraints": constraints}), 2)
    epoch = folder.trial(0).read_epochs()[0]
    folder.trial(0).append_epoch(epoch.model_copy(update={"metrics": {"translation_error": 0.25}}))
    project(folder, store)
    found = runs(store)
    history = MlflowClient(store).get_metric_history(found["trial 0"].info.run_id, "rung_translation_error")
    assert [(point.step, point.value) for point in history] == [(1, 0.25)]
    assert found["trial 0"].data.tags["equitune.violates"] == "accuracy: 0.5 is below at_least 0.55"
    assert "equitune.violates" not in found["trial 1"].data.tags
    assert found["trial 1"].data.tags["equitune.front"] == "true"


def everything(uri: str) -> dict[str, Any]:
    """All that the store holds of a study but when it was written: by run, each point of each metric."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = {}
    for name, run in runs(uri).items():
        points = {
            key: [
                (point.step, point.value, point.timestamp) for point in client.get_metric_history(run.info.run_id, key)
            ]
            for key in run.data.metrics
        }
        files = sorted(artifacts(uri, run))
        found[name] = (
            run.info.run_id,
            run.info.status,
            run.data.params,
            run.data.tags,
            points,
            files,
            run.inputs.to_dictionary(),
        )
    return found


def test_projecting_twice_changes_nothing(tmp_path: Path, small_spec: StudySpec, store: str) -> None:
    folder = invent(tmp_path / "small", small_spec, 3, tested=(2,))
    write_json(folder.study, json.loads(folder.study.read_text()) | {"data_fingerprint": "0123456789abcdef"})
    project(folder, store)
    before = everything(store)
    assert len(before["trial 1"][4]["train_loss"]) == 2
    assert len(before["trial 1"][6]["dataset_inputs"]) == 1
    project(folder, store).step()
    assert everything(store) == before
    follower = Projector(folder, store, write_front, write_profile, everything=False)
    follower.step()
    assert follower.draw_next()  # the study's own pictures
    assert not follower.draw_next()  # the trials' are there
    assert everything(store) == before


def test_the_data_are_a_data_set_of_mlflow(tmp_path: Path, small_spec: StudySpec, store: str) -> None:
    import mlflow.data

    folder = invent(tmp_path / "small", small_spec, 1)
    about = {"data_fingerprint": "0123456789abcdef", "image_shape": [1, 16, 16]}
    write_json(folder.study, json.loads(folder.study.read_text()) | about)
    project(folder, store)
    (given,) = runs(store)["trial 0"].inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("digits", "0123456789abcdef")
    assert json.loads(given.dataset.profile) == {"num_rows": 120, "train": 80, "validation": 20, "test": 20}
    assert '"shape": [-1, 1, 16, 16]' in json.loads(given.dataset.schema)["mlflow_tensorspec"]["features"].replace(
        "\\", ""
    )
    assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "training")]
    source = mlflow.data.get_source(given.dataset)
    assert json.loads(source.to_dict()["tags"]["equitune"])["limit"] == 200


def test_the_study_shows_how_it_went(tmp_path: Path, small_spec: StudySpec, store: str) -> None:
    from mlflow import MlflowClient

    folder = invent(tmp_path / "small", small_spec, 4, states={1: "FAILED"})
    write_json(folder.study, json.loads(folder.study.read_text()) | {"gpus_of_a_trial": 0.5})
    project(folder, store)
    client, parent = MlflowClient(store), runs(store)["small"].info.run_id

    def curve(name: str) -> list[tuple[int, float]]:
        return [(point.step, point.value) for point in client.get_metric_history(parent, name)]

    assert curve("trials_ended") == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert curve("trials_complete") == [(1, 1), (2, 1), (3, 2), (4, 3)]
    assert [value for _, value in curve("best_accuracy")] == pytest.approx([0.5, 0.5, 0.66, 0.74])
    assert [value for _, value in curve("gpu_hours")] == pytest.approx([k * 2 / 3600 / 2 for k in (1, 2, 3, 4)])
    study = StudyReader(folder).read()
    worst = reference_point(study).losses(study)
    rows = losses([objective_values(study, trial) for trial in study.ended()], study.objectives)
    assert curve("hypervolume")[-1] == (4, pytest.approx(hypervolume(rows, worst)))


def test_the_hypervolume_has_the_reference_that_the_study_gives(
    tmp_path: Path, small_spec: StudySpec, store: str
) -> None:
    from mlflow import MlflowClient

    folder = invent(tmp_path / "small", small_spec, 2)
    given = {"references": {"accuracy": 0.0, "translation_error": 1.0}}
    write_json(folder.study, json.loads(folder.study.read_text()) | given)
    project(folder, store)
    history = MlflowClient(store).get_metric_history(runs(store)["small"].info.run_id, "hypervolume")
    assert history[0].value == pytest.approx(0.5 * (1 - 0.1))  # one box


def test_steps_that_were_sent_stay_as_they_are(tmp_path: Path, small_spec: StudySpec, store: str) -> None:
    from mlflow import MlflowClient

    folder = invent(tmp_path / "small", small_spec, 2)
    project(folder, store)
    early = folder.trial(2)
    add_trial(folder, small_spec, 2)
    lines = early.epochs.read_text().replace("1700000201", "1600000000").replace("1700000202", "1600000001")
    early.epochs.write_text(lines)  # by another machine's clock it ended before the others
    project(folder, store)
    history = MlflowClient(store).get_metric_history(runs(store)["small"].info.run_id, "trials_ended")
    assert [point.step for point in history] == [1, 2, 3]


def test_the_front_can_be_filtered(tmp_path: Path, small_spec: StudySpec, store: str) -> None:
    from mlflow import MlflowClient

    project(invent(tmp_path / "small", small_spec, 4, states={1: "FAILED"}), store)
    client = MlflowClient(store)
    place = [client.get_experiment_by_name("small").experiment_id]  # type: ignore[union-attr]
    for said, numbers in (("true", {"0", "2", "3"}), ("false", {"1"})):
        found = client.search_runs(place, f"tags.equitune.front = '{said}'")
        assert {run.data.tags["equitune.trial"] for run in found} == numbers


def test_the_profile_is_a_table_that_the_ui_shows(
    tmp_path: Path, small_spec: StudySpec, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)  # load_table asks the process's default store
    folder = invent(tmp_path / "small", small_spec, 1)
    project(folder, store)
    run = runs(store)["trial 0"]
    table = MlflowClient(store).load_table(place_of(store), "profile.json", [run.info.run_id])
    assert len(table) == 7
    assert set(table[table["set"] == "lattice"]["layer"]) == {"stem", "stages.0", "output"}
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "profile.json", "type": "table"}]


def place_of(uri: str) -> str:
    from mlflow import MlflowClient

    return str(MlflowClient(uri).get_experiment_by_name("small").experiment_id)  # type: ignore[union-attr]


def test_the_load_of_the_machine_is_logged_when_asked(
    tmp_path: Path, small_spec: StudySpec, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "INTERVAL_S", 0.05)
    monkeypatch.setattr(live, "FIRST_S", 0.0)
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    folder = invent(tmp_path / "small", small_spec, 2, states={1: "RUNNING"})
    folder.driver.write_text("{}")
    os.utime(folder.driver, (time.time() + 600,) * 2)  # a heartbeat that lasts for the test
    said: list[str] = []
    with projecting(folder, store, write_front, write_profile, said.append):
        for _ in range(200):
            if _is_logged(store, LOAD):
                break
            time.sleep(0.2)
    assert runs(store)["small"].data.metrics[LOAD] >= 0
    assert said == []


def test_a_view_and_the_projection_keep_each_trial_once(
    tmp_path: Path, small_spec: StudySpec, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a reader keeps of a trial, its epochs and its profile, is most of what a driver's memory grows by."""
    folder = invent(tmp_path / "small", small_spec, 3)
    read: list[int] = []

    def counted(trial: TrialFolder, *rest: Any) -> TrialRecord:
        read.append(trial.number)
        return read_trial(trial, *rest)

    monkeypatch.setattr(reader, "read_trial", counted)
    view = StudyView(folder, Console(file=io.StringIO()))
    view.say("searching")
    Projector(folder, store, write_front, write_profile, reader=view.reader).step()
    assert read == [0, 1, 2]
    Projector(folder, store, write_front, write_profile).step()  # the broken twin: one of its own
    assert read == [0, 1, 2, 0, 1, 2]


def _is_logged(uri: str, metric: str) -> bool:
    from mlflow import MlflowClient

    if not any(experiment.name == "small" for experiment in MlflowClient(uri).search_experiments()):
        return False
    found = runs(uri)
    return "small" in found and metric in found["small"].data.metrics


def test_values_in_any_script_are_kept(tmp_path: Path, small_spec: StudySpec, store: str) -> None:
    folder = invent(tmp_path / "small", small_spec, 1)
    config = json.loads(folder.trial(0).config.read_text())
    values = {"root": "/daten/Ünïcode '\"<b>数据</b>", "none": None}
    config["data"] |= {"args": values | {"long": "x" * 7000}}
    write_json(folder.trial(0).config, config)
    project(folder, store)
    params = runs(store)["trial 0"].data.params
    assert params["data.root"] == values["root"]
    assert "data.none" not in params
    assert params["data.long"] == "x" * 6000


def test_a_study_that_grows_is_followed(tmp_path: Path, small_spec: StudySpec, store: str) -> None:
    folder = invent(tmp_path / "small", small_spec, 2, states={1: "RUNNING"})
    folder.driver.write_text("{}")
    follower = project(folder, store)
    assert (runs(store)["small"].info.status, runs(store)["trial 1"].info.status) == ("RUNNING", "RUNNING")
    assert runs(store)["trial 0"].data.tags["equitune.front"] == "true"
    for number in (1, 2, 3):
        add_trial(folder, small_spec, number)
    better = {
        "accuracy": Measurement(value=1.0, n=2, split="validation"),
        "translation_error": Measurement(value=0.0, n=2, split="validation"),
    }
    result = json.loads(folder.trial(3).result.read_text())
    write_json(
        folder.trial(3).result,
        {**result, "metrics": {name: metric.model_dump(mode="json") for name, metric in better.items()}},
    )
    follower.step()
    found = runs(store)
    assert found["small"].info.status == "FINISHED"
    assert [found[f"trial {number}"].data.tags["equitune.front"] for number in (0, 3)] == ["false", "true"]


def test_two_studies_of_one_name_do_not_mix(tmp_path: Path, small_spec: StudySpec, store: str) -> None:
    project(invent(tmp_path / "a" / "small", small_spec, 1), store)
    project(invent(tmp_path / "b" / "small", small_spec, 1), store)
    from mlflow import MlflowClient

    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("small")
    assert len(client.search_runs([experiment.experiment_id])) == 4  # type: ignore[union-attr]


def begun_anew(folder: StudyFolder, spec: StudySpec, how: str) -> None:
    """A study whose folder, or all but its trials, is lost while two of its three trials had ended; then begun anew."""
    if how == "folder":
        shutil.rmtree(folder.path)
        invent(folder.path, spec, 3)
    else:
        folder.study.unlink()
        folder.runs.unlink()  # alone it would say which study this was
        begin(folder, spec, None, ())


@pytest.mark.parametrize("how", ["folder", "study.json"])
@pytest.mark.parametrize("has_tag", [True, False])
def test_the_runs_of_a_study_that_is_gone_are_ended_and_marked(
    how: str, has_tag: bool, tmp_path: Path, small_spec: StudySpec, store: str
) -> None:
    from mlflow import MlflowClient

    folder, client = invent(tmp_path / "small", small_spec, 3, states={2: "RUNNING"}), MlflowClient(store)
    project(folder, store)
    old_id, before = _study_id(folder), runs(store)
    if not has_tag:  # of a version that did not know it
        client.delete_tag(before["small"].info.run_id, "equitune.folder")
    begun_anew(folder, small_spec, how)
    for _ in range(2):  # the second time there is nothing left to end
        sync(folder, store, write_front, write_profile)
        found = runs(store)
        assert len(found) == 8
        for name, run in before.items():
            gone = found[f"{name} (superseded)"]
            assert gone.info.run_id == run.info.run_id
            assert gone.data.tags["equitune.study_id"] == old_id
            assert gone.data.tags["equitune.superseded_by"] == _study_id(folder) != old_id
            was_running = run.info.status == "RUNNING"
            assert gone.info.status == ("KILLED" if was_running else run.info.status)
            assert ("has begun anew" in gone.data.tags.get("equitune.reason", "")) == was_running
    assert _shown(client, "tags.equitune.superseded_by IS NULL") == ["small", "trial 0", "trial 1", "trial 2"]
    marked = _shown(client, "tags.equitune.front = 'true'")
    assert marked
    assert not [name for name in marked if "superseded" in name]


def test_the_runs_of_a_study_elsewhere_are_left_alone(tmp_path: Path, small_spec: StudySpec, store: str) -> None:
    """Of the same name, in a store that both share: it may be alive. One of a version without the tag, too."""
    from mlflow import MlflowClient

    client = MlflowClient(store)
    project(invent(tmp_path / "a" / "small", small_spec, 1, states={0: "RUNNING"}), store)
    client.delete_tag(runs(store)["small"].info.run_id, "equitune.folder")
    project(invent(tmp_path / "b" / "small", small_spec, 1, states={0: "RUNNING"}), store)
    project(invent(tmp_path / "c" / "small", small_spec, 1), store)
    assert len(_shown(client, "tags.equitune.superseded_by IS NULL")) == 6
    assert len(_shown(client, "attributes.status = 'RUNNING' and tags.equitune.kind = 'trial'")) == 2


def _study_id(folder: StudyFolder) -> str:
    return str(json.loads(folder.study.read_text())["id"])


def _shown(client: Any, condition: str) -> list[str]:
    experiment = client.get_experiment_by_name("small")
    return sorted(run.info.run_name for run in client.search_runs([experiment.experiment_id], condition))


def test_more_values_than_a_batch_holds(tmp_path: Path, small_spec: StudySpec, store: str) -> None:
    folder = invent(tmp_path / "small", small_spec, 1, states={0: "RUNNING"})
    epoch = folder.trial(0).read_epochs()[0]
    for number in range(1, 501):
        folder.trial(0).append_epoch(epoch.model_copy(update={"epoch": number, "time": 1.7e9 + number}))
    project(folder, store)
    from mlflow import MlflowClient

    assert len(MlflowClient(store).get_metric_history(runs(store)["trial 0"].info.run_id, "lr")) == 500


def test_a_store_that_comes_back_gets_everything(
    tmp_path: Path, small_spec: StudySpec, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = invent(tmp_path / "small", small_spec, 3)
    follower = Projector(folder, store, write_front, write_profile)
    log, calls = follower.store.log, 0

    def unreliable(*args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls in (2, 3, 5):
            raise ConnectionError("gone")
        log(*args, **kwargs)

    monkeypatch.setattr(follower.store, "log", unreliable)
    for _ in range(3):
        with pytest.raises(ConnectionError):
            follower.step()
    follower.step()
    project(invent(tmp_path / "other" / "small", small_spec, 3), store)
    found = sorted((run.info.run_name, json.dumps(run.data.metrics, sort_keys=True)) for run in _all(store))
    assert found[::2] == found[1::2]


def _all(uri: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("small")
    return list(client.search_runs([experiment.experiment_id]))  # type: ignore[union-attr]


def test_a_dead_store_is_warned_of_once_and_named_at_the_end(
    tmp_path: Path, small_spec: StudySpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "INTERVAL_S", 0.05)
    folder, said = invent(tmp_path / "small", small_spec, 1), []
    with projecting(folder, "http://127.0.0.1:9", write_front, write_profile, said.append):
        for _ in range(100):
            if said:
                break
            time.sleep(0.1)
    assert len(said) == 2
    assert "MLflow at http://127.0.0.1:9 does not answer" in said[0]
    assert "equitune mlflow sync small" in said[1]
    with pytest.raises(UserError, match="MLflow at http://127.0.0.1:9 cannot be written"):
        sync(folder, "http://127.0.0.1:9", write_front, write_profile)


def test_a_configuration_as_parameters() -> None:
    config = {
        "study": "s",
        "model": {"name": "resnet", "args": {"width": 8}},
        "prior": None,
        "augmentation": [{"name": "hflip", "args": {"probability": 0.5}}],
        "training": {"lr": 0.1},
        "data": {"name": "digits", "args": {"size": 16}, "limit": None},
        "rungs": [1, 3],
        "rung_metrics": ["accuracy"],
    }
    assert flat(config, without=("study",)) == {
        "model.name": "resnet",
        "model.width": "8",
        "augmentation": "hflip",
        "augmentation.hflip.probability": "0.5",
        "training.lr": "0.1",
        "data.name": "digits",
        "data.size": "16",
        "rungs": "1, 3",
        "rung_metrics": "accuracy",
    }


def test_a_store_is_made_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search may be killed while MLflow makes its tables, and MLflow cannot go on with half of them."""
    import mlflow

    uri = default_tracking_uri(tmp_path)

    class Killed:
        def __init__(self, tracking_uri: str) -> None:
            self.path = Path(tracking_uri.removeprefix("sqlite:///"))

        def search_experiments(self) -> None:
            self.path.write_bytes(b"half of the tables")
            raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(mlflow, "MlflowClient", Killed)
        with pytest.raises(KeyboardInterrupt):
            connect(uri)
    assert list(tmp_path.iterdir()) == []
    assert [each.name for each in connect(uri).search_experiments()] == ["Default"]
    before = (tmp_path / "mlflow.db").stat().st_ino
    connect(uri)
    assert (tmp_path / "mlflow.db").stat().st_ino == before
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]

"""The MLflow client, as the projector needs it: find or make a run, log in batches, add files."""

import itertools
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from equitune.errors import without_passwords
from equitune.records.durable import sync_file, sync_folder
from equitune.records.folder import StudyFolder
from equitune.records.on_disk import fetched
from equitune.records.place import Place
from equitune.records.reader import StudyRecord, TrialRecord
from equitune.results.values import Measurement
from equitune.tracking.dataset import dataset_input
from equitune.tracking.orphans import FOLDER, FRONT, orphans, place_of_study, supersede

MOST_METRICS, MOST_PARAMS, MOST_TAGS = 1000, 100, 100  # a batch, as MLflow's REST API allows
FILES = "equitune.files"  # tag of a trial's run: are its files there? FRONT: is it on the front?
SQLITE = "sqlite:///"
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
NAMED = ("params", "number", "seed", "study")  # what a trial's run says elsewhere
OF_THE_STUDY = ("bounds", "rungs", "rung_images", "rung_metrics")  # what is the same in every trial of it


@dataclass(frozen=True)
class Point:
    """A value of a metric at a step."""

    name: str
    value: float
    time_s: float
    step: int


def default_tracking_uri(root: Place) -> str:
    """Return a SQLite file beside the studies; in the working directory, where these lie in an object store."""
    return f"sqlite:///{_on_disk(root) / 'mlflow.db'}"


def _on_disk(root: Place) -> Path:
    return root if isinstance(root, Path) else Path.cwd()


class Store:
    """One study's runs in a tracking store: a parent, and a child for each trial. Opened at first use."""

    def __init__(self, tracking_uri: str, folder: StudyFolder) -> None:
        self.tracking_uri = tracking_uri
        self._folder = folder
        self._client: Any = None
        self._experiment = ""
        self._parent = ""
        self._runs: dict[int, str] = {}  # trial -> run id
        self._status: dict[str, str] = {}  # run id -> status as last set
        self.fronts: dict[int, str] = {}  # trial -> what the tag FRONT says
        self.with_files: set[int] = set()  # the trials whose files are there

    @property
    def client(self) -> Any:
        """MLflow's client, which may not have asked the store anything yet."""
        if self._client is None:
            self._client = connect(self.tracking_uri)
        return self._client

    @property
    def experiment(self) -> str:
        return self._experiment

    def open(self, study: StudyRecord) -> None:
        """Find the study's runs and how far they are, or make its experiment and its parent run.

        Ends the runs of a study that lay in this folder before.
        """
        if self._parent:
            return
        self._experiment = experiment(self.client, study.name, self._folder.path.parent)
        parents = self._search(f"tags.`equitune.study_id` = '{study.info['id']}' and tags.`equitune.kind` = 'study'")
        tags = {
            "equitune.kind": "study",
            "equitune.study_id": study.info["id"],
            FOLDER: place_of_study(self._folder),
            "mlflow.runName": study.name,
            "mlflow.source.name": f"equitune search {study.info.get('source') or ''}".strip(),
            "mlflow.source.type": "LOCAL",
            "mlflow.note.content": _question(self._folder.searchspace),
            **{f"equitune.{name}": value for name, value in study.info["provenance"].items()},
        }
        created_ms = int(study.info["created"] * 1000)
        parent = parents[0].info.run_id if parents else self._create(tags, created_ms, study.name)
        for run in self._search(f"tags.`mlflow.parentRunId` = '{parent}'"):
            number = int(run.data.tags["equitune.trial"])
            self._runs[number], self._status[run.info.run_id] = run.info.run_id, run.info.status
            self.fronts[number] = run.data.tags.get(FRONT, "")
            self.with_files |= {number} if FILES in run.data.tags else set()
        if parents and parents[0].data.tags.get(FOLDER) != tags[FOLDER]:
            self.client.set_tag(parent, FOLDER, tags[FOLDER])
        is_own_store = self.tracking_uri == default_tracking_uri(self._folder.path.parent)
        others = self._search(f"tags.`equitune.study_id` != '{study.info['id']}'")
        for run in orphans(others, study.info["id"], tags[FOLDER], is_own_store):
            supersede(self.client, run, study.info["id"])
        self._parent = parent

    def places(self) -> dict[str, Any]:
        """Where the study's runs are found: of a server its address, without what it takes to log in."""
        parts = urlsplit(self.tracking_uri)
        is_server = parts.scheme in ("http", "https") and parts.hostname is not None
        ui = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/") if is_server else None
        return {
            "ui": ui,
            "experiment": self._experiment,
            "runs": {str(trial): run for trial, run in self._runs.items()},
        }

    def steps_sent(self) -> int:
        """How many steps of its progress the study's run has."""
        history = self.client.get_metric_history(self._parent, "trials_ended")
        return max((point.step for point in history), default=0)

    def ensure_run(self, study: StudyRecord, trial: TrialRecord) -> None:
        """Make a trial's run with its parameters and its data, if it has none yet."""
        if trial.number in self._runs:
            return
        tags = {
            "equitune.kind": "trial",
            "equitune.trial": str(trial.number),
            "equitune.state": trial.state,
            "equitune.seed": str(trial.config.seed),
            "equitune.study_id": study.info["id"],
            "mlflow.parentRunId": self._parent,
        }
        begun = trial.epochs[0].time - trial.epochs[0].train_s if trial.epochs else trial.started
        begun_ms = int(min(begun, trial.started) * 1000)  # a copy of a folder is younger than what lies in it
        run_id = self._create(tags, begun_ms, f"trial {trial.number}")
        self._runs[trial.number] = run_id
        log_batch(self.client, run_id, params=params_of(trial))
        if data := dataset_input(study, trial):
            self.client.log_inputs(run_id, [data])

    def log(self, trial: int | None, *, points: Sequence[Point] = (), tags: dict[str, str] | None = None) -> None:
        """Log to a trial's run, or to the study's where `trial` is None."""
        log_batch(self.client, self.run_id(trial), points=points, tags=tags)

    def add_file(self, trial: int | None, path: Place) -> None:
        """Add a file to a trial's run, or to the study's; one of that name is replaced."""
        with fetched(path) as local:
            self.client.log_artifact(self.run_id(trial), str(local))

    def add_table(self, trial: int, path: Path) -> None:
        """Add a file that holds a table as `mlflow.log_table` writes it, which would add to what is there."""
        self.add_file(trial, path)
        self.log(trial, tags={"mlflow.loggedArtifacts": json.dumps([{"path": path.name, "type": "table"}])})

    def has_status(self, trial: int, status: str) -> bool:
        return trial in self._runs and self._status.get(self._runs[trial]) == status

    def set_status(self, trial: int | None, status: str, time_s: float | None = None) -> None:
        run_id = self.run_id(trial)
        if self._status.get(run_id) == status:
            return
        if status == "RUNNING":
            self.client.update_run(run_id, status=status)
        else:
            self.client.set_terminated(run_id, status, int(time_s * 1000) if time_s else None)
        self._status[run_id] = status

    def run_id(self, trial: int | None) -> str:
        """Return the id of a trial's run, or of the study's."""
        return self._parent if trial is None else self._runs[trial]

    def _create(self, tags: dict[str, str], time_ms: int, name: str) -> str:
        run = self.client.create_run(self._experiment, start_time=time_ms, tags=tags, run_name=name)
        return str(run.info.run_id)

    def _search(self, condition: str) -> list[Any]:
        found: list[Any] = []
        token = None
        while True:
            page = self.client.search_runs([self._experiment], condition, max_results=1000, page_token=token)
            found += page
            token = page.token
            if not token:
                return found


def connect(tracking_uri: str) -> Any:
    """Return a client of the tracking store; it is not asked anything yet."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")  # its records belong in the study's log
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")  # no code of a stored model is run
    from mlflow import MlflowClient  # more than a second to import

    if tracking_uri.startswith(SQLITE):
        _make_tables(Path(tracking_uri.removeprefix(SQLITE)), MlflowClient)
    return MlflowClient(tracking_uri=tracking_uri)


def _make_tables(path: Path, client: Any) -> None:
    """Make a new SQLite store whole or not at all: MLflow cannot go on with one whose making was cut off.

    Its tables take a second or more, in which a program may be killed. What cannot be made here fails where it is used.
    """
    if path.exists() or not path.parent.is_dir():
        return
    with suppress(OSError), tempfile.TemporaryDirectory(prefix=".mlflow-", dir=path.parent) as folder:
        new = Path(folder, path.name)
        client(tracking_uri=f"{SQLITE}{new}").search_experiments()
        sync_file(new)
        os.link(new, path)  # fails where another program was faster
        sync_folder(path.parent)


def experiment(client: Any, name: str, root: Place) -> str:
    """Return the id of the experiment of this name, made where there is none.

    A server says itself where artifacts lie. Behind a database they lie below MLFLOW_DEFAULT_ARTIFACT_ROOT, such as
    s3://bucket/path, or else beside the studies; in the working directory, where these lie in an object store.
    """
    found = client.get_experiment_by_name(name)
    if found:
        return str(found.experiment_id)
    location = None
    if client.tracking_uri.startswith(DATABASES):
        parent = os.environ.get("MLFLOW_DEFAULT_ARTIFACT_ROOT") or (_on_disk(root) / "mlartifacts").as_uri()
        location = f"{parent.rstrip('/')}/{name}"
    kind = {"mlflow.experimentKind": "custom_model_development"}  # the UI shows runs first, and not chats
    return str(client.create_experiment(name, artifact_location=location, tags=kind))


def log_batch(
    client: Any,
    run_id: str,
    *,
    points: Sequence[Point] = (),
    params: dict[str, str] | None = None,
    tags: dict[str, str] | None = None,
) -> None:
    """Log to a run, as much in a request as the store takes."""
    from mlflow.entities import Metric, Param, RunTag

    metrics = [Metric(p.name, p.value, int(p.time_s * 1000), p.step) for p in points]
    parameters = [Param(name, value) for name, value in (params or {}).items()]
    run_tags = [RunTag(name, value[:5000]) for name, value in (tags or {}).items()]
    while metrics or parameters or run_tags:
        client.log_batch(run_id, metrics[:MOST_METRICS], parameters[:MOST_PARAMS], run_tags[:MOST_TAGS])
        del metrics[:MOST_METRICS], parameters[:MOST_PARAMS], run_tags[:MOST_TAGS]


def metric_points(
    metrics: Mapping[str, Measurement], time_s: float, *, step: int = 0, prefix: str = ""
) -> Iterator[Point]:
    """Every number of each measurement: its value, standard error, interval, chance level and untrained control."""
    for name, metric in metrics.items():
        for field in ("value", "stderr", "low", "high", "chance", "untrained"):
            value = getattr(metric, field)
            if value is not None:
                yield Point(f"{prefix}{name}" + (f"_{field}" if field != "value" else ""), value, time_s, step)


def sentence(error: Exception) -> str:
    """Return what a store's error says, in a line."""
    if isinstance(error, ModuleNotFoundError) and error.name in ("boto3", "botocore"):
        return "artifacts on S3 need boto3: pip install 'equitune[s3]'"
    return without_passwords(" ".join(str(error).split()))[:200] or type(error).__name__


def params_of(trial: TrialRecord) -> dict[str, str]:
    """Return a trial's parameters: its whole configuration, by dotted names."""
    return flat(trial.config.to_json(), without=NAMED + OF_THE_STUDY)


def flat(data: dict[str, Any], without: tuple[str, ...] = (), prefix: str = "") -> dict[str, str]:
    """Return a configuration as parameters: dotted names, values as text, components by their name; None is no
    parameter.
    """
    found: dict[str, str] = {}
    for key, value in data.items():
        if key in without and not prefix:
            continue
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            found |= flat(value, prefix="" if name == "args" else name.removesuffix("args").rstrip(".") + ".")
        elif isinstance(value, list):
            components = [item for item in value if isinstance(item, dict)]
            found |= flat({item["name"]: item["args"] for item in components if item["args"]}, prefix=f"{name}.")
            found[name] = ", ".join(str(item["name"] if item in components else item) for item in value)
        elif value is not None:
            found[name] = str(value)
    return found


def _question(searchspace: Place) -> str:
    """Return the comment with which a study's file opens, as Markdown."""
    lines = searchspace.read_text(encoding="utf-8").splitlines() if searchspace.exists() else []
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    return "  \n".join(line.lstrip("#").strip() for line in comment)

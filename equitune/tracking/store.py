"""The MLflow client, as the projector needs it: find or make a run, log in batches, add files."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equitune.records.folder import StudyFolder
from equitune.records.reader import StudyRecord, TrialRecord
from equitune.records.results import Measurement

MOST_METRICS, MOST_PARAMS, MOST_TAGS = 1000, 100, 100  # a batch, as MLflow's REST API allows
NAMED = ("params", "number", "seed", "study")  # what a trial's run says elsewhere
OF_THE_STUDY = ("bounds", "rungs", "rung_images", "rung_metrics")  # what is the same in every trial of it


@dataclass(frozen=True)
class Point:
    """A value of a metric at a step."""

    name: str
    value: float
    time_s: float
    step: int


def default_tracking_uri(root: Path) -> str:
    """A SQLite file beside the studies."""
    return f"sqlite:///{root / 'mlflow.db'}"


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

    def open(self, study: StudyRecord) -> None:
        """Finds the study's runs, or makes its experiment and its parent run."""
        if self._parent:
            return
        self._experiment = experiment(self._connect(), study.name, self._folder.path.parent)
        parents = self._search(f"tags.`equitune.study_id` = '{study.info['id']}' and tags.`equitune.kind` = 'study'")
        tags = {
            "equitune.kind": "study",
            "equitune.study_id": study.info["id"],
            "mlflow.runName": study.name,
            **{f"equitune.{name}": value for name, value in study.info["provenance"].items()},
        }
        created_ms = int(study.info["created"] * 1000)
        parent = parents[0].info.run_id if parents else self._create(tags, created_ms, study.name)
        for run in self._search(f"tags.`mlflow.parentRunId` = '{parent}'"):
            self._runs[int(run.data.tags["equitune.trial"])] = run.info.run_id
        self._parent = parent

    def ensure_run(self, study: StudyRecord, trial: TrialRecord) -> None:
        """Makes a trial's run with its parameters, if it has none yet."""
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
        run_id = self._create(tags, int(trial.started * 1000), f"trial {trial.number}")
        self._runs[trial.number] = run_id
        params = flat(trial.config.to_json(), without=NAMED + OF_THE_STUDY)
        log_batch(self._connect(), run_id, params=params)

    def log(self, trial: int | None, *, points: Sequence[Point] = (), tags: dict[str, str] | None = None) -> None:
        """Logs to a trial's run, or to the study's where `trial` is None."""
        log_batch(self._connect(), self._run(trial), points=points, tags=tags)

    def add_file(self, trial: int | None, path: Path) -> None:
        self._connect().log_artifact(self._run(trial), str(path))

    def set_status(self, trial: int | None, status: str, time_s: float | None = None) -> None:
        run_id = self._run(trial)
        if self._status.get(run_id) == status:
            return
        if status == "RUNNING":
            self._connect().update_run(run_id, status=status)
        else:
            self._connect().set_terminated(run_id, status, int(time_s * 1000) if time_s else None)
        self._status[run_id] = status

    def _run(self, trial: int | None) -> str:
        return self._parent if trial is None else self._runs[trial]

    def _connect(self) -> Any:
        if self._client is None:
            self._client = connect(self.tracking_uri)
        return self._client

    def _create(self, tags: dict[str, str], time_ms: int, name: str) -> str:
        run = self._connect().create_run(self._experiment, start_time=time_ms, tags=tags, run_name=name)
        return str(run.info.run_id)

    def _search(self, condition: str) -> list[Any]:
        found: list[Any] = []
        token = None
        while True:
            page = self._connect().search_runs([self._experiment], condition, max_results=1000, page_token=token)
            found += page
            token = page.token
            if not token:
                return found


def connect(tracking_uri: str) -> Any:
    """A client of the tracking store; it is not asked anything yet."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")  # its records belong in the study's log
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow import MlflowClient  # more than a second to import

    return MlflowClient(tracking_uri=tracking_uri)


def experiment(client: Any, name: str, root: Path) -> str:
    """The id of the experiment of this name, made where there is none; with SQLite, artifacts lie below root."""
    found = client.get_experiment_by_name(name)
    if found:
        return str(found.experiment_id)
    location = (root / "mlartifacts" / name).as_uri() if client.tracking_uri.startswith("sqlite:") else None
    return str(client.create_experiment(name, artifact_location=location))


def log_batch(
    client: Any,
    run_id: str,
    *,
    points: Sequence[Point] = (),
    params: dict[str, str] | None = None,
    tags: dict[str, str] | None = None,
) -> None:
    """Logs to a run, as much in a request as the store takes."""
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
    """What a store's error says, in a line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def flat(data: dict[str, Any], without: tuple[str, ...] = (), prefix: str = "") -> dict[str, str]:
    """A configuration as parameters: dotted names, values as text, components by their name."""
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
        else:
            found[name] = str(value)
    return found

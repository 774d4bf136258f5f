"""A measurement of models in MLflow: a run for each model in one experiment, with its numbers and its files."""

import time
from collections.abc import Sequence
from pathlib import Path

from equitune.errors import UserError
from equitune.records.place import Place
from equitune.results.measured import MeasuredModel, MeasurementRecord
from equitune.tracking.store import connect, experiment, log_batch, metric_points, sentence

EXPERIMENT = "measurements"


def log_measurement(record: MeasurementRecord, tracking_uri: str, files: Sequence[Path], root: Place) -> None:
    """Make the runs; the same measurement makes new ones.

    Args:
        record: what was measured.
        tracking_uri: of the store.
        files: become artifacts of each run.
        root: where studies lie, and the artifacts of a store in a file.

    Raises:
        UserError: the store does not answer, or takes nothing.
    """
    try:
        if tracking_uri.startswith("sqlite:"):
            root.mkdir(parents=True, exist_ok=True)  # there may be no study yet
        client = connect(tracking_uri)
        place = experiment(client, EXPERIMENT, root)
        for model in record.models:
            tags = {"equitune.kind": "measurement", "mlflow.runName": model.name}
            run = client.create_run(place, run_name=model.name, tags=tags).info.run_id
            points = list(metric_points(model.metrics, time.time()))
            log_batch(client, run, points=points, params=_params(record, model), tags=_tags(record))
            for path in files:
                client.log_artifact(run, str(path))
            client.set_terminated(run)
    except Exception as error:  # of many kinds: the store may be gone, full, read-only or another program
        raise UserError(
            f"MLflow at {tracking_uri} cannot be written ({sentence(error)}): the results lie in {files[0].parent}; "
            "the same command tries again"
        ) from error


def _params(record: MeasurementRecord, model: MeasuredModel) -> dict[str, str]:
    """Return what was measured on what: the request without the other models, the data, where the model is from."""
    request = {name: value for name, value in record.request.items() if name != "models"}
    data = {f"data.{name}": value for name, value in record.data.items()}
    origin = {f"model.{name}": value for name, value in model.provenance.items()}
    return {name: _shown(value) for name, value in (request | data | origin).items()}


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _tags(record: MeasurementRecord) -> dict[str, str]:
    return {f"equitune.{name}": value for name, value in record.provenance.items()}

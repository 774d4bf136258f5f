"""A measurement of models in MLflow: a run for each model in one experiment, with its numbers and its files."""

import os
from collections.abc import Sequence
from pathlib import Path

from equitune.records.measured import MeasurementRecord

EXPERIMENT = "measurements"


def log_measurement(record: MeasurementRecord, tracking_uri: str, files: Sequence[Path]) -> None:
    """Makes the runs; the same request makes new ones."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient  # more than a second to import

    client = MlflowClient(tracking_uri=tracking_uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    place = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
    for model in record.models:
        run = client.create_run(place, run_name=model.name, tags={"equitune.kind": "measurement"}).info.run_id
        for key, value in {**model.provenance, **{f"data.{key}": value for key, value in record.data.items()}}.items():
            client.log_param(run, key, str(value)[:5000])
        for name, metric in model.metrics.items():
            for suffix, number in (("", metric.value), ("_stderr", metric.stderr)):
                if number is not None:
                    client.log_metric(run, f"{name}{suffix}", number)
        for path in files:
            client.log_artifact(run, str(path))
        client.set_terminated(run)

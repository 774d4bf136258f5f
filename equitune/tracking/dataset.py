"""A study's data as a data set of MLflow: its name, its fingerprint, its shape and the sizes of its splits."""

import json
from typing import Any

from equitune.records.reader import StudyRecord, TrialRecord


def dataset_input(study: StudyRecord, trial: TrialRecord) -> Any:
    """Return the data of a trial as MLflow's `DatasetInput`; None of a study whose record does not say
    what they were.
    """
    if "data_fingerprint" not in study.info:
        return None
    import numpy as np
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.schema import TensorDatasetSchema
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.types import Schema, TensorSpec
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    data = trial.config.data
    source = CodeDatasetSource({"equitune": data.model_dump_json(exclude={"root"})})
    splits = study.info.get("splits", {})
    schema = None
    if shape := study.info.get("image_shape"):
        images = Schema([TensorSpec(np.dtype("uint8"), (-1, *shape), "images_BCHW")])
        labels = Schema([TensorSpec(np.dtype("int64"), (-1,), "labels")])
        schema = json.dumps(TensorDatasetSchema(features=images, targets=labels).to_dict())
    dataset = Dataset(
        name=data.name,
        digest=study.info["data_fingerprint"],
        source_type=CodeDatasetSource._get_source_type(),
        source=json.dumps(source.to_dict()),
        schema=schema,
        profile=json.dumps({"num_rows": sum(splits.values()), **splits}),
    )
    return DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, "training")])

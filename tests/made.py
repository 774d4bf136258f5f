"""Studies made of numbers, in memory, for what reads records only."""

from collections.abc import Mapping, Sequence
from typing import Any

from equitune.config.objectives import Bound
from equitune.config.space import Call
from equitune.config.trial import DataConfig, TrainingConfig, TrialConfig
from equitune.records.reader import StudyRecord, TrialRecord
from equitune.results.values import Epoch, Measurement, TrialResult

BOTH = {"accuracy": "maximize", "translation_error": "minimize"}
Row = Mapping[str, Any]


def made(
    rows: Sequence[Row],
    objectives: Mapping[str, str] = BOTH,
    *,
    varied: Sequence[str] = (),
    references: Mapping[str, float] | None = None,
    constraints: Mapping[str, Bound] | None = None,
    info: Mapping[str, Any] | None = None,
) -> StudyRecord:
    """A trial a row: its metrics by name (None: not measured); `varied` are parameters; also `replicate` and `state`."""
    trials = []
    replicates = 1 + max((row.get("replicate", 0) for row in rows), default=0)
    for number, row in enumerate(rows):
        params = {name: row[name] for name in varied if name in row}
        config = TrialConfig(
            study="made",
            number=number,
            seed=0,
            replicate=row.get("replicate", 0),
            params=params,
            data=DataConfig(),
            model=Call(name="resnet"),
            prior=None,
            augmentation=(),
            training=TrainingConfig(),
            measures=(),
        )
        metrics = {
            name: Measurement(value=value, n=100, split="validation", status="undefined" if value is None else "ok")
            for name, value in row.items()
            if name not in ("replicate", "state", *varied)
        }
        state = row.get("state", "COMPLETE")
        result = TrialResult(
            number=number, state=state, metrics=metrics if state == "COMPLETE" else {}, seconds={"measure": 5.0}
        )
        epoch = Epoch(
            epoch=1,
            time=60.0 * number + 60,
            train_loss=1,
            validation_loss=1,
            validation_accuracy=0,
            lr=1,
            train_s=1,
            images_per_s=1,
        )
        trials.append(TrialRecord(config, [epoch], None if state == "RUNNING" else result, started=60.0 * number))
    return StudyRecord(
        name="made",
        objectives=dict(objectives),
        references=dict(references or {}),
        constraints=dict(constraints or {}),
        num_planned=len(rows),
        is_driven=False,
        info={"replicates": replicates, **(info or {})},
        trials=trials,
    )

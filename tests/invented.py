"""A study's folder with invented results, for what only reads, and invented learning curves, for replays."""

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from equitune.config.study import StudySpec
from equitune.config.trial import TrialConfig
from equitune.records.folder import StudyFolder, write_json
from equitune.results.values import Epoch, Measurement, TrialResult, Verdict
from equitune.search.study_record import begin


def invent(
    path: Path,
    spec: StudySpec,
    num_trials: int = 6,
    *,
    states: dict[int, str] | None = None,
    tested: tuple[int, ...] = (),
) -> StudyFolder:
    """Trials with a trade-off: the higher the number, the better the accuracy and the worse the error."""
    folder = StudyFolder(path)
    begin(folder, spec, None, ())
    write_json(folder.study, {**_study(folder), "splits": {"train": 80, "validation": 20, "test": 20}})
    for number in range(num_trials):
        add_trial(folder, spec, number, (states or {}).get(number, "COMPLETE"), number in tested)
    return folder


def add_trial(folder: StudyFolder, spec: StudySpec, number: int, state: str = "COMPLETE", tested: bool = False) -> None:
    def pick(name: str, distribution: Any) -> Any:
        choices = getattr(distribution, "choice", None) or distribution.bounds
        return choices[number % len(choices)]

    trial = folder.trial(number)
    write_json(trial.config, spec.suggest(number, pick).to_json())
    for epoch in (1, 2):
        accuracy = 0.5 + 0.05 * number + 0.01 * epoch
        trial.append_epoch(
            Epoch(
                epoch=epoch,
                time=1.7e9 + 100 * number + epoch,
                train_loss=1 / epoch,
                validation_loss=1.1 / epoch,
                validation_accuracy=accuracy,
                lr=1e-3,
                train_s=1.0,
                images_per_s=80.0,
            )
        )
    if state == "RUNNING":
        return
    metrics = {
        "accuracy": Measurement(value=0.5 + 0.08 * number, stderr=0.02, n=20, split="validation"),
        "translation_error": Measurement(
            value=0.1 + 0.02 * number + 0.01 * math.sin(number),
            stderr=0.01,
            n=20,
            split="validation",
            chance=1.0,
            untrained=0.7,
        ),
        "parameters": Measurement(value=1000.0 * (number + 1), n=0, split="none"),
    }
    other = {
        "measure": "lie_derivative",
        "group": "translation",
        "layer": "stem",
        "depth": 1 / 3,
        "set": "shift y",
        "status": "ok",
        "n": 20,
        "lie_error": 0.3,
        "lie_error_stderr": 0.01,
    }
    rows = [other] + [
        {
            "measure": "equivariance", "group": "translation", "layer": layer, "depth": depth / 3, "set": name,
            "status": "ok", "n": 20, "correlation": 0.9,
            "correlation_stderr": 0.01, "correlation_chance": 0.2, "error": 0.1, "error_stderr": 0.01,
            "untrained_correlation": 0.5, "untrained_error": 0.4,
        }
        for name in ("lattice", "substride")
        for depth, layer in enumerate(("stem", "stages.0", "output"), 1)
    ]  # fmt: skip
    result = TrialResult(
        number=number,
        state=state,  # type: ignore[arg-type]
        reason=None if state == "COMPLETE" else f'because of <b>"{number}"</b>',
        metrics=metrics if state == "COMPLETE" else {},
        profile=rows if state == "COMPLETE" else [],
        exact={
            "translation": Verdict(),
            "translation_substride": Verdict(broken_by=f"stages.{number}: its strides do not follow"),
            "c4": Verdict(loosened_by="stem: w is learned"),
        },
        provenance={"torch": "2.13", "device": "cpu"},
    )
    trial.weights.write_bytes(b"weights")
    write_json(trial.result, result.model_dump(mode="json"))
    if tested:
        write_json(
            trial.test, {"accuracy": Measurement(value=0.6, stderr=0.02, n=20, split="test").model_dump(mode="json")}
        )


def _study(folder: StudyFolder) -> dict[str, Any]:
    return json.loads(folder.study.read_text())  # type: ignore[no-any-return]


def learns(config: TrialConfig) -> Iterator[tuple[float, dict[str, float]]]:
    """A learning curve, drawn by a hash of the parameters and the replicate: of each epoch seconds and metrics."""
    digest = hashlib.sha256(json.dumps([config.params, config.replicate], sort_keys=True).encode()).digest()
    best, slowness, error = 0.7 + 0.3 * digest[0] / 255, 0.5 + 2 * digest[1] / 255, digest[2] / 255
    for epoch in range(1, config.training.epochs + 1):
        yield (
            0.5 + digest[3] / 255,
            {
                "accuracy": best * (1 - math.exp(-epoch / slowness)),
                "loss": math.exp(-epoch / slowness),
                "translation_error": error + 0.1 * math.exp(-epoch),
                "parameters": 1000.0 + digest[4],
            },
        )

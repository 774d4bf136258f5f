"""Trained model -> {name: Measurement} and the profile over depth."""

from typing import Any

from torch import nn

from equitune import catalog
from equitune.config.trial import TrialConfig
from equitune.evaluation.image_set import EvaluationSet
from equitune.results.values import Measurement
from equitune.training.epoch import evaluate


def measure(
    config: TrialConfig, model: nn.Module, untrained: nn.Module | None, images: EvaluationSet
) -> tuple[dict[str, Measurement], list[dict[str, Any]]]:
    """Every metric of these images: accuracy and loss, and what the trial's measures add."""
    loss, hits = evaluate(model, images)
    metrics = {
        "accuracy": Measurement.proportion(hits, len(images), images.split),
        "loss": Measurement(value=loss, n=len(images), split=images.split, unit="nat"),
    }
    profile: list[dict[str, Any]] = []
    for call in config.measures:
        report = catalog.entry("measure", call.name)(model, untrained, images, **call.args)
        metrics |= report.metrics
        profile += report.profile
    return metrics, profile

"""Behaviour under a group: does the predicted class stay the same, and is it the right one? (M5)

Each image is transformed by two elements drawn independently, the same pairs for every model of a study. Consistency
alone rewards a constant classifier, so it stands beside the share of images that are consistent and correct.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from equitune.groups.resample import shift_each
from equitune.measures._evaluation import EvaluationSet, Report, as_float
from equitune.records.results import Measurement

METRICS = {"{group}_consistency": "maximize", "{group}_consistent_and_correct": "maximize"}


def measure(
    model: nn.Module,
    untrained: nn.Module | None,
    images: EvaluationSet,
    *,
    group: Literal["translation"] = "translation",
    max_shift_px: Annotated[int, Field(ge=1)] = 3,
) -> Report:
    """P[argmax f(T_g x) = argmax f(T_g' x)], g and g' from U{-max_shift_px .. max_shift_px}^2, circular.

    Source: shift consistency (1904.11486), in the circular form of 2011.14214.
    """
    trained = _hits(model, images, max_shift_px)
    control = [hits / len(images) for hits in _hits(untrained, images, max_shift_px)] if untrained else [None, None]
    metrics = {}
    for name, hits, share in zip(METRICS, trained, control, strict=True):
        measured = Measurement.proportion(hits, len(images), images.split)
        metrics[name.format(group=group)] = measured.model_copy(update={"untrained": share})
    return Report(metrics)


def _hits(model: nn.Module, images: EvaluationSet, most: int) -> tuple[int, int]:
    """The numbers of images that are consistent, and that are consistent and correct."""
    pair_of_shifts = torch.randint(-most, most + 1, (len(images), 2, 2), generator=torch.Generator().manual_seed(0))
    predicted = [_predicted(model, images, pair_of_shifts[:, draw]) for draw in range(2)]
    consistent = predicted[0] == predicted[1]
    return int(consistent.sum()), int((consistent & (predicted[0] == images.labels)).sum())


def _predicted(model: nn.Module, images: EvaluationSet, shifts_n2: Tensor) -> Tensor:
    """The class predicted for each image under its own shift."""
    moved = shift_each(images.pixels, shifts_n2.to(images.pixels.device), fill="circular")
    model.eval()
    with torch.inference_mode():
        return torch.cat([model(as_float(batch)).argmax(1) for batch in torch.split(moved, images.batch_size)])

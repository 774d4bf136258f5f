"""What the measures of behaviour share: class scores, shifts by one pixel, and the way to their report."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from equitune.errors import Unmeasurable, UserError
from equitune.evaluation.estimate import Estimate, measured, unmeasured
from equitune.evaluation.image_set import EvaluationSet
from equitune.evaluation.report import Report

Outcomes = Mapping[str, Estimate | Unmeasurable]  # by metric


def class_scores(model: nn.Module, images_BCHW: Tensor) -> Tensor:
    """f(x), (B, classes) in float64.

    Raises:
        Unmeasurable: the output is something else, or not finite.
    """
    scores: Tensor = model(images_BCHW)
    if scores.ndim != 2 or len(scores) != len(images_BCHW):
        raise Unmeasurable(
            "undefined", f"class scores have shape (images, classes), but the model gave {tuple(scores.shape)}"
        )
    if not scores.isfinite().all():
        raise Unmeasurable("undefined", "class scores are not finite")
    return scores.double()


def one_pixel_shifts(n: int, generator: torch.Generator) -> Tensor:
    """Return a step to one of the four neighbouring pixels for each image: (n, 2) int64, rows and columns."""
    steps = torch.tensor([[1, 0], [-1, 0], [0, 1], [0, -1]])
    return steps[torch.randint(4, (n,), generator=generator)]


def refuse_empty(measure: str, images: EvaluationSet) -> None:
    """Raise a UserError where there is no image."""
    if not len(images):
        raise UserError(f"{measure} needs at least one image, but the {images.split} split is empty: give it images")


def report(
    trained: Outcomes, untrained: Outcomes, images: EvaluationSet, units: Mapping[str, str] | None = None
) -> Report:
    """Each outcome as a trial records it, beside its control."""
    metrics, estimates = {}, {}
    for name, outcome in trained.items():
        if isinstance(outcome, Unmeasurable):
            metrics[name] = unmeasured(images, outcome.status, str(outcome))
            continue
        control = untrained.get(name)
        measurement = measured(outcome, images, untrained=control if isinstance(control, Estimate) else None)
        metrics[name] = measurement.model_copy(update={"unit": (units or {}).get(name, "1")})
        if measurement.status == "ok":
            estimates[name] = outcome
    return Report(metrics, estimates=estimates)

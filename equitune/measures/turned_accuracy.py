"""Accuracy on images that are turned: by each quarter turn, exactly, and on request by equal steps of a full turn.

A network that is invariant to quarter turns scores the same at all four; one that has only learned upright images
falls. `unseen` is the mean over the four, upright included, as in 2308.11316.
"""

import math
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from equitune.errors import Unmeasurable
from equitune.evaluation.estimate import Estimate
from equitune.evaluation.image_set import EvaluationSet
from equitune.evaluation.predictions import Outcomes, class_scores, refuse_empty, report
from equitune.evaluation.proportion import Proportion
from equitune.evaluation.report import Report
from equitune.groups.d4 import Turn
from equitune.groups.resample import affine

METRICS = {
    "accuracy_90": "maximize",
    "accuracy_180": "maximize",
    "accuracy_270": "maximize",
    "accuracy_unseen": "maximize",
    "accuracy_rotated": "maximize",
}
SHARES = ["accuracy_90", "accuracy_180", "accuracy_270", "accuracy_unseen", "accuracy_rotated"]  # they lie in [0, 1]


def measure(
    model: nn.Module,
    untrained: nn.Module | None,
    images: EvaluationSet,
    *,
    angles: Annotated[int, Field(ge=0, le=360)] = 0,
) -> Report:
    """Measures a trained model beside its untrained copy, on the same images.

    - 90, 180, 270: accuracy on images turned counter-clockwise by so many degrees, no pixel changed.
    - unseen: the mean over these three and the images as they are.
    - rotated: the mean over so many angles, equally far apart, from 0 degrees on; bilinear between the pixels, 0
      outside the image, and exact at multiples of 90 degrees.

    Args:
        model: in, images in [0, 1]; out, class scores.
        untrained: the same architecture with its initial weights; None measures without this control.
        images: held-out images, square; a label of -1 says that there is none.
        angles: of `rotated`, such as 36 for steps of 10 degrees; 0 leaves it out.

    Raises:
        UserError: there is no image.

    Source: 2308.11316, section 4.
    """
    refuse_empty("turned_accuracy", images)
    try:
        trained = _outcomes(model, images, angles, "trained")
    except Unmeasurable as error:
        return report(dict.fromkeys(METRICS, error), {}, images)
    try:
        control = _outcomes(untrained, images, angles, "untrained") if untrained else {}
    except Unmeasurable:
        control = {}
    return report(trained, control, images)


def _outcomes(model: nn.Module, images: EvaluationSet, angles: int, stage: str) -> Outcomes:
    """Each metric as an estimate over images, or why there is none."""
    height, width = images.pixels.shape[-2:]
    if height != width:
        raise Unmeasurable("non_square", f"a quarter turn needs square images, not {height} x {width}")
    model.eval()
    with torch.inference_mode():
        hits = images.observed(stage, partial(_hits, model, angles))
    unlabelled = int((~hits.pop("labelled")).sum())
    if unlabelled:
        raise Unmeasurable("undefined", f"{unlabelled} of {len(images)} images have no label among the model's classes")
    outcomes: dict[str, Estimate | Unmeasurable] = {name: Proportion.of_images(each) for name, each in hits.items()}
    if not angles:
        outcomes["accuracy_rotated"] = Unmeasurable("not_asked", "set angles, such as 36 for steps of 10 degrees")
    return outcomes


def _hits(model: nn.Module, angles: int, batch: Tensor, labels: Tensor, part: slice) -> dict[str, Tensor]:
    """How often the predicted class is the right one, one number an image, (B,)."""
    scores = class_scores(model, batch)
    quarters = [(scores.argmax(1) == labels).double()]
    quarters += [_is_right(model, Turn(quarter).on_images(batch), labels) for quarter in (1, 2, 3)]
    hits = {f"accuracy_{90 * quarter}": quarters[quarter] for quarter in (1, 2, 3)}
    hits["accuracy_unseen"] = torch.stack(quarters).mean(0)
    if angles:
        steps = (360 * step / angles for step in range(angles))
        by_angle = [
            quarters[int(angle // 90)] if angle % 90 == 0 else _is_right(model, rotated(batch, angle), labels)
            for angle in steps
        ]
        hits["accuracy_rotated"] = torch.stack(by_angle).mean(0)
    return hits | {"labelled": (labels >= 0) & (labels < scores.shape[1])}


def rotated(images_BCHW: Tensor, angle_deg: float) -> Tensor:
    """Images rotated counter-clockwise about their centre, bilinearly, with 0 outside."""
    cos, sin = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    to_source = images_BCHW.new_tensor([[[cos, -sin, 0.0], [sin, cos, 0.0]]])
    return affine(images_BCHW, to_source, fill="zero", mode="bilinear")


def _is_right(model: nn.Module, images_BCHW: Tensor, labels_B: Tensor) -> Tensor:
    return (class_scores(model, images_BCHW).argmax(1) == labels_B).double()

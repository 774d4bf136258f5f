"""Behaviour under a group: does the predicted class stay the same, and is it the right one? (M5)

Every image is shown under its orbit, the identity first. Two elements of the orbit, g and g', are drawn independently
for each image and compared; accuracy and softmax are averaged over all of it. Consistency alone rewards a constant
classifier, so it stands beside the share of images that are consistent and correct.

Translations are too many: an orbit is the identity and `num_shifts` shifts, each image its own, and the first two of
them are the pair. Of any other group it is the identity and the group's headline set, the same for every image. All
is drawn from one seed, so every model of a study sees the same images.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from equitune.errors import Unmeasurable
from equitune.evaluation.estimate import Estimate
from equitune.evaluation.image_set import EvaluationSet
from equitune.evaluation.predictions import Outcomes, class_scores, one_pixel_shifts, refuse_empty, report
from equitune.evaluation.proportion import Proportion
from equitune.evaluation.report import Report
from equitune.groups.element import Element, sets
from equitune.groups.resample import LatticeFill, shift_each

METRICS = {
    "{group}_consistency": "maximize",
    "{group}_consistent_and_correct": "maximize",
    "{group}_orbit_accuracy": "maximize",
    "{group}_softmax_deviation": "minimize",
}
GROUP_METRICS = {"translation": {"translation_pixel_change": "minimize"}}  # what one group has alone
SHARES = [  # the metrics that lie in [0, 1]
    "{group}_consistency",
    "{group}_consistent_and_correct",
    "{group}_orbit_accuracy",
    "translation_pixel_change",
]

NEED_LABELS = ("consistent_and_correct", "orbit_accuracy")

View = Callable[[Tensor, slice], Tensor]  # a batch (B, C, H, W), and which images of the set it is -> the batch moved


def measure(
    model: nn.Module,
    untrained: nn.Module | None,
    images: EvaluationSet,
    *,
    group: Literal["translation", "rotation", "flip", "d4", "scale", "shear", "hue"] = "translation",
    protocol: Literal["roll", "crop"] = "roll",
    max_shift_px: Annotated[int, Field(ge=1, le=1024)] = 3,
    num_shifts: Annotated[int, Field(ge=2, le=10_000)] = 7,
) -> Report:
    """Measures a trained model beside its untrained copy, on the same images and group elements.

    - consistency: P[argmax f(T_g x) = argmax f(T_g' x)]; with its twin that the class is also the right one.
    - orbit accuracy: accuracy, averaged over the orbit.
    - softmax deviation: E_x E_g KL(p(gx) || mean_g p(gx)), in nats.
    - pixel change: P[argmax f(T_g x) != argmax f(x)], g one of the four shifts by one pixel.

    Args:
        model: in, images in [0, 1]; out, class scores.
        untrained: the same architecture with its initial weights; None measures without this control.
        images: held-out images; a label of -1 says that there is none.
        group: the symmetry.
        protocol: of translations, what enters at the border: `roll`, the image itself, circularly; `crop`, its mirror
            image, as padding by reflection and cropping would show.
        max_shift_px: of translations, each shift is from U{-max_shift_px .. max_shift_px}^2.
        num_shifts: of translations, shifts an image beside the identity.

    Raises:
        UserError: there is no image.

    Source: shift consistency, 1904.11486 (crop) and 2011.14214 (roll); pixel change, 1805.12177; softmax deviation
    after G-EED, 2210.03773.
    """
    refuse_empty("consistency", images)
    try:
        design = (
            _shifted(images, max_shift_px, num_shifts, "circular" if protocol == "roll" else "reflect")
            if group == "translation"
            else _acted_on(images, group)
        )
        trained = _outcomes(model, images, design, group, "trained")
    except Unmeasurable as error:
        names = [name.format(group=group) for name in (*METRICS, *GROUP_METRICS.get(group, ()))]
        return report(dict.fromkeys(names, error), {}, images)
    return report(trained, _control(untrained, images, design, group), images, {f"{group}_softmax_deviation": "nat"})


@dataclass(frozen=True)
class _Design:
    """What every model is shown: views of each image, and which two of them are compared."""

    orbit: list[View]  # the first view is the image as it is
    pairs_n2: Tensor  # int64: the places of g and g' in the orbit
    neighbour: View | None = None  # the image, shifted by one pixel


def _shifted(images: EvaluationSet, max_shift_px: int, num_shifts: int, fill: LatticeFill) -> _Design:
    side_px = min(images.pixels.shape[-2:])
    if max_shift_px >= side_px:
        raise Unmeasurable(
            "too_small",
            f"consistency.max_shift_px: must be smaller than the images' side of {side_px} px, but got {max_shift_px}",
        )
    n, generator = len(images), torch.Generator().manual_seed(0)

    def draw(num: int) -> Tensor:
        return torch.randint(-max_shift_px, max_shift_px + 1, (n, num, 2), generator=generator)

    def view(shifts_n2: Tensor) -> View:
        return lambda batch, part: shift_each(batch, shifts_n2[part].to(batch.device), fill=fill)

    # In this order: however many shifts follow, the pair and the neighbour stay the same.
    pair, neighbour, rest = draw(2), one_pixel_shifts(n, generator), draw(num_shifts - 2)
    shifts_nS2 = torch.cat([torch.zeros(n, 1, 2, dtype=torch.int64), pair, rest], 1)
    return _Design(
        orbit=[view(shifts_n2) for shifts_n2 in shifts_nS2.unbind(1)],
        pairs_n2=torch.tensor([1, 2]).expand(n, 2),
        neighbour=view(neighbour),
    )


def _acted_on(images: EvaluationSet, group: str) -> _Design:
    # The grid of the images alone, of stride 1: the elements are the same for every model.
    members = next(iter(sets(group, [1], min(images.pixels.shape[-2:])).values()))
    if not members:
        raise Unmeasurable("undefined", f"{group} has no element for images of shape {tuple(images.pixels.shape[1:])}")
    identity = members[0].after(members[0].inverse())
    orbit = [identity, *(element for element in members if element != identity)]
    generator = torch.Generator().manual_seed(0)
    return _Design(
        orbit=[_by_element(element) for element in orbit],
        pairs_n2=torch.randint(len(orbit), (len(images), 2), generator=generator),
    )


def _by_element(element: Element) -> View:
    return lambda batch, part: element.on_images(batch)


def _control(model: nn.Module | None, images: EvaluationSet, design: _Design, group: str) -> Outcomes:
    try:
        return _outcomes(model, images, design, group, "untrained") if model else {}
    except Unmeasurable:
        return {}


def _outcomes(model: nn.Module, images: EvaluationSet, design: _Design, group: str, stage: str) -> Outcomes:
    """Each metric as an estimate over images, or why there is none."""
    model.eval()
    with torch.inference_mode():
        values = images.observed(stage, partial(_observed, model, design))
    unlabelled = int((~values.pop("labelled")).sum())
    outcomes: dict[str, Estimate | Unmeasurable] = {}
    for name, values_n in values.items():
        if unlabelled and name in NEED_LABELS:
            reason = f"{unlabelled} of {len(images)} images have no label among the model's classes"
            outcomes[f"{group}_{name}"] = Unmeasurable("undefined", reason)
        else:
            outcomes[f"{group}_{name}"] = (
                Estimate.mean(values_n) if name == "softmax_deviation" else Proportion.of_images(values_n)
            )
    return outcomes


def _observed(model: nn.Module, design: _Design, batch: Tensor, labels: Tensor, part: slice) -> dict[str, Tensor]:
    """One number an image, (B,), for each metric."""
    scores_GBK = torch.stack([class_scores(model, view(batch, part)) for view in design.orbit])
    predicted_GB = scores_GBK.argmax(2)
    first, second = predicted_GB.gather(0, design.pairs_n2[part].T.to(batch.device))
    observed = {
        "consistency": first == second,
        "consistent_and_correct": (first == second) & (first == labels),
        "orbit_accuracy": (predicted_GB == labels).double().mean(0),
        "softmax_deviation": softmax_deviation(scores_GBK),
        "labelled": (labels >= 0) & (labels < scores_GBK.shape[2]),
    }
    if design.neighbour:
        observed["pixel_change"] = class_scores(model, design.neighbour(batch, part)).argmax(1) != predicted_GB[0]
    return observed


def softmax_deviation(scores_GBK: Tensor) -> Tensor:
    """E_g KL(p(gx) || mean_g p(gx)) of each image, (B,), in nats: 0 if the softmax is constant on the orbit."""
    log_p_GBK = scores_GBK.log_softmax(2)
    log_mean_BK = log_p_GBK.logsumexp(0) - math.log(len(scores_GBK))
    return (log_p_GBK.exp() * (log_p_GBK - log_mean_BK)).sum(2).mean(0)

"""Relative stability: are the class scores less sensitive to a small deformation than to noise of the same size? (M6)

R_f = D_f / G_f with D_f = E |f(tau x) - f(x)|^2 and G_f = E |f(x + eta) - f(x)|^2, where eta is white noise with
|eta| = |tau x - x| for each image. About 1 at initialisation; lower is more stable to the deformation than to noise.
Both expectations are means over images, not medians, and R_f is the ratio of the two means.
"""

import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from equitune.errors import Unmeasurable
from equitune.evaluation.estimate import Estimate
from equitune.evaluation.image_set import EvaluationSet
from equitune.evaluation.predictions import class_scores, one_pixel_shifts, refuse_empty, report
from equitune.evaluation.report import Report
from equitune.groups.resample import shift_each, warp

METRICS = {"{kind}_relative_stability": "minimize"}

COLLAPSED = 1e-12  # a mean square relative to that of the images or scores themselves: below it nothing changes
MOST_SLOPE = 1 / 3  # root mean square over a field: with more, most fields fold

Deform = Callable[[Tensor, slice], Tensor]  # a batch (B, C, H, W), and which images of the set it is -> tau x


def measure(
    model: nn.Module,
    untrained: nn.Module | None,
    images: EvaluationSet,
    *,
    kind: Literal["diffeomorphism", "translation"] = "diffeomorphism",
    displacement_px: Annotated[float, Field(gt=0, le=1024)] = 1.0,
    cut_off: Annotated[int, Field(ge=2, le=1024)] = 3,
) -> Report:
    """Measures a trained model beside its untrained copy, on the same images, deformations and noise.

    Args:
        model: in, images in [0, 1]; out, class scores.
        untrained: the same architecture with its initial weights; None measures without this control.
        images: held-out images.
        kind: tau. `diffeomorphism`: a field of maximal entropy, each image its own; `translation`: a circular shift
            to one of the four neighbouring pixels.
        displacement_px: of diffeomorphisms, the root mean square displacement over images and pixels, before the
            few fields that fold an image are drawn again.
        cut_off: of diffeomorphisms, the largest spatial frequency, in half-waves per image.

    Raises:
        UserError: there is no image.

    Source: relative stability and the fields of maximal entropy, 2105.02468.
    """
    refuse_empty("stability", images)
    name = f"{kind}_relative_stability"
    try:
        deform = _one_pixel(images) if kind == "translation" else _diffeomorphism(images, displacement_px, cut_off)
    except Unmeasurable as error:
        return report({name: error}, {}, images)
    trained = {name: relative_stability(model, images, deform, "trained")}
    control = {name: relative_stability(untrained, images, deform, "untrained")} if untrained else {}
    return report(trained, control, images)


def relative_stability(model: nn.Module, images: EvaluationSet, deform: Deform, stage: str) -> Estimate | Unmeasurable:
    """R_f, or why it has no value; `stage` names the pass in the images' journal."""
    generator = torch.Generator().manual_seed(1)  # anew for every model: all see the same noise
    drawn = 0  # images that have had their noise

    def observe(batch: Tensor, _: Tensor, part: slice) -> dict[str, Tensor]:
        nonlocal drawn
        for _unused in range(drawn, part.start):  # of images that were seen before an interruption
            draw_noise(batch.shape[1:], generator)
        drawn = part.stop
        deformed = deform(batch, part)
        sizes_B = (deformed - batch).double().flatten(1).norm(dim=1)
        noise = noise_of_size(sizes_B, batch.shape[1:], generator).to(batch)
        scores = class_scores(model, batch)
        moved, shaken = (class_scores(model, seen) - scores for seen in (deformed, batch + noise))
        squares = (x.double().flatten(1).square().sum(1) for x in (batch, scores, moved, shaken))
        return {"squares": torch.stack([sizes_B.square(), *squares], 1)}

    model.eval()
    try:
        with torch.inference_mode():
            squares_n5 = images.observed(stage, observe)["squares"]
    except Unmeasurable as error:
        return error
    changes_n, images_n, scores_n, numerators_n, denominators_n = squares_n5.unbind(1)
    if changes_n.sum() <= COLLAPSED * images_n.sum():
        return Unmeasurable("undefined", "the deformation changes no image")
    if denominators_n.sum() <= COLLAPSED * scores_n.sum():
        return Unmeasurable("collapsed", "the class scores do not answer to noise")
    return Estimate.ratio(numerators_n, denominators_n)


def draw_noise(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """White noise for one image, (C, H, W) in float64."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def noise_of_size(sizes_B: Tensor, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """White noise (B, C, H, W) in float64, of the given Euclidean norm for each image."""
    # An image at a time: what one image gets does not depend on the size of the batches.
    drawn = torch.stack([draw_noise(shape, generator) for _ in sizes_B])
    scale_B: Tensor = sizes_B / drawn.flatten(1).norm(dim=1).to(sizes_B.device)
    return drawn.to(sizes_B.device) * scale_B[:, None, None, None]


def _one_pixel(images: EvaluationSet) -> Deform:
    shifts_n2 = one_pixel_shifts(len(images), torch.Generator().manual_seed(0))
    return lambda batch, part: shift_each(batch, shifts_n2[part].to(batch.device), fill="circular")


def _diffeomorphism(images: EvaluationSet, displacement_px: float, cut_off: int) -> Deform:
    height, width = images.pixels.shape[-2:]
    steepest = slope(mode_deviations(displacement_px, cut_off), min(height, width))
    if steepest > MOST_SLOPE:
        largest = math.floor(100 * displacement_px * MOST_SLOPE / steepest) / 100
        raise Unmeasurable(
            "too_small",
            f"stability.displacement_px: must be <= {largest:g} with cut_off {cut_off} on images of {height} x {width} "
            f"px, or the fields fold them, but got {displacement_px:g}",
        )
    coefficients_n2IJ = draw_coefficients(len(images), displacement_px, cut_off, height, width)
    return lambda batch, part: warp(batch, displacement_fields(coefficients_n2IJ[part], height, width))


def draw_coefficients(n: int, displacement_px: float, cut_off: int, height: int, width: int) -> Tensor:
    """Return the coefficients (n, 2, cut_off, cut_off) of fields of maximal entropy, in pixels, none of which folds."""
    deviations_IJ = mode_deviations(displacement_px, cut_off)
    generator = torch.Generator().manual_seed(0)

    def draw(num: int) -> Tensor:
        return deviations_IJ * torch.randn(num, 2, cut_off, cut_off, generator=generator, dtype=torch.float64)

    coefficients = draw(n)
    while True:
        folded = torch.cat([folds(part, height, width) for part in torch.split(coefficients, 1024)])
        if not folded.any():
            return coefficients
        coefficients[folded] = draw(int(folded.sum()))


def mode_deviations(displacement_px: float, cut_off: int) -> Tensor:
    """Return the standard deviation of the coefficient of each mode (i, j) = 1 .. cut_off of a field, in pixels.

    Of all fields with the same mean square slope, the ones of maximal entropy have variance T / (i^2 + j^2). A mode's
    mean square over the image is 1/4, so T follows from the mean square displacement of the two components.
    """
    order = torch.arange(1, cut_off + 1, dtype=torch.float64)
    squares_IJ = order[:, None] ** 2 + order**2
    weights_IJ = (squares_IJ <= cut_off**2) / squares_IJ
    temperature = 2 * displacement_px**2 / weights_IJ.sum()
    return (temperature * weights_IJ).sqrt()


def slope(deviations_IJ: Tensor, side_px: int) -> float:
    """Return the root mean square derivative of a component along an axis of this length: pixels by pixels."""
    order = torch.arange(1, len(deviations_IJ) + 1, dtype=torch.float64)
    return float((deviations_IJ.square() * order**2).sum().div(4).sqrt() * math.pi / side_px)


def displacement_fields(coefficients_B2IJ: Tensor, height: int, width: int) -> Tensor:
    """sum_ij C_ij sin(i pi u) sin(j pi v), (B, 2, H, W) in pixels, with u and v from 0 to 1 across the image."""
    order = torch.arange(1, coefficients_B2IJ.shape[-1] + 1, dtype=torch.float64)
    rows_IH, cols_JW = (
        torch.sin(math.pi * order[:, None] * (torch.arange(side) + 0.5) / side) for side in (height, width)
    )
    return torch.einsum("bkij,ih,jw->bkhw", coefficients_B2IJ, rows_IH, cols_JW)


def folds(coefficients_B2IJ: Tensor, height: int, width: int) -> Tensor:
    """Whether s -> s - displacement(s) turns some part of the image over, (B,) bool: its Jacobian is not positive."""
    cut_off = coefficients_B2IJ.shape[-1]
    phase_IU = math.pi * torch.arange(1, cut_off + 1)[:, None] * torch.linspace(0, 1, 8 * cut_off + 1).double()
    order_I = math.pi * torch.arange(1, cut_off + 1)
    sines_IU, cosines_IU = phase_IU.sin(), phase_IU.cos() * order_I[:, None]
    by_row = torch.einsum("bkij,iu,jv->bkuv", coefficients_B2IJ, cosines_IU / height, sines_IU)
    by_col = torch.einsum("bkij,iu,jv->bkuv", coefficients_B2IJ, sines_IU, cosines_IU / width)
    jacobian = (1 - by_row[:, 0]) * (1 - by_col[:, 1]) - by_row[:, 1] * by_col[:, 0]
    return (jacobian <= 0).flatten(1).any(1)

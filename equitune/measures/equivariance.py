"""Layer-wise equivariance: do features of a transformed image equal the transformed features of the image?

Compares a = f(T_g x) with b = rho(g) f(x) at every declared layer. M1: their correlation, centred per channel over
the data set (1 is equivariant). M2: their squared distance over that of unrelated images (0 is exact, 1 is chance).
M3: the same of a with f(x), which tells invariance. M4: the distance of a and b over how far both are from f(x).
Class scores do not move, so at the output rho is the identity.

The elements come in sets that are reported apart, the headline one first: for translations `lattice`, by the
network's total stride, under which every grid maps to itself, and `substride`, by one pixel, a Fourier shift on a
grid with a stride. A metric of the network is the mean over a set and over the layers at 1/4, 1/2, 3/4 and the end of
its spatial depth; at the output, over all sets.
"""

import math
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from equitune.errors import UserError
from equitune.evaluation.image_set import EvaluationSet
from equitune.evaluation.pair_statistics import PairStatistics
from equitune.evaluation.pairs import MIN_POSITIONS, Key, Layers, Plan, compare, match
from equitune.evaluation.profile import Profile
from equitune.evaluation.report import Report
from equitune.groups.element import sets as sets_of

METRICS = {
    "{group}_error": "minimize",
    "{group}_correlation": "maximize",
    "{group}_invariance_error": "minimize",
    "{group}_invariance_correlation": "maximize",
    "{group}_motion_error": "minimize",
    "{group}_output_error": "minimize",
    "{group}_output_correlation": "maximize",
}
GROUP_METRICS = {  # of the sets beside the headline one
    "translation": {
        "translation_substride_error": "minimize",
        "translation_substride_correlation": "maximize",
        "translation_fractional_error": "minimize",
        "translation_fractional_correlation": "maximize",
    },
    "rotation": {
        "rotation_interpolated_error": "minimize",
        "rotation_interpolated_correlation": "maximize",
    },
    "hue": {
        "hue_angle_error": "minimize",
        "hue_angle_correlation": "maximize",
    },
}
STANDARD_SETS = {"translation": ("lattice", "substride")}  # of other groups, the headline one


def measure(
    model: nn.Module,
    untrained: nn.Module | None,
    images: EvaluationSet,
    *,
    group: Literal["translation", "rotation", "flip", "d4", "scale", "shear", "hue"] = "translation",
    most_images: Annotated[int, Field(ge=2)] = 512,
    multiples: Annotated[int, Field(ge=1, le=1024)] = 1,
    lattice_px: Annotated[int, Field(ge=0, le=1024)] = 0,
    protocol: Literal["roll", "crop"] = "roll",
    action: Literal["declared", "scalar", "matched"] = "declared",
    all_sets: bool = False,
) -> Report:
    """Measures a trained model beside its untrained copy, on the same images and group elements.

    Args:
        model: in, images in [0, 1]; out, class scores. `model.layers` declares what is measured.
        untrained: the same architecture with its initial weights; None measures without this control.
        images: held-out images.
        group: the symmetry.
        most_images: a seeded sample of this size is measured, or all images where there are fewer.
        multiples: of translations: the lattice set goes up to this multiple of its shortest shift.
        lattice_px: of translations: the shortest shift of the lattice set; 0: their total stride.
            Models are compared under the same shifts: then it is a multiple of every model's stride.
        protocol: of translations, what enters at the border: `roll`, what left on the other side; `crop`, reflected
            pixels, and only the overlap of the two maps is compared.
        action: on features. `declared`: a group axis is permuted as the architecture declares; `scalar`: the grid
            alone moves; `matched`: channels are permuted as fits half of the images best, scored on the other half.
        all_sets: also the sets that cost more than they usually tell: fractional shifts, rotations between quarters.

    Source: correlation of intermediate representations, after 2304.02628, centred per channel over the data set.

    Raises:
        UserError: an argument of translations was given for another group.
    """
    if group != "translation" and (multiples, lattice_px, protocol) != (1, 0, "roll"):
        raise UserError(f"multiples, lattice_px and protocol are of translations: leave them out for group {group}")
    images = images.sample(most_images, seed=0)
    layers: Layers = model.layers  # type: ignore[assignment]
    if action == "scalar":
        layers = {name: replace(layout, axis="none") for name, layout in layers.items()}  # type: ignore[type-var]
    side_px = images.pixels.shape[-1]
    stride = lattice_px or total_stride(layers, side_px)
    of_translations = {"multiples": multiples, "protocol": protocol} if group == "translation" else {}
    found = sets_of(group, [stride], side_px, **of_translations)
    kept = found if all_sets else STANDARD_SETS.get(group, tuple(found)[:1])
    sets = {name: elements for name, elements in found.items() if name in kept}
    plan = Plan(model, layers, images, sets)
    networks = {"trained": model} | ({"untrained": untrained} if untrained else {})
    fitted: dict[Key, float] = {}
    if action == "matched":
        images, plan, statistics, fitted = _matched(networks, images, plan)
    else:
        statistics = {stage: compare(network, images, plan, stage=stage) for stage, network in networks.items()}
    names = [name.format(group=group) for name in METRICS] + list(GROUP_METRICS.get(group, {}))
    return Profile(group, action, plan, images, statistics, fitted, stride).report(names)


def _matched(
    networks: dict[str, nn.Module], images: EvaluationSet, plan: Plan
) -> tuple[EvaluationSet, Plan, dict[str, dict[Key, PairStatistics]], dict[Key, float]]:
    """Channels matched on every second image and scored on the others, beside the same without matching.

    Returns:
        The scored images, what was compared on them, its statistics, and the correlations on the other half.
    """
    index = torch.arange(len(images))
    fitting, scored = images.subset(index[::2]), images.subset(index[1::2])
    output = list(plan.layers)[-1]  # its classes are what they are
    both, statistics, fitted = plan.with_control("unmatched"), {}, {}
    for stage, network in networks.items():
        matchings = match(network, fitting, plan)
        if stage == "trained":
            fitted = {key: matching.correlation() for key, matching in matchings.items()}
        orders = {key: each.permutation() for key, each in matchings.items() if key[0] != output}
        statistics[stage] = compare(network, scored, both, orders, stage=stage)
    return scored, both, statistics, fitted


def total_stride(layers: Layers, side_px: int) -> int:
    """Return the least common stride of the layers with a grid that is large enough to be measured, in pixels."""
    sides = ((layout.stride, math.ceil(side_px / layout.stride)) for layout in layers.values() if layout.is_spatial)
    return math.lcm(*(stride for stride, side in sides if side * side >= MIN_POSITIONS))

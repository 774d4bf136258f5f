"""The numeric floor: what an exactly equivariant network scores on this device and in this precision."""

from functools import cache
from itertools import pairwise

import torch
from torch import nn

from equitune.evaluation.image_set import EvaluationSet
from equitune.evaluation.pairs import Plan, compare
from equitune.groups.element import Element
from equitune.groups.layout import Grid
from equitune.groups.translation import Shift

EXACT, INEXACT = 10, 100  # times the floor: up to the first a network is exact, from the second on it is not


@cache
def numeric_floor(device: torch.device, dtype: torch.dtype) -> float:
    """Return |a - b| / (|a| + |b|) of circular convolutions under shifts (K1) and of the identity (K12); at least
    rounding.

    Source: K1 and K12 of the project's reference; both are zero but for the arithmetic.
    """
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(16, 3, 32, 32, generator=generator).to(device, dtype)
    images = EvaluationSet(pixels, torch.zeros(16, dtype=torch.int64, device=device), "validation", dtype=dtype)
    sets: dict[str, list[Element]] = {"floor": [Shift(1, 3), Shift(0.37, -1.5)]}
    distances = [torch.finfo(dtype).eps]
    for network in (_circular(), _Measured(nn.Identity())):
        network = network.to(device, dtype)
        plan = Plan(network, network.layers, images, sets)
        for (_, _, index), pairs in compare(network, images, plan).items():
            if index == 0 or isinstance(network.body, nn.Identity):  # a ReLU aliases fractional shifts
                distances.append(pairs.summary().relative_distance())
    return max(distances)


def verdict(distance: float, floor: float) -> str:
    """`exact`, `not exact`, or `indeterminate` between the two."""
    if distance <= EXACT * floor:
        return "exact"
    return "not exact" if distance > INEXACT * floor else "indeterminate"


class _Measured(nn.Module):
    """A network whose only measured layer is its body."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.layers = {"body": Grid(1)}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images)  # type: ignore[no-any-return]


def _circular() -> _Measured:
    state = torch.get_rng_state()
    torch.manual_seed(0)
    widths = [3, 16, 16, 16]
    layers = [
        layer
        for inputs, outputs in pairwise(widths)
        for layer in (nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="circular"), nn.ReLU())
    ]
    torch.set_rng_state(state)
    return _Measured(nn.Sequential(*layers))

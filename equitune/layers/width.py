"""Networks of one size, whatever their prior: the width that has as many parameters as plain convolutions have."""

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import nn

from equitune import catalog
from equitune.errors import Infeasible
from equitune.layers.meta import on_meta
from equitune.layers.prior import MapPrior

MOST = 2  # times the parameters asked for: beyond, networks are not of one size


def equal_width(count: Callable[[MapPrior, int], int], prior: MapPrior, width: int) -> int:
    """Return the width at which a network comes nearest to the parameters that it has with prior `conv` at `width`.

    Args:
        count: gives its parameters, of a prior and a width.
        prior: whose width is looked for.
        width: of the network of plain convolutions.

    Returns:
        The smaller width, where two are as near.

    Raises:
        Infeasible: even at width 1 it has more than twice as many.
    """

    @cache
    def size(width: int) -> int:
        return count(prior, width) if width else 0

    plain: MapPrior = catalog.entry("prior", "conv")()
    wanted = count(plain, width)
    low, high = 0, width  # a wider network has more parameters
    while size(high) < wanted:
        low, high = high, 2 * high
    halves = False
    while high - low > 1:
        middle = (low + high) // 2
        if not halves:  # they grow as the square of the width, nearly: a step or two, where halving takes many
            share = (math.sqrt(wanted) - math.sqrt(size(low))) / (math.sqrt(size(high)) - math.sqrt(size(low)))
            middle = min(max(low + int(share * (high - low)), low + 1), high - 1)
        halves = not halves and low + 1 < middle < high - 1
        low, high = (middle, high) if size(middle) < wanted else (low, middle)
    nearest = min((low, high), key=lambda width: abs(size(width) - wanted)) or 1
    if size(nearest) > MOST * wanted:
        raise Infeasible(
            f"equal_parameters asks for {wanted:,}, those of conv at width {width}, but at width 1 there are"
            f" {size(nearest):,} of them: give a larger width"
        )
    return nearest


def num_parameters(build: Callable[[], nn.Module]) -> int:
    """Of a network that is built without its weights, and without a draw from the generator that will make them."""
    with torch.random.fork_rng(devices=[]):
        network = on_meta(build)
    return sum(weight.numel() for weight in network.parameters() if weight.requires_grad)

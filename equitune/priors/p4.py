"""Group convolution over shifts and quarter turns: a filter is read in four orientations.

Cohen and Welling, 1602.07576. Exact under quarter turns where every stride fits its map (2308.11316): at odd sides for
odd kernels with stride 2. The scores are invariant but for `head: flatten`. 4 times the weights and 16 times the
multiply-adds of `conv` at the same width; at half its width, the same weights.
"""

from typing import Literal

from equitune.layers.group import GroupConv, GroupPrior

FEATURES = "maps"


def build(
    *,
    head: Literal["max", "mean", "flatten"] = "max",
    padding: Literal["zero", "circular", "reflect"] = "zero",
) -> GroupPrior:
    return GroupPrior("c4", GroupConv, head, padding)

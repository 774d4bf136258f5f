"""Group convolution over shifts, quarter turns and mirrors.

Cohen and Welling, 1602.07576; exact where `p4` is. 8 times the weights and 64 times the multiply-adds of `conv` at the
same width; at its width by sqrt(8), the same weights.
"""

from typing import Literal

from equitune.layers.group import GroupConv, GroupPrior

FEATURES = "maps"


def build(
    *,
    head: Literal["max", "mean", "flatten"] = "max",
    padding: Literal["zero", "circular", "reflect"] = "zero",
) -> GroupPrior:
    return GroupPrior("d4", GroupConv, head, padding)

"""Separable group convolution: channels and orientations are mixed at each position, then each map is filtered.

Knigge, Romero and Bekkers, 2106.04914 (gc-p4 and gc-p4m). It equals the group convolution with the composed kernel
psi[o, i, h, u] = P[o, i, h] S[o, u], with fewer weights and multiply-adds; exact where `p4` is. The lifting layer and
1 x 1 layers are those of `p4`.
"""

from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from equitune.groups.layout import Axis
from equitune.layers.group import GroupConv, GroupPrior
from equitune.layers.prior import Shape

FEATURES = "maps"


def build(
    *,
    mirrors: bool = False,
    head: Literal["max", "mean", "flatten"] = "max",
    padding: Literal["zero", "circular", "reflect"] = "zero",
) -> GroupPrior:
    return GroupPrior("d4" if mirrors else "c4", separable, head, padding)


def separable(axis: Axis, shape: Shape) -> nn.Module:
    """Return a pointwise group convolution, then a depthwise one."""
    if shape.lifts or shape.kernel == 1:
        return GroupConv(axis, shape)
    pointwise = GroupConv(axis, replace(shape, kernel=1, stride=1, padding=0, bias=False))
    with torch.no_grad():
        pointwise.psi.mul_(3**0.5)  # so that the composed kernel has the variance of a group convolution's
    return nn.Sequential(pointwise, DepthwiseConv(axis, shape))


class DepthwiseConv(GroupConv):
    """One filter S[o] for each channel, turned by g on entry g: (B, outputs, G, H, W) -> (B, outputs, G, H', W')."""

    def __init__(self, axis: Axis, shape: Shape) -> None:
        super().__init__(axis, replace(shape, inputs=1, lifts=True))
        self.groups = shape.outputs * self.entries

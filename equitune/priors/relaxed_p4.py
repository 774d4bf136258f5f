"""Relaxed group convolution: each orientation weighs the filters of its own, and learns how far from `p4` it goes.

Wang, Walters and Yu, 2201.11969: W(g) = sum_l w_l(g) L_g psi_l. With w_l constant in g it is a group convolution,
whatever each w_l is; at `spread: 0` training starts there. `filters` times the weights of `p4`, at its multiply-adds.
"""

from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from equitune.groups.layout import Axis
from equitune.layers.group import GroupPrior, RelaxableConv, joined, moved, sources
from equitune.layers.prior import Shape

FEATURES = "maps"


def build(
    *,
    filters: Annotated[int, Field(ge=1, le=1024)] = 1,
    spread: Annotated[float, Field(ge=0)] = 0.0,
    learned: bool = True,
    head: Literal["max", "mean", "flatten"] = "max",
    padding: Literal["zero", "circular", "reflect"] = "zero",
) -> GroupPrior:
    return GroupPrior("c4", partial(RelaxedConv, filters=filters, spread=spread, learned=learned), head, padding)


class RelaxedConv(RelaxableConv):
    """W(g) = sum_l w_l(g) L_g psi_l.

    Attributes:
        psi: (filters, outputs, inputs, G_in, k, k).
        w: (filters * G,), w_l(g) at l G + g; a vector, which no weight decay pulls to 0. Initially 1 / filters, plus
            Gaussian noise of standard deviation `spread` / filters. Not trained where it is not `learned`.
    """

    sources: Tensor

    def __init__(self, axis: Axis, shape: Shape, filters: int, spread: float, learned: bool) -> None:
        super().__init__(axis, shape)
        kernel = shape.kernel
        psi = self.uniform(filters, shape.outputs, shape.inputs, self.entries_in, kernel, kernel)
        self.psi = nn.Parameter(psi * filters**0.5)  # so that their mean has the variance of one
        w = (1 + spread * torch.randn(filters * self.entries)) / filters
        self.w = nn.Parameter(w, requires_grad=learned)
        self.strays = f"its orientations weigh its filters differently (spread {spread:g})" if spread else None
        self.learns = "w, how each orientation weighs its filters, is learned" if learned else None
        self.register_buffer("sources", sources(axis, self.entries_in, kernel), persistent=False)

    def expand(self) -> Tensor:
        parts = [
            moved(psi, self.sources) * w_G.view(-1, *[1] * (psi.ndim - 1))
            for psi, w_G in zip(self.psi, self.w.view(-1, self.entries), strict=True)
        ]
        return joined(torch.stack(parts).sum(0))

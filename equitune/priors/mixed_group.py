"""A mixture of convolutions of every subgroup, from plain ones to those of the whole group, its shares learned.

After EquiNAS, 2210.05484: W = sum_j softmax(alpha)_j W_j with W_j equivariant to the subgroup j; all act on regular
features of the whole group. The branch of a subgroup H has |G| / |H| times the weights of the group convolution; the
multiply-adds are those of one. Subgroups: C1, C2, C4, and with mirrors D1, D2, D4.
"""

from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from equitune.groups.d4 import Turn
from equitune.groups.layout import Axis
from equitune.layers.group import ExpandedConv, GroupPrior, RelaxableConv, elements, joined, moved, sources
from equitune.layers.prior import Shape

FEATURES = "maps"


def build(
    *,
    others: Annotated[float, Field(le=0)] = -2.0,
    learned: bool = True,
    mirrors: bool = False,
    head: Literal["max", "mean", "flatten"] = "max",
    padding: Literal["zero", "circular", "reflect"] = "zero",
) -> GroupPrior:
    layer = partial(MixedConv, others=others, learned=learned)
    return GroupPrior("d4" if mirrors else "c4", layer, head, padding)


class MixedConv(RelaxableConv):
    """sum_j softmax(alpha)_j W_j.

    Attributes:
        branches: a SubgroupKernel for each subgroup, the whole group last.
        alpha: (branches,); initially 0 for the whole group and `others` for all others. Not trained where it is not
            `learned`.
    """

    def __init__(self, axis: Axis, shape: Shape, others: float, learned: bool) -> None:
        super().__init__(axis, shape)
        self.branches = nn.ModuleList(SubgroupKernel(self, subgroup) for subgroup in subgroups(axis))
        alpha = torch.full((len(self.branches),), others)
        alpha[-1] = 0
        self.alpha = nn.Parameter(alpha, requires_grad=learned)
        has_others = bool(torch.tensor([0, others], device="cpu").softmax(0)[1])  # else their shares stay zero
        if has_others:
            self.strays = f"some of its filters are equivariant to subgroups alone (others {others:g})"

    def expand(self) -> Tensor:
        filters = [share * branch() for share, branch in zip(self.alpha.softmax(0), self.branches, strict=True)]
        return torch.stack(filters).sum(0)


class SubgroupKernel(nn.Module):
    """Filters that are equivariant to a subgroup H: on entry h c, h in H, they are L_h psi_c.

    Attributes:
        psi: (outputs, |G| / |H|, inputs, G_in, k, k), one psi_c for each coset H c.
    """

    order: Tensor
    sources: Tensor

    def __init__(self, layer: ExpandedConv, subgroup: list[Turn]) -> None:
        super().__init__()
        group = elements(layer.axis)
        cosets: list[Turn] = []
        reached: list[Turn] = []
        for c in group:
            if c not in reached:
                cosets.append(c)
                reached += [h.after(c) for h in subgroup]
        places = [h.after(c) for h in subgroup for c in cosets]
        side = layer.kernel_size
        self.psi = nn.Parameter(layer.uniform(layer.outputs, len(cosets), layer.inputs, layer.entries_in, side, side))
        self.register_buffer("order", torch.tensor([places.index(g) for g in group]), persistent=False)
        rows = torch.tensor([group.index(h) for h in subgroup])
        self.register_buffer("sources", sources(layer.axis, layer.entries_in, side)[rows], persistent=False)

    def forward(self) -> Tensor:
        """Return (outputs * G, inputs * G_in, k, k)."""
        cosets, inputs = self.psi.shape[1:3]
        filters = torch.unflatten(moved(self.psi.flatten(1, 2), self.sources), 2, (cosets, inputs))
        return joined(filters.flatten(1, 2).index_select(1, self.order))


def subgroups(axis: Axis) -> list[list[Turn]]:
    """C1, C2, C4 of the quarter turns; D1, D2, D4 of these with the mirrors; the whole group last."""
    families = [[False], [False, True]] if axis == "d4" else [[False]]
    return [
        [Turn(quarters, mirror) for mirror in mirrors for quarters in range(0, 4, 4 // turns)]
        for mirrors in families
        for turns in (1, 2, 4)
    ]

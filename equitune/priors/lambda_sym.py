"""Lambda-symmetrised layers: free filters averaged over the group, with weights that are learned.

After 2406.03946, for finite groups: W_lambda = sum_g lambda(g) g W, (g W)[h', h, u] = W[g^-1 h', g^-1 h, g^-1 u]. A
uniform lambda projects on group convolutions, lambda uniform on a subgroup on those of the subgroup, and lambda on the
identity alone leaves W free. |G|^2 times the weights and multiply-adds of `conv`.
"""

from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from equitune.groups.layout import Axis
from equitune.layers.group import GroupPrior, RelaxableConv
from equitune.layers.prior import Shape

FEATURES = "maps"


def build(
    *,
    free: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    learned: bool = True,
    mirrors: bool = False,
    head: Literal["max", "mean", "flatten"] = "max",
    padding: Literal["zero", "circular", "reflect"] = "zero",
) -> GroupPrior:
    layer = partial(SymmetrisedConv, free=free, learned=learned)
    return GroupPrior("d4" if mirrors else "c4", layer, head, padding)


class SymmetrisedConv(RelaxableConv):
    """sum_g lambda(g) g W.

    Attributes:
        weight: W (outputs, inputs, G * G_in * k * k).
        logits: (G,); lambda is their softmax. Initially (1 - free) / |G|, and `free` more on the identity. Not trained
            where it is not `learned`.
    """

    def __init__(self, axis: Axis, shape: Shape, free: float, learned: bool) -> None:
        super().__init__(axis, shape)
        shares = torch.full((self.entries,), (1 - free) / self.entries)
        shares[0] += free
        self.logits = nn.Parameter(shares.log(), requires_grad=learned)
        self.strays = f"its filters are not averaged over the whole group (free {free:g})" if free else None
        self.learns = "lambda, the weights of its average over the group, is learned" if learned else None
        weight = self.uniform(shape.outputs, shape.inputs, self.entries * self.entries_in * shape.kernel**2)
        self.weight = nn.Parameter(weight / shares.norm())  # so that the sum has the variance of a group convolution's

    def expand(self) -> Tensor:
        shares = self.logits.softmax(0)
        W = self.weight.index_select(2, self.orbits.flatten()).view(*self.weight.shape[:2], self.entries, -1)
        W = (W * shares[:, None]).sum(2).view(*self.weight.shape[:2], self.entries, self.entries_in, -1)
        kernel = [self.kernel_size] * 2
        return W.transpose(1, 2).reshape(self.outputs * self.entries, self.inputs * self.entries_in, *kernel)

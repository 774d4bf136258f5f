"""Factored fully connected layers: every output sees every input position, and no weight is shared (2310.06131, F-FC).

Cin * Cout * (HW_in + HW_out) weights in place of the Cin * Cout * HW_in * HW_out of a full matrix. The kernel and the
padding of the layer that it stands for decide the side of its output alone.
"""

import torch
from torch import Tensor, nn

from equitune.groups.grid import Symmetry, out_side
from equitune.layers.plain import PlainPrior

FEATURES = "maps"


def build() -> "FC":
    return FC()


class FC(PlainPrior):
    """The layers of a network without weight sharing and without locality."""

    def layer(
        self, inputs: int, outputs: int, kernel: int, side: int, stride: int, padding: int, bias: bool
    ) -> nn.Module:
        return FactoredFC(inputs, outputs, side, out_side(side, kernel, stride=stride, padding=padding), bias)


class FactoredFC(nn.Module):
    """y[d, v] = sum_c V[d, c, v] (sum_u U[d, c, u] x[c, u] + b_U[d]) + b_V[v].

    Images (B, inputs, side, side) -> (B, outputs, out, out).

    Attributes:
        U: (outputs, inputs, side * side).
        V: (outputs, inputs, out * out).
        bias_U: (outputs,), or None.
        bias_V: (out * out,), or None.
    """

    def __init__(self, inputs: int, outputs: int, side: int, out: int, bias: bool) -> None:
        super().__init__()
        self.out = out
        read, write = (3 / side**2) ** 0.5, (3 / inputs) ** 0.5  # unit variance in, unit variance out
        self.U = nn.Parameter(torch.empty(outputs, inputs, side**2).uniform_(-read, read))
        self.V = nn.Parameter(torch.empty(outputs, inputs, out**2).uniform_(-write, write))
        self.bias_U = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.bias_V = nn.Parameter(torch.zeros(out**2)) if bias else None

    def breaks(self, symmetry: Symmetry, side: int) -> str | None:
        """Return the rule by which it fails to commute with a symmetry."""
        return "it has weights of its own at each position"

    def forward(self, images: Tensor) -> Tensor:
        read_BDC = torch.einsum("dcu,bcu->bdc", self.U, images.flatten(2))
        if self.bias_U is not None:
            read_BDC = read_BDC + self.bias_U[:, None]
        maps = torch.einsum("dcv,bdc->bdv", self.V, read_BDC)
        if self.bias_V is not None:
            maps = maps + self.bias_V
        return maps.reshape(*maps.shape[:2], self.out, self.out)

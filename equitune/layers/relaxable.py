"""Layers that may leave their symmetry by degrees, and how far each has gone, on one scale."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from equitune.layers.averaging import Averaging


class Relaxable(ABC):
    """A layer with a continuous choice between a symmetry and freedom.

    Its amount lies between 0, where the symmetry is kept strictly, and 1, where nothing of it is left: where a layer's
    weights are a strict part and the rest, the share of the rest in their norm. A layer whose weights were drawn free
    of any symmetry lies below 1, since some part of them is strict by chance.
    """

    @abstractmethod
    def squared_amount(self) -> Tensor:
        """Return the square of the amount, through which gradients flow: what a loss may add
        (`training.symmetry_penalty`).
        """

    @torch.no_grad()
    def amount(self) -> float:
        """0 strict, 1 free."""
        return float(self.squared_amount().sqrt())


def relaxable_layers(model: nn.Module) -> dict[str, Relaxable]:
    """Return the layers of a model that may leave their symmetry, by path, in the order in which they stand in it."""
    return {path: module for path, module in model.named_modules() if isinstance(module, Relaxable)}


def symmetry_penalty(model: nn.Module) -> Tensor:
    """Return the mean of the squared amounts of a model's layers, and the penalty of an averaging around it.

    Gradients flow through it; 0 where there is neither.
    """
    squares = [layer.squared_amount() for layer in relaxable_layers(model).values()]
    penalties = [torch.stack(squares).mean()] if squares else []
    penalties += [module.width_penalty() for module in model.modules() if isinstance(module, Averaging)]
    return torch.stack(penalties).sum() if penalties else torch.zeros(())


def share(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole of two sums of squares; 0 of nothing is 0."""
    return part / whole.clamp(min=torch.finfo(whole.dtype).tiny)

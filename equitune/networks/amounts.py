"""How far each layer has left its symmetry, before training and after."""

from torch import nn

from equitune.layers.averaging import Averaging
from equitune.layers.relaxable import relaxable_layers
from equitune.results.values import Amount, Measurement


def learned_amounts(model: nn.Module, untrained: nn.Module) -> dict[str, Amount]:
    """Of each layer that may leave its symmetry, by path, in the order of depth; of other networks nothing.

    First the widths of an averaging around the network, `averaging.rotation` for example, on scales of their own.

    Args:
        model: trained.
        untrained: the same network with its initial weights.
    """
    amounts = {}
    if isinstance(model, Averaging) and isinstance(untrained, Averaging):
        initial = untrained.widths()
        for name, (width, unit) in model.widths().items():
            amounts[f"averaging.{name}"] = Amount(
                kind=type(model).__name__, before=initial[name][0], after=width, unit=unit
            )
    before = relaxable_layers(untrained)
    return amounts | {
        path: Amount(kind=type(layer).__name__, before=before[path].amount(), after=layer.amount())
        for path, layer in relaxable_layers(model).items()
    }


def relaxation(amounts: dict[str, Amount]) -> dict[str, Measurement]:
    """Return the mean amount over the layers as a metric, and that before training; nothing where there is no such
    layer.
    """
    layers = [amount for amount in amounts.values() if amount.unit == "1"]
    if not layers:
        return {}
    after, before = (sum(values) / len(layers) for values in zip(*((a.after, a.before) for a in layers), strict=True))
    return {"relaxation": Measurement(value=after, n=0, split="none", untrained=before)}

"""What a trial will cost, before it runs: its size, its multiply-adds, and a guess at its seconds."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from equitune.config.objectives import BEFORE_TRAINING, Bound
from equitune.errors import Infeasible
from equitune.results.values import Measurement


class OutsideBounds(Infeasible):
    """The network costs more, or less, than the study allows."""

    cause = "outside_bounds"


@dataclass(frozen=True)
class Cost:
    """Of one network."""

    parameters: int
    multiply_adds: int  # of one image's forward pass
    width: int | None = None  # where a rule has chosen another one than the configuration names

    def metrics(self) -> dict[str, Measurement]:
        """Return what is known of a network that has not trained, as metrics of its trial."""
        return {name: Measurement(value=getattr(self, name), n=0, split="none") for name in BEFORE_TRAINING}

    def require_within(self, bounds: Mapping[str, Bound]) -> None:
        """Refuses a network that costs more, or less, than the study allows.

        Raises:
            OutsideBounds: says which bound is broken, and by what value.
        """
        for name, bound in bounds.items():
            if reason := bound.why_not(getattr(self, name)):
                raise OutsideBounds(f"{name}: {reason}")


def multiply_adds(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Of a forward pass in evaluation, on zeros of this shape, wherever the module lies."""
    from torch.utils.flop_counter import FlopCounterMode  # a second to import

    device = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), None)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        module.eval()(torch.zeros(shape, device=device))
    return int(counter.get_total_flops()) // 2

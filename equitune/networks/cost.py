"""What a trial will cost, before it runs: its size, its multiply-adds, and a guess at its seconds."""

import math
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import nn

from equitune.config.data_shape import DataShape
from equitune.config.objectives import BEFORE_TRAINING, Bound
from equitune.config.trial import TrialConfig
from equitune.data.split import DeviceSplit
from equitune.errors import Infeasible
from equitune.networks.build import build_augmentation, initial_model
from equitune.networks.device import make_deterministic
from equitune.results.values import Measurement
from equitune.training.epoch import Diverged, build_optimizer, train_epoch

MOST_VALUES = 2**25  # of the images of a step that is timed: 223 of 3 x 224 x 224
SLOW_S = 2.0  # a pass so long is not timed again


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


def train_seconds_per_image(config: TrialConfig, data_shape: DataShape, steps: int = 3) -> float:
    """Time a few training steps of the configured network on random images: with fewer a step where they are huge."""
    make_deterministic(config.device)
    model = initial_model(config, data_shape).to(config.device)
    shape = config.input.shape_of(data_shape.image)
    training = config.training
    if training.batch_size * math.prod(shape) > MOST_VALUES:
        training = training.model_copy(update={"batch_size": max(2, MOST_VALUES // math.prod(shape))})
    n = training.batch_size * steps
    images = torch.randint(0, 256, (n, *shape), dtype=torch.uint8, device=config.device)
    split = DeviceSplit(images, torch.randint(0, data_shape.classes, (n,), device=config.device))
    optimizer, augmentation = build_optimizer(model, training), build_augmentation(config)
    generator = torch.Generator(config.device).manual_seed(0)
    for _ in range(2):  # the first pass warms up
        started = time.perf_counter()
        with suppress(Diverged):  # which the trial itself will say
            train_epoch(model, split, augmentation, training, optimizer, generator)
        elapsed = time.perf_counter() - started
        if elapsed > SLOW_S:
            break
    return elapsed / n


def multiply_adds(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Of a forward pass in evaluation, on zeros of this shape, wherever the module lies."""
    from torch.utils.flop_counter import FlopCounterMode  # a second to import

    device = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), None)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        module.eval()(torch.zeros(shape, device=device))
    return int(counter.get_total_flops()) // 2

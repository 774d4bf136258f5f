"""A guess at how long a trial takes, before it runs."""

import math
import time
from contextlib import suppress

import torch

from equitune.config.data_shape import DataShape
from equitune.config.trial import TrialConfig
from equitune.data.split import DeviceSplit
from equitune.networks.build import build_augmentation, initial_model
from equitune.networks.device import make_deterministic
from equitune.training.epoch import Diverged, build_optimizer, train_epoch

MOST_VALUES = 2**25  # of the images of a step that is timed: 223 of 3 x 224 x 224


SLOW_S = 2.0  # a pass so long is not timed again


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

"""Training beside a bare PyTorch loop over the same model on tensors already in memory, and what augmentation adds.

python benchmarks/training.py
"""

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from torch.nn import functional

from equitune import catalog
from equitune.config.trial import TrainingConfig
from equitune.data.split import DeviceSplit
from equitune.networks.device import make_deterministic
from equitune.training.epoch import build_optimizer, train_epoch

ROUNDS = 7
CASES = {  # title -> (images' shape, number of them, model, its arguments)
    "resnet-8 of width 8, digits": ((1, 12, 12), 1149, "resnet", {"depth": 8, "width": 8}),
    "resnet-20 of width 16, 32 x 32 in colour": ((3, 32, 32), 512, "resnet", {"depth": 20, "width": 16}),
}
AUGMENTATIONS = ("translate", "hflip", "crop", "rotate", "scale", "color_jitter", "cutout", "gaussian_noise")


def build(name: str, shape: tuple[int, int, int], arguments: dict) -> torch.nn.Module:
    torch.manual_seed(0)
    return catalog.entry("model", name)(shape, 10, catalog.entry("prior", "conv")(), **arguments)


def bare_epoch(model, optimizer, images: torch.Tensor, labels: torch.Tensor, batch_size: int) -> None:
    model.train()
    order = torch.randperm(len(images))
    for start in range(0, len(images) - batch_size + 1, batch_size):
        batch = order[start : start + batch_size]
        loss = functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def times(steps: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Seconds of each, the median over rounds in which they take turns; a first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for counted in [False] + [True] * ROUNDS:
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if counted:
                seconds[name].append(time.perf_counter() - started)
    return {name: median(values) for name, values in seconds.items()}


def compare(title: str) -> None:
    shape, n, name, arguments = CASES[title]
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (n, *shape), np.uint8))
    labels = torch.from_numpy(rng.integers(0, 10, n))
    training = TrainingConfig(batch_size=32)
    images = pixels.float() / 255
    generator = torch.Generator().manual_seed(0)

    def ours(*augmentations: str) -> Callable[[], None]:
        model = build(name, shape, arguments)
        optimizer = build_optimizer(model, training)
        functions = [catalog.entry("augmentation", each) for each in augmentations]
        return lambda: (
            train_epoch(model, DeviceSplit(pixels, labels), functions, training, optimizer, generator) and None
        )

    bare_model = build(name, shape, arguments)
    bare_optimizer = build_optimizer(bare_model, training)
    steps: dict[str, Callable[[], None]] = {
        "bare": lambda: bare_epoch(bare_model, bare_optimizer, images, labels, training.batch_size),
        "ours": ours(),
    }
    steps |= {each: ours(each) for each in AUGMENTATIONS if each != "color_jitter" or shape[0] == 3}
    seconds = times(steps)
    print(f"\n{title}: {n // 32 * 32 / seconds['bare']:.0f} images/s in the bare loop")
    print(f"  images per second, ours over the bare loop's: {seconds['bare'] / seconds['ours']:.2f}  (at least 0.90)")
    for each in steps:
        if each not in ("bare", "ours"):
            more = 100 * (seconds[each] / seconds["ours"] - 1)
            print(
                f"  {each} adds {more:.0f} %  (translate: at most 15)"
                if each == "translate"
                else f"  {each} adds {more:.0f} %"
            )


if __name__ == "__main__":
    make_deterministic("cpu")
    for title in CASES:
        compare(title)

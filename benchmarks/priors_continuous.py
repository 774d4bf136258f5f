"""Forward and backward passes of the non-stationary layers, in units of a plain convolution of the same channels.

python benchmarks/priors_continuous.py [cuda]
"""

import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import nn

from equitune import catalog
from equitune.trial.run import make_deterministic

ROUNDS = 9
CASES = [(64, 32, 32), (64, 64, 16)]  # images of a batch, channels, side
LAYERS: dict[str, tuple[str, dict[str, int], str]] = {  # title -> (prior, its arguments, aim)
    "nonstationary, 4 terms": ("nonstationary", {"terms": 4}, "at most 5"),
    "nonstationary, 8 terms": ("nonstationary", {"terms": 8}, "at most 9"),
    "nonstationary_exact": ("nonstationary_exact", {}, ""),
}


def step(prior: str, arguments: dict[str, int], images: torch.Tensor) -> Callable[[], None]:
    channels, side = images.shape[1:3]
    layer: nn.Module = catalog.entry("prior", prior)(**arguments).layer(channels, channels, 3, side, 1, 1, False)
    layer = layer.to(images.device)

    def run() -> None:
        layer(images).square().sum().backward()
        if images.is_cuda:
            torch.cuda.synchronize()

    return run


def compare(n: int, channels: int, side: int, device: str) -> None:
    images = torch.randn(n, channels, side, side, device=device).requires_grad_()
    steps = {"conv": step("conv", {}, images)} | {
        title: step(prior, arguments, images) for title, (prior, arguments, _) in LAYERS.items()
    }
    clock = time.perf_counter if device == "cuda" else time.process_time  # of this process alone, on a shared machine
    seconds: dict[str, list[float]] = {title: [] for title in steps}
    for counted in [False] * 3 + [True] * ROUNDS:
        for title, run in steps.items():
            started = clock()
            run()
            if counted:
                seconds[title].append(clock() - started)
    times = {title: median(values) for title, values in seconds.items()}
    print(f"\n{n} images, {channels} channels of {side} x {side}: {1000 * times['conv']:.1f} ms a plain convolution")
    for title, (_, _, aim) in LAYERS.items():
        print(f"  {title}: {times[title] / times['conv']:.2f} times" + (f"  ({aim})" if aim else ""))


if __name__ == "__main__":
    device = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    make_deterministic(device)
    for case in CASES:
        compare(*case, device)

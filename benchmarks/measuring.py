"""Measuring all layers beside the bare forward passes that it needs: one of the images, and one for each shift.

python benchmarks/measuring.py  (processor time, so that other programs count less)
"""

import time
from statistics import median

import numpy as np
import torch

from equitune import catalog
from equitune.evaluation.image_set import EvaluationSet
from equitune.groups import translation
from equitune.measures import equivariance
from equitune.networks.device import make_deterministic

ROUNDS = 7
CASES: dict[str, tuple] = {  # title -> (images' shape, number of them, model, prior, its arguments)
    "resnet-20 of width 16, 512 images of 32 x 32": ((3, 32, 32), 512, "resnet", "conv", {}),
    "resnet-20 of width 16, 288 images of 16 x 16": ((1, 16, 16), 288, "resnet", "conv", {}),
    "resnet-8 of width 8, 128 images of 12 x 12": ((1, 12, 12), 128, "resnet", "conv", {"depth": 8, "width": 8}),
    "vit of width 64, 512 images of 32 x 32": ((3, 32, 32), 512, "vit", "attention", {}),
}


def bare(model: torch.nn.Module, images: EvaluationSet, elements: list) -> None:
    with torch.inference_mode():
        for batch, _ in images.batches():
            model(batch)
            for shift in elements:
                model(shift.on_images(batch))


def compare(title: str) -> None:
    shape, n, name, prior, arguments = CASES[title]
    torch.manual_seed(0)
    model = catalog.entry("model", name)(shape, 10, catalog.entry("prior", prior)(), **arguments).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (n, *shape), np.uint8)
    images = EvaluationSet(torch.from_numpy(pixels), torch.zeros(n, dtype=torch.int64), "validation")
    strides = [layout.stride for layout in model.layers.values() if layout.is_spatial]
    sets = translation.sets(strides, shape[1])
    elements = [shift for name in equivariance.STANDARD_SETS["translation"] for shift in sets[name]]
    seconds: dict[str, list[float]] = {"bare": [], "measure": []}
    for counted in [False] + [True] * ROUNDS:
        for what, step in (
            ("bare", lambda: bare(model, images, elements)),
            ("measure", lambda: equivariance.measure(model, None, images)),
        ):
            started = time.process_time()
            step()
            if counted:
                seconds[what].append(time.process_time() - started)
    ratio = median(seconds["measure"]) / median(seconds["bare"])
    print(f"{title}, {len(model.layers)} layers: {ratio:.2f} times its {1 + len(elements)} bare passes  (at most 1.50)")


if __name__ == "__main__":
    make_deterministic("cpu")
    for title in CASES:
        compare(title)

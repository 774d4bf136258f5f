"""Peak memory of measuring all layers, beside one forward pass that keeps its activations, for few and many images.

python benchmarks/measuring_memory.py
"""

import resource
import subprocess
import sys

import numpy as np
import torch

from equitune import catalog
from equitune.evaluation.image_set import EvaluationSet
from equitune.measures import equivariance
from equitune.networks.device import make_deterministic

BATCH, SIZES = 128, (128, 1024, 4096)
CASES = {"resnet-20": ("resnet", "conv"), "small vit": ("vit", "attention")}


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main_of_child(case: str, what: str) -> None:
    """Prints by how much the peak rises above that of the loaded program with its images."""
    make_deterministic("cpu")
    name, prior = CASES[case]
    model = catalog.entry("model", name)((3, 32, 32), 10, catalog.entry("prior", prior)()).eval()
    n = BATCH if what == "keep" else int(what)
    pixels = np.random.default_rng(0).integers(0, 256, (n, 3, 32, 32), np.uint8)
    images = EvaluationSet(torch.from_numpy(pixels), torch.zeros(n, dtype=torch.int64), "validation", BATCH)
    with torch.inference_mode():
        model(next(images.batches())[0][:2])
    before = peak_mib()
    if what == "keep":
        kept: list[torch.Tensor] = []
        for module in model.modules():
            if not list(module.children()):
                module.register_forward_hook(lambda _, __, output: kept.append(output))
        with torch.inference_mode():
            model(next(images.batches())[0])
    else:
        equivariance.measure(model, None, images, most_images=n)
    print(peak_mib() - before)


def main() -> None:
    for case in CASES:
        rise = {}
        for what in ("keep", *map(str, SIZES)):
            done = subprocess.run([sys.executable, __file__, case, what], check=True, capture_output=True, text=True)
            rise[what] = float(done.stdout)
        kept = rise.pop("keep")
        print(f"{case}: {kept:.0f} MiB for one pass of {BATCH} images that keeps its activations  (at most 1.50 times)")
        for n, mib in rise.items():
            print(f"  measuring {int(n):,} images: {mib:.0f} MiB, {mib / kept:.2f} times")


if __name__ == "__main__":
    main_of_child(*sys.argv[1:]) if sys.argv[1:] else main()

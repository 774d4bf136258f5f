"""Layers of the priors with a group beside the plain convolution of as many multiply-adds: forward and backward.

python benchmarks/priors.py

The plain one reads and writes G times the channels, as the expanded filters do; the aim is 1.3. Widths are those of the
first and the last stage of the ResNet-44 with the weights of a plain one of width 32. Median over pairs of passes.
"""

import statistics
import time

import torch
from torch import Tensor, nn

from equitune import catalog

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PRECISION = torch.bfloat16 if DEVICE == "cuda" else torch.float32
BATCH = 256 if DEVICE == "cuda" else 32
PAIRS = 15
STAGES = {"p4": ((16, 33), (64, 9)), "p4m": ((12, 33), (48, 9))}  # channels, side_px
PRIORS = ("p4", "p4m", "relaxed_p4", "partial_p4", "lambda_sym", "mixed_group", "orbit_c4")


def seconds(layer: nn.Module, maps: Tensor, backward: bool) -> float:
    started = time.perf_counter()
    with torch.autocast(DEVICE, PRECISION, enabled=DEVICE == "cuda"):
        out = layer(maps)
    if backward:
        out.backward(torch.ones_like(out))
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def ratio(layer: nn.Module, plain: nn.Module, maps: Tensor, images: Tensor, backward: bool) -> float:
    """The median of the layer's time by the plain one's, one after the other."""
    ratios = [seconds(layer, maps, backward) / seconds(plain, images, backward) for _ in range(PAIRS + 2)]
    return statistics.median(ratios[2:])  # the first two warm up


def main() -> None:
    torch.set_num_threads(1)
    print(f"{DEVICE}, {PRECISION}, torch {torch.__version__}, batch {BATCH}, 3 x 3, median of {PAIRS} pairs")
    for name in PRIORS:
        made, entries = catalog.entry("prior", name)(), 8 if name == "p4m" else 4
        for channels, side in STAGES["p4m" if name == "p4m" else "p4"]:
            layer = made.conv(channels, channels, 3, side=side, padding=1).to(DEVICE)
            plain = nn.Conv2d(channels * entries, channels * entries, 3, padding=1, bias=False).to(DEVICE)
            images = torch.randn(BATCH, channels * entries, side, side, device=DEVICE, requires_grad=True)
            if DEVICE == "cuda":
                images = images.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
                plain = plain.to(memory_format=torch.channels_last)
            maps = images.detach().unflatten(1, (channels, entries)).requires_grad_()
            both = ratio(layer, plain, maps, images, True)
            with torch.inference_mode():
                forward = ratio(layer.eval(), plain.eval(), maps, images, False)
            print(
                f"{name}, {channels} channels of {side} px: training {both:.2f}, evaluation {forward:.2f}", flush=True
            )


if __name__ == "__main__":
    main()

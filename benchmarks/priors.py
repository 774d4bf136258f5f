"""Layers of the priors beside plain layers: forward and backward passes, and forward passes in evaluation.

python benchmarks/priors.py [PRIOR ...]

The plain convolution of a prior with a group reads and writes G times the channels, as the expanded filters do: it has
as many multiply-adds. That of a separable one is separable, too. Non-stationary layers of R terms have R times as many
and may take R + 1 times as long. Widths are those of the first and the last stage of the ResNet-44 with the weights of
a plain one of width 32. On a GPU in bf16 and channels_last, as trials run there. Median over pairs of passes.
"""

import statistics
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from equitune import catalog
from equitune.groups.axis import ENTRIES
from equitune.networks.build import lay_channels_last
from equitune.networks.device import make_deterministic

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PRECISION = torch.bfloat16 if DEVICE == "cuda" else torch.float32
BATCH = 256 if DEVICE == "cuda" else 32
PAIRS = 15
CASES = {1: ((32, 33), (128, 9)), 3: ((16, 33), (64, 9)), 4: ((16, 33), (64, 9)), 8: ((12, 33), (48, 9))}
EQUAL = 1.3  # the aim for as many multiply-adds


@dataclass(frozen=True)
class Row:
    """A prior, its arguments, and how many times as long as the plain layer it may train; None: no aim."""

    prior: str
    args: dict[str, Any] = field(default_factory=dict)
    aim: float | None = EQUAL


ROWS = (
    Row("p4"),
    Row("p4m"),
    Row("separable_p4"),
    Row("separable_p4", {"mirrors": True}),
    Row("relaxed_p4"),
    Row("partial_p4"),
    Row("lambda_sym"),
    Row("mixed_group"),
    Row("orbit_c4"),
    Row("ceconv"),
    Row("softeq"),
    Row("nonstationary", {"terms": 4}, 5),
    Row("nonstationary", {"terms": 8}, 9),
    Row("nonstationary_p4", {"terms": 4}, 5),
    Row("nonstationary_p4", {"terms": 4, "relaxes": "orientation"}),
    Row("nonstationary_exact", {}, None),
)


def plain_layer(prior: str, channels: int) -> nn.Module:
    if prior != "separable_p4":
        return nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
    return nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), depthwise)


def seconds(layer: nn.Module, maps: Tensor, backward: bool) -> float:
    """Of this process alone on a CPU that others use, too; of the clock on a GPU."""
    clock = time.perf_counter if DEVICE == "cuda" else time.process_time
    started = clock()
    with torch.autocast(DEVICE, PRECISION, enabled=DEVICE == "cuda"):
        out = layer(maps)
    if backward:
        out.backward(torch.ones_like(out))
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def ratio(layer: nn.Module, plain: nn.Module, maps: Tensor, images: Tensor, backward: bool) -> float:
    """The median of the layer's time by the plain one's, one after the other."""
    ratios = [seconds(layer, maps, backward) / seconds(plain, images, backward) for _ in range(PAIRS + 2)]
    return statistics.median(ratios[2:])  # the first two warm up


def measure(row: Row) -> None:
    made = catalog.entry("prior", row.prior)(**row.args)
    entries = 3 if made.axis == "hue" else ENTRIES.get(made.axis, 1)
    for channels, side in CASES[entries]:
        layer = made.conv(channels, channels, 3, side=side, padding=1).to(DEVICE)
        plain = plain_layer(row.prior, channels * entries).to(DEVICE)
        images = torch.randn(BATCH, channels * entries, side, side, device=DEVICE)
        if DEVICE == "cuda":
            images = images.contiguous(memory_format=torch.channels_last)
            lay_channels_last(layer)
            lay_channels_last(plain)
        maps = images.unflatten(1, (channels, entries)).requires_grad_()
        images = images.detach().requires_grad_()
        training = ratio(layer, plain, maps, images, True)
        with torch.inference_mode():
            evaluation = ratio(layer.eval(), plain.eval(), maps, images, False)
        said = " ".join([row.prior, *(f"{key}={value}" for key, value in row.args.items())])
        aim = f" (aim {row.aim:g})" if row.aim else ""
        print(
            f"{said}, {channels} channels of {side} px: training {training:.2f}{aim}, evaluation {evaluation:.2f}",
            flush=True,
        )


def main(names: list[str]) -> None:
    make_deterministic(DEVICE)
    print(f"{DEVICE}, {PRECISION}, torch {torch.__version__}, batch {BATCH}, 3 x 3, median of {PAIRS} pairs")
    for row in ROWS:
        if not names or row.prior in names:
            measure(row)


if __name__ == "__main__":
    main(sys.argv[1:])

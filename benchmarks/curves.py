"""Real learning curves for replays: every cell of a grid is trained once and measured after each epoch.

python benchmarks/curves.py tests/curves.csv            (some minutes on one core; what is there is kept)
"""

import csv
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from equitune.config.load import load_study
from equitune.config.trial import TrialConfig
from equitune.data.on_device import DeviceData, to_device
from equitune.data.splits import Splits, load_splits
from equitune.evaluation.image_set import EvaluationSet
from equitune.networks.blueprint import describe
from equitune.networks.build import build_augmentation, build_model
from equitune.networks.device import make_deterministic
from equitune.results.values import Epoch
from equitune.training.epoch import fit
from equitune.training.rung import Rungs

STUDY = """\
study: curves
data: {name: digits, limit: 500}
model: {name: resnet, depth: 8, width: {choice: [3, 5]}}
downsampler: {choose: {stride: {}, blur3: {}}}
augmentation: {translate: {max_px: {choice: [0, 1, 2]}}}
training: {epochs: 9, batch_size: 32, lr: {choice: [5.0e-3, 1.0e-2, 2.0e-2, 4.0e-2]}}
measures: [{name: equivariance, most_images: 64}]
objectives: {accuracy: maximize, translation_substride_error: minimize, parameters: minimize}
search: {sampler: grid}
"""
METRICS = ("accuracy", "loss", "translation_substride_error", "parameters")


def learn(config: TrialConfig, data: DeviceData) -> list[Epoch]:
    """Trains one cell; its epochs, each of which was a rung."""
    rungs = tuple(range(1, config.training.epochs + 1))
    config = config.model_copy(update={"rungs": rungs, "rung_metrics": METRICS})
    validation = EvaluationSet(data.validation.pixels, data.validation.labels, "validation")
    epochs: list[Epoch] = []
    fit(
        build_model(config, data),
        data.train,
        validation,
        build_augmentation(config),
        config.training,
        seed=config.seed,
        on_epoch=epochs.append,
        at_rung=Rungs(config, validation, describe(config, data.data_shape).cost).metrics,
    )
    return epochs


def head(splits: Splits) -> str:
    return (
        f"# benchmarks/curves.py: digits, {len(splits.train)} training images, validation split of "
        f"{len(splits.validation)}, measures on at most 64 of them, seed 0, one replicate; CPU, torch "
        f"{torch.__version__}, numpy {np.__version__}; seconds beside other programs\n"
    )


def main() -> None:
    path = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder) / "curves.yaml"
        study.write_text(STUDY)
        spec = load_study(study)
    splits = load_splits(spec.data)
    data = to_device(splits, "cpu")
    make_deterministic("cpu")
    names = list(spec.parameters())
    if not path.exists():
        path.write_text(head(splits) + ",".join([*names, "epoch", "seconds", *METRICS]) + "\n")
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    known = {tuple(row[: len(names)]) for row in csv.reader(lines[1:])}
    for number, cell in enumerate(spec.cells):
        values = [str(cell[name]) for name in names]
        if tuple(values) in known:
            continue
        config = spec.suggest(number, lambda name, distribution, cell=cell: cell[name])  # type: ignore[misc]
        rows = [
            [*values, epoch.epoch, f"{epoch.train_s:.3f}", *(f"{epoch.metrics[name]:.4g}" for name in METRICS)]
            for epoch in learn(config, data)
        ]
        with path.open("a") as file:  # a cell in one write
            file.write("".join(",".join(map(str, row)) + "\n" for row in rows))
            os.fsync(file.fileno())
        print(number, *values, rows[-1][len(names) :], flush=True)


if __name__ == "__main__":
    main()

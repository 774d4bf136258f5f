"""Does augmentation by shifts teach translation equivariance? Two arms, five seeds each, on three data sets.

EQUITUNE_DATA=... python benchmarks/augmentation.py [DATASET ...]

The finding of 2304.02628 that a measurement of trained networks must show: with shifts of the training images the
class scores move less under shifts, seed by seed. MNIST and Fashion-MNIST are read from the data root.
"""

import sys

from equitune.config.space import Call
from equitune.config.study import filled
from equitune.config.trial import DataConfig, TrainingConfig, TrialConfig
from equitune.data.on_device import to_device
from equitune.data.splits import load_splits
from equitune.training.run import run_trial

SEEDS = range(5)
DATA = {
    "digits": DataConfig(name="digits", args={"size": 16}),
    "mnist": DataConfig(name="mnist", limit=5000),
    "fashion_mnist": DataConfig(name="fashion_mnist", limit=5000),
}
METRICS = ("accuracy", "translation_output_error", "translation_output_correlation", "translation_consistency")


def trial(data: DataConfig, seed: int, augmented: bool) -> TrialConfig:
    shift = filled("augmentation", Call(name="translate", args={"max_px": 3.0}))
    return TrialConfig(
        study="augmentation",
        number=seed,
        seed=seed,
        params={},
        data=data,
        model=filled("model", Call(name="resnet", args={"depth": 8, "width": 8})),
        prior=filled("prior", Call(name="conv")),
        augmentation=(shift,) if augmented else (),
        training=TrainingConfig(epochs=8, batch_size=64, lr=1e-2),
        measures=tuple(filled("measure", Call(name=name)) for name in ("equivariance", "consistency")),
    )


def main(names: list[str]) -> None:
    for name in names or DATA:
        data = to_device(load_splits(DATA[name]), "cpu")
        better = dict.fromkeys(METRICS, 0)
        for seed in SEEDS:
            arms = [run_trial(trial(DATA[name], seed, augmented), data).metrics for augmented in (False, True)]
            for metric in METRICS:
                without, with_shifts = (arm[metric] for arm in arms)
                higher = with_shifts.value > without.value
                better[metric] += higher != metric.endswith("error")
                print(
                    f"{name}, seed {seed}, {metric}: {without.value:.4f} ± {without.stderr:.4f} without, "
                    f"{with_shifts.value:.4f} ± {with_shifts.stderr:.4f} with shifts (n = {with_shifts.n})",
                    flush=True,
                )
        print(f"{name}: better with shifts in " + ", ".join(f"{metric} {k} of 5" for metric, k in better.items()))


if __name__ == "__main__":
    main(sys.argv[1:])

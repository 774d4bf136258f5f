"""What a search finds for its epochs: hypervolume at equal epochs on replayed curves, beside stock Ray Tune.

python benchmarks/samplers.py recorded            tests/curves.csv: few configurations, really trained
python benchmarks/samplers.py invented            a formula: a continuous space of six parameters

Stock is OptunaSearch for several objectives with ASHAScheduler on the accuracy, both as they come, driven by hand under
the same virtual clock. Only trials that trained to their end count, for everybody.
"""

import contextlib
import csv
import heapq
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
from curves import STUDY
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch
from scipy.special import stdtrit

from equitune.analysis.hypervolume import hypervolume
from equitune.config.load import load_study
from equitune.config.space import Choice, Distribution, IntRange
from equitune.config.study import StudySpec
from equitune.config.trial import TrialConfig
from equitune.records.folder import StudyFolder
from equitune.records.reader import StudyReader
from equitune.search.replay import Curves, recorded_curves, replay

TABLE = Path(__file__).parent.parent / "tests" / "curves.csv"
OBJECTIVES = ("accuracy", "translation_substride_error")
OBJECTIVES_YAML = "{accuracy: maximize, translation_substride_error: minimize}"
SIGNS = np.array([-1.0, 1.0])
TRAININGS = (8, 16, 32)  # full ones, whose epochs each may use
WORKERS, SEEDS = 4, 40
DEFAULT, STOPPING, STOCK = "tpe", "tpe, mo_asha", "OptunaSearch, ASHA"
OURS: dict[str, dict[str, object]] = {
    DEFAULT: {},
    STOPPING: {"scheduler": "mo_asha"},
    "random": {"sampler": "random"},
    "random, mo_asha": {"sampler": "random", "scheduler": "mo_asha"},
}
Found = list[tuple[int, list[float]]]  # of each trial that trained to its end: epochs used by then, its objectives


class Enough(Exception):
    """The epochs are used up."""


class Table:
    """The recorded curves, the study whose space they are, and what can be reached there."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.curves, self._study = recorded_curves(path), folder / "curves.yaml"
        self._study.write_text(STUDY)
        rows = list(csv.DictReader(line for line in path.read_text().splitlines() if not line.startswith("#")))
        self.epochs = max(int(row["epoch"]) for row in rows)
        ends = [[float(row[name]) for name in OBJECTIVES] for row in rows if int(row["epoch"]) == self.epochs]
        self.points = np.array(ends) * SIGNS
        self.reference = self.points.max(axis=0)
        self.hypervolume = hypervolume(self.points, self.reference)

    def study(self, **search: object) -> StudySpec:
        return load_study(self._study, settings(search))

    def share(self, found: Found, trainings: int) -> float:
        """Of the table's hypervolume, what was found in the epochs of so many full trainings."""
        ends = [values for used, values in found if used <= trainings * self.epochs]
        return hypervolume(np.array(ends).reshape(-1, 2) * SIGNS, self.reference) / self.hypervolume


class Formula(Table):
    """Invented curves: who is wide or has a low rate learns slowly, shifts make equivariant and cost accuracy."""

    def __init__(self, folder: Path) -> None:
        self.curves, self._study, self.epochs = invented, folder / "curves.yaml", 9
        self._study.write_text(STUDY)
        spec, rng = self.study(), np.random.default_rng(0)
        drawn = (spec.suggest(0, lambda name, values: picked(values, rng)) for _ in range(2000))
        ends = [[list(invented(config))[-1][1][name] for name in OBJECTIVES] for config in drawn]
        self.points = np.array(ends) * SIGNS
        self.reference = np.array([-0.5, 0.8])
        self.hypervolume = hypervolume(self.points, self.reference)

    def study(self, **search: object) -> StudySpec:
        return load_study(self._study, (*SPACE, *settings(search)))


SPACE = (
    "model={name: resnet, depth: {choice: [8, 14, 20]}, width: {int: [2, 32], log: true}}",
    "augmentation={translate: {max_px: {float: [0, 4]}}}",
    "training={epochs: 9, lr: {float: [1e-4, 1e-1], log: true}, weight_decay: {float: [1e-4, 1e-1], log: true}}",
)


def invented(config: TrialConfig) -> Iterator[tuple[float, dict[str, float]]]:
    value = config.params
    shift, rate = value["augmentation.translate.max_px"] / 4, np.log10(value["training.lr"]) + 2
    wide = np.log(value["model.width"] / 14) / 2
    off = wide**2 + (rate - 0.5 * shift) ** 2 / 2 + (np.log10(value["training.weight_decay"]) + 3) ** 2 / 8
    off += {8: 0.05, 14: 0.0, 20: 0.1}[value["model.depth"]]
    blurs = value["downsampler"] == "blur3"
    slow = 1.5 * np.exp(0.5 * wide - 0.6 * min(rate, 0.5)) * (1 + shift)
    for epoch in range(1, 10):
        untaught = np.exp(-epoch / slow)
        accuracy = (0.97 - 0.25 * off - 0.2 * shift**2 - 0.02 * blurs) * (1 - 0.9 * untaught)
        error = 0.05 + 0.5 * (1 - shift) ** 2 * (0.6 if blurs else 1) + 0.15 * off + 0.2 * untaught
        yield 1.0 + abs(wide), {"accuracy": float(max(accuracy, 0.1)), "translation_substride_error": float(error)}


def picked(values: Distribution, rng: np.random.Generator) -> Any:
    """A value at random."""
    kind = optuna_distribution(values)
    if isinstance(kind, optuna.distributions.CategoricalDistribution):
        return kind.choices[rng.integers(len(kind.choices))]
    low, high = (np.log(kind.low), np.log(kind.high)) if kind.log else (kind.low, kind.high)  # type: ignore[attr-defined]
    value = rng.uniform(low, high)
    value = float(np.exp(value)) if kind.log else float(value)  # type: ignore[attr-defined]
    return round(value) if isinstance(kind, optuna.distributions.IntDistribution) else value


def optuna_distribution(values: Distribution) -> optuna.distributions.BaseDistribution:
    if isinstance(values, Choice):
        return optuna.distributions.CategoricalDistribution(values.choice)
    low, high = values.bounds
    if isinstance(values, IntRange):
        return optuna.distributions.IntDistribution(int(low), int(high), log=values.log)
    return optuna.distributions.FloatDistribution(low, high, log=values.log)


def settings(search: dict[str, object]) -> tuple[str, str]:
    """The changes of a study's file that these settings of its search are."""
    given = {"trials": 1000, "sampler": "tpe"} | search
    text = ", ".join(f"{name}: {value}" for name, value in given.items())
    return f"search={{{text}}}", f"objectives={OBJECTIVES_YAML}"


def ours(spec: StudySpec, curves: Curves, most_epochs: int, folder: StudyFolder) -> Found:
    used = 0

    def counted(config: TrialConfig) -> Iterator[tuple[float, Any]]:
        nonlocal used
        for seconds, metrics in curves(config):
            used += 1
            if used > most_epochs:
                raise Enough
            yield seconds, metrics

    with contextlib.suppress(Enough):
        replay(spec, folder, counted, workers=WORKERS)
    study = StudyReader(folder).read()
    times = np.sort([epoch.time for trial in study.trials for epoch in trial.epochs])
    complete = [trial for trial in study.trials if trial.state == "COMPLETE"]
    return [
        (int(np.searchsorted(times, trial.epochs[-1].time, "right")),
         [float(trial.metrics[name].value or 0) for name in OBJECTIVES])
        for trial in complete
    ]  # fmt: skip


def stock(spec: StudySpec, curves: Curves, epochs: int, most_epochs: int, seed: int) -> Found:
    np.random.seed(seed)  # ASHAScheduler draws from it
    space = {name: optuna_distribution(values) for name, values in spec.parameters().items()}
    search = OptunaSearch(space, metric=list(OBJECTIVES), mode=["max", "min"], seed=seed)
    scheduler = ASHAScheduler(metric="accuracy", mode="max", max_t=epochs, grace_period=1, reduction_factor=3)
    found: Found = []
    events: list[tuple[float, int, Any, int, list[Any]]] = []
    now, used, order, ids = 0.0, 0, count(), count()
    while used < most_epochs:
        while len(events) < WORKERS:
            trial = SimpleNamespace(trial_id=str(next(ids)))
            picked = flat(search.suggest(trial.trial_id) or {})
            curve = list(curves(SimpleNamespace(params=picked)))  # type: ignore[arg-type]
            scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
            heapq.heappush(events, (now + curve[0][0], next(order), trial, 1, curve))
        now, _, trial, epoch, curve = heapq.heappop(events)
        used += 1
        result = {"training_iteration": epoch, **curve[epoch - 1][1]}
        decision = scheduler.on_trial_result(None, trial, result)  # type: ignore[arg-type]
        search.on_trial_result(trial.trial_id, result)
        if epoch == len(curve):
            found.append((used, [result[name] for name in OBJECTIVES]))
        if epoch == len(curve) or decision == TrialScheduler.STOP:
            search.on_trial_complete(trial.trial_id, result)
        else:
            heapq.heappush(events, (now + curve[epoch][0], next(order), trial, epoch + 1, curve))
    return found


def flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """OptunaSearch makes of `model.width` what it likes; here names are whole again."""
    pairs: dict[str, Any] = {}
    for name, value in nested.items():
        pairs |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return pairs


def interval(values: np.ndarray) -> str:
    """The mean with Student's 95 % interval."""
    half = float(stdtrit(len(values) - 1, 0.975)) * values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():+.4f} [{values.mean() - half:+.4f}, {values.mean() + half:+.4f}]"


def main() -> None:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    shares: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory(dir=memory) as root:
        table = Formula(Path(root)) if sys.argv[1:] == ["invented"] else Table(TABLE, Path(root))
        most = max(TRAININGS) * table.epochs
        print(
            f"{len(table.points)} configurations, hypervolume {table.hypervolume:.4f}, worst {table.reference * SIGNS}"
        )
        for seed in range(SEEDS):
            runs = {
                name: ours(
                    table.study(seed=seed, **search), table.curves, most, StudyFolder(Path(root) / f"{seed} {name}")
                )
                for name, search in OURS.items()
            }
            runs[STOCK] = stock(table.study(), table.curves, table.epochs, most, seed)
            for name, found in runs.items():
                shares.setdefault(name, []).append([table.share(found, n) for n in TRAININGS])
            print(
                seed,
                {name: (len(found), np.round(shares[name][-1], 3).tolist()) for name, found in runs.items()},
                flush=True,
            )
    print("share of the table's hypervolume at the epochs of", TRAININGS, "trainings; paired difference to the default")
    found = {name: np.array(each) for name, each in shares.items()}
    for name, each in found.items():
        print(f"{name:20s}", np.round(each.mean(axis=0), 3).tolist(), *map(interval, (each - found[DEFAULT]).T))
    print(f"{STOPPING} minus {STOCK}:", *map(interval, (found[STOPPING] - found[STOCK]).T))


if __name__ == "__main__":
    main()

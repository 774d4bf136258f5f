"""What a trial costs the search itself as the study grows: replayed trials, processor time and memory of each thousand.

python benchmarks/scale.py [SAMPLER TRIALS ...]         (without arguments about ten minutes on one core)
"""

import os
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna

from equitune.config.load import load_study
from equitune.config.trial import TrialConfig
from equitune.records.folder import StudyFolder
from equitune.records.reader import StudyReader
from equitune.search.engine import Engine
from equitune.search.replay import replay

RUNS = ("random", "10000", "tpe", "10000", "nsga2", "4000")
BLOCK = 1000  # trials
STUDY = """\
study: scale
model: {choose: {resnet: {depth: {choice: [8, 14]}, width: {int: [2, 32], log: true}}, cnn: {width: {int: [4, 64]}}}}
augmentation: {translate: {max_px: {float: [0, 4]}}}
training: {epochs: 2, lr: {float: [1e-4, 1e-1], log: true}, weight_decay: {float: [1e-4, 1e-1], log: true}}
measures: [equivariance]
objectives: {accuracy: maximize, translation_error: minimize}
"""


def learns(config: TrialConfig) -> Iterator[tuple[float, dict[str, float]]]:
    """A smooth trade-off: shifts make equivariant and cost accuracy, width and rate have a best value."""
    params, best = config.params, config.params["model"] == "resnet"
    width = params.get("model.resnet.width", params.get("model.cnn.width"))
    shift, rate = params["augmentation.translate.max_px"] / 4, params["training.lr"]
    off = abs(width - 16) / 48 + abs((rate / 1e-2) ** 0.5 - 1) / 4 + 0.1 * (not best)
    for epoch in (1, 2):
        accuracy = 0.95 - 0.2 * off - 0.2 * shift**2 - 0.1 / epoch
        error = 0.05 + 0.6 * (1 - shift) ** 2 + 0.2 * off + 0.1 / epoch
        yield 1.0, {"accuracy": accuracy, "translation_error": error, "loss": 1 - accuracy}


class Stopwatch:
    """Processor seconds of functions, by name and block of trials."""

    def __init__(self) -> None:
        self.seconds: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))

    def wrap(self, name: str, function: Callable[..., Any], number: Callable[..., int]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            started = time.process_time()
            result = function(*args)
            self.seconds[name][number(*args, result) // BLOCK] += time.process_time() - started
            return result

        return timed


def measured(sampler: str, trials: int, root: Path) -> None:
    path = root / "study.yaml"
    path.write_text(STUDY)
    spec = load_study(path, (f"search.sampler={sampler}", f"search.trials={trials}"))
    folder, watch = StudyFolder(root / sampler), Stopwatch()
    started, mib, num_ended = time.process_time(), [resident_mib()], 0
    total = watch.seconds["all"]

    def ended(engine: Engine, number: int, result: Any) -> None:
        nonlocal started, num_ended
        originals["ended"](engine, number, result)
        num_ended += 1
        if num_ended % BLOCK == 0:
            total[num_ended // BLOCK - 1], started = time.process_time() - started, time.process_time()
            mib.append(resident_mib())
            ms = {name: 1e3 * by_block[num_ended // BLOCK - 1] / BLOCK for name, by_block in watch.seconds.items()}
            print(f"  {num_ended:6d}", *(f"{name} {value:.2f} ms" for name, value in ms.items()),
                  f"{mib[-1] - mib[-2]:.1f} MiB", flush=True)  # fmt: skip

    originals = {name: getattr(Engine, name) for name in ("next_task", "ended")}
    latest = 0

    def number_of(engine: Engine, task: Any) -> int:
        nonlocal latest
        latest = getattr(task, "number", latest)
        return latest

    Engine.next_task = watch.wrap("ask", originals["next_task"], number_of)  # type: ignore[method-assign]
    Engine.ended = watch.wrap("tell", ended, lambda engine, number, *rest: number)  # type: ignore[method-assign]
    print(f"{sampler}, {trials} trials, a trial of each thousand:")
    replay(spec, folder, learns, workers=8)
    for name, original in originals.items():
        setattr(Engine, name, original)
    for name, by_block in watch.seconds.items():
        blocks = [by_block[index] for index in range(trials // BLOCK)]
        print(f"  {name}: the last thousand {blocks[-1] / blocks[0]:.2f} times the first")
    print(f"  memory: {(mib[-1] - mib[1]) / max(len(mib) - 2, 1):.1f} MiB a thousand, the last {mib[-1] - mib[-2]:.1f}")
    reader = StudyReader(folder)
    for what in ("first", "again"):
        started = time.process_time()
        reader.read()
        print(f"  reading the whole study, {what}: {time.process_time() - started:.2f} s")


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    arguments = sys.argv[1:] or RUNS
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # the search's own cost, not the disk's
    for sampler, trials in zip(arguments[::2], arguments[1::2], strict=True):
        with tempfile.TemporaryDirectory(dir=memory) as root:
            measured(sampler, int(trials), Path(root))


if __name__ == "__main__":
    main()

"""What a second worker adds in memory: the data of a study lie once in Ray's object store, and every worker maps them.

python benchmarks/memory.py
"""

import gc
from pathlib import Path

import numpy as np

from equitune.config.resources import Resources
from equitune.data.splits import Split, Splits
from equitune.driver.cluster import connected
from equitune.driver.ray_address import prepare

MIB = 2**20


def cifar_like(*sizes: int) -> Splits:
    rng = np.random.default_rng(0)
    split = [Split(rng.integers(0, 256, (n, 3, 32, 32), np.uint8), rng.integers(0, 10, n)) for n in sizes]
    return Splits(*split, tuple(map(str, range(10))), (0.5,) * 3, (0.25,) * 3, f"random {sizes}")


def private_mib() -> float:
    """Memory that this process shares with no other."""
    gc.collect()
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1024


def main() -> None:
    prepare(None)
    small, splits = cifar_like(10, 10, 10), cifar_like(40_000, 10_000, 10_000)
    size = sum(split.pixels.nbytes + split.labels.nbytes for split in (splits.train, splits.validation)) / MIB
    with connected(Resources(), None) as slots:
        import ray

        @ray.remote(num_cpus=slots.cpus / 2)
        class Worker:
            def reads(self, splits: Splits) -> tuple[float, int]:
                from equitune.driver.run_here import device_data

                data = device_data(splits, "cpu")
                touched = sum(int(part.pixels[::, 0, ::8, 0].max()) for part in (data.train, data.validation))
                return private_mib(), touched  # every page has been read

        workers = [Worker.remote() for _ in range(2)]
        before, after = (
            ray.get([worker.reads.remote(shared) for worker in workers]) for shared in map(ray.put, (small, splits))
        )
        for number, ((alone, _), (reading, _)) in enumerate(zip(before, after, strict=True), 1):
            print(
                f"worker {number}: {alone:.0f} MiB of its own, and {reading - alone:.1f} MiB more "
                f"with {size:.0f} MiB of images ({(reading - alone) / size:.3f} of a copy)"
            )


if __name__ == "__main__":
    main()

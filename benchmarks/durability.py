"""What it costs that a study survives a power cut: the search of the README with its flushes, and without any.

python benchmarks/durability.py [PAIRS]      (three pairs by default: eight minutes on two cores; on TMPDIR's disk)

A pair is one search of each kind, the first of them in turn. The twin without flushes does without Optuna's, too.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median, stdev

STUDY = Path(__file__).parent.parent / "searchspaces" / "capacity.yaml"
# Read by every process of the search, Ray's workers included, as it starts.
START = """\
import os, time
real, tally = os.fsync, os.environ["FLUSH_TALLY"]
def timed(descriptor):
    began = time.perf_counter()
    real(descriptor)
    with open(f"{tally}/{os.getpid()}", "a") as file:
        file.write(f"{time.perf_counter() - began}\\n")
os.fsync = timed if os.environ["FLUSH"] == "all" else lambda descriptor: None
"""


def search(flush: str) -> tuple[float, list[float]]:
    """Seconds of the whole command, and those of each flush in any of its processes."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "sitecustomize.py").write_text(START)
        (folder / "tally").mkdir()
        paths = f"{folder}:{os.environ.get('PYTHONPATH', '')}"
        environment = os.environ | {"PYTHONPATH": paths, "FLUSH": flush, "FLUSH_TALLY": str(folder / "tally")}
        began = time.monotonic()
        with (folder / "output.txt").open("w") as output:
            command = [sys.executable, "-m", "equitune", "search", str(STUDY), "--no-register"]
            subprocess.run(command, check=True, cwd=folder, env=environment, stdout=output, stderr=output)
        took_s = time.monotonic() - began
        return took_s, [float(line) for path in (folder / "tally").iterdir() for line in path.read_text().split()]


def main() -> None:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    ratios, shares = [], []
    for number in range(pairs):
        found = {kind: search(kind) for kind in (("all", "none") if number % 2 else ("none", "all"))}
        with_s, flushes = found["all"]
        ratios.append(with_s / found["none"][0])
        shares.append(sum(flushes) / with_s)
        print(
            f"with flushes {with_s:.1f} s, without {found['none'][0]:.1f} s: {ratios[-1]:.3f}; {len(flushes)} flushes "
            f"of {1000 * median(flushes):.2f} ms (median; longest {1000 * max(flushes):.0f} ms) lasted "
            f"{sum(flushes):.2f} s in all processes together: {shares[-1]:.2%} of the search",
            flush=True,
        )
    spread = f" ± {stdev(ratios):.3f}" if pairs > 1 else ""
    print(f"ratio {mean(ratios):.3f}{spread}, share of the flushes {mean(shares):.2%} (at most 3 %)")


if __name__ == "__main__":
    main()

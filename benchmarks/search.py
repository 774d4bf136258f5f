"""The main line, whole: `searchspaces/capacity.yaml` beside a textbook Ray Tune script that does the same trials.

python benchmarks/search.py            (about four minutes on two cores)
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from equitune.config.load import load_study

HERE = Path(__file__).parent
STUDY = HERE.parent / "searchspaces" / "capacity.yaml"


def timed(command: list[str], folder: Path) -> float:
    started = time.monotonic()
    with (folder / "output.txt").open("w") as output:
        subprocess.run(command, check=True, cwd=folder, stdout=output, stderr=output)
    return time.monotonic() - started


def ours(folder: Path) -> tuple[float, list[dict], list[float]]:
    """Seconds of the whole command, its trials, and each trial's seconds outside building, training and measuring."""
    seconds = timed([sys.executable, "-m", "equitune", "search", str(STUDY)], folder)
    shown = subprocess.run(
        [sys.executable, "-m", "equitune", "show", "capacity", "--json"], check=True, cwd=folder, capture_output=True
    )
    outside = []
    for trial in sorted((folder / "studies" / "capacity" / "trials").iterdir()):
        result = json.loads((trial / "result.json").read_text())
        lasted = (trial / "result.json").stat().st_mtime - (trial / "config.json").stat().st_mtime
        outside.append(lasted - sum(result["seconds"].values()))
    return seconds, json.loads(shown.stdout)["trials"], outside


def textbook(folder: Path, trials: list[dict]) -> float:
    configurations = [{name.split(".")[1]: value for name, value in trial["params"].items()} for trial in trials]
    epochs = str(load_study(STUDY, ()).training.plain()["epochs"])
    command = [sys.executable, str(HERE / "textbook.py"), json.dumps(configurations), str(folder), "--epochs", epochs]
    return timed(command, folder)


def main() -> None:
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        seconds, trials, outside = ours(Path(first))
        peer_seconds = textbook(Path(second), trials)
    accuracies = [trial["metrics"]["accuracy"]["value"] for trial in trials]
    print(f"search: {seconds:.0f} s for {len(trials)} trials, {3600 * len(trials) / seconds:.0f} trials an hour")
    print(f"  best validation accuracy {max(accuracies):.4f}, front of {sum(trial['front'] for trial in trials)}")
    print(f"  outside training and measuring: median {median(outside[1:]):.2f} s a trial after the first (at most 0.3)")
    print(f"textbook script, the same trials: {peer_seconds:.0f} s")
    print(f"trials an hour, ours over the textbook's: {peer_seconds / seconds:.2f} (at least 3)")


if __name__ == "__main__":
    main()

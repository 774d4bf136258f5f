"""Many machines: trials an hour and slot of a study over 8 simulated nodes, with those on one, and the driver's memory.

python benchmarks/nodes.py [TRIALS NODES]          (500 trials over 8 nodes: ten minutes on an otherwise idle machine)

A node is a raylet with its agents on this machine, of 2 slots; the head has none. What trials compute would be limited
by this machine's cores, on a cluster by each node's own: so a trial sleeps instead, about 5 s, writes the files and
makes the reports of a real one, and imports no torch. The driver, Ray's daemons and the workers' processes are real,
and share the cores: how busy these were is printed beside.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from scale import STUDY, learns

from equitune.config.trial import TrialConfig
from equitune.records.folder import StudyFolder, TrialFolder, read_json, write_json
from equitune.results.values import Epoch, Measurement, TrialResult

TRIALS, NODES, SLOTS = 500, 8, 2
EPOCHS, EPOCH_S = 5, 1.0
SEED = 0
BLOCK = 100  # trials, over which the driver's memory is averaged
MEMORY = 80_000_000  # bytes of each node's object store
ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}


def sleeping(config: dict[str, Any], token: str, **others: Any) -> None:
    """In place of `driver/worker.py::trainable`, with its files and reports."""
    from ray import tune

    folder = TrialFolder(Path(config["folder"]), token=token)
    if config.get("test"):
        tested = Measurement(value=0.5, n=1, split="test", unit="1")
        tune.report({"test": json.dumps({"accuracy": tested.model_dump(mode="json")})})
        return
    began, trial = time.time(), TrialConfig.from_json_text(config["trial"])
    pace_s = EPOCH_S * random.Random(trial.number).uniform(0.8, 1.2)
    *_, (_, metrics) = learns(trial)
    folder.claim()
    for epoch in range(1, EPOCHS + 1):
        time.sleep(pace_s)
        numbers = {"train_loss": 1.0, "validation_loss": 1.0, "validation_accuracy": 0.5, "lr": 0.1}
        folder.append_epoch(Epoch(epoch=epoch, time=time.time(), train_s=pace_s, images_per_s=1.0, **numbers))
        tune.report({"epoch": epoch, "metrics": "{}"})
    measured = {name: Measurement(value=value, n=1, split="validation", unit="1") for name, value in metrics.items()}
    at = {"began": str(began), "ended": str(time.time()), "slept": str(EPOCHS * pace_s), "worker": str(os.getpid())}
    result = TrialResult(number=trial.number, state="COMPLETE", metrics=measured, provenance=at)
    folder.require_held()
    write_json(folder.result, result.model_dump(mode="json"))
    tune.report({"result": result.model_dump_json()})


def drive(*arguments: str) -> None:
    """`equitune search`, whose trials sleep."""
    from equitune.cli import main
    from equitune.driver import worker as trainable

    trainable.trainable = sleeping
    sys.argv[1:] = ["search", *arguments]
    main()


@dataclass(frozen=True)
class Span:
    """A trial: who ran it, when (Unix time, seconds), and how long it slept of that, which stands for its training."""

    worker: str
    began: float
    ended: float
    slept_s: float


@dataclass(frozen=True)
class Ran:
    """What was seen of a study."""

    slots: int
    spans: list[Span]
    driver_mib: list[float]  # when each trial had ended, in the order of their ends
    busy: float  # share of this machine's cores
    driver_s: float  # processor time of the driver, while trials ran

    @property
    def window(self) -> tuple[float, float]:
        """While every slot could be served: from the begin of the last worker's first trial to that of the last trial.

        Before it the workers' processes start, one after another on this machine's cores.
        """
        first: dict[str, float] = {}
        for span in self.spans:
            first[span.worker] = min(span.began, first.get(span.worker, span.began))
        return max(first.values()), max(span.began for span in self.spans)

    @property
    def training(self) -> float:
        """The share of the slots' time that was sleep, within the window: the rest is what the search costs."""
        begin, end = self.window
        slept_s = 0.0
        for span in self.spans:
            within = max(0.0, min(span.ended, end) - max(span.began, begin))
            slept_s += span.slept_s * within / (span.ended - span.began)
        return slept_s / (end - begin) / self.slots

    @property
    def an_hour(self) -> float:
        """Trials an hour and slot."""
        return 3600 * self.training / mean(span.slept_s for span in self.spans)

    @property
    def gaps_s(self) -> list[float]:
        """How long each worker waited for its next trial, in order."""
        ends: dict[str, float] = {}
        gaps = []
        for span in sorted(self.spans, key=lambda span: span.began):
            if span.worker in ends:
                gaps.append(span.began - ends[span.worker])
            ends[span.worker] = span.ended
        return sorted(gaps)


def measured(trials: int, nodes: int, root: Path) -> Ran:
    """Runs a study over so many nodes."""
    from ray.cluster_utils import Cluster

    file, folder = root / f"{nodes}.yaml", StudyFolder(root / "scale")
    file.write_text(STUDY)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=SLOTS, object_store_memory=MEMORY)
        cluster.wait_for_nodes()
        changes = (f"search.trials={trials}", f"search.seed={SEED}")
        settings = [part for change in changes for part in ("--set", change)]
        command = [sys.executable, __file__, "--drive", str(file), "--root", str(root), "--address", cluster.address]
        with (root / "output.txt").open("w") as output:
            driver = subprocess.Popen([*command, *settings], stdout=output, stderr=output, cwd=root)
            mib, machine, processor = watched(driver, folder, trials)
        assert driver.returncode == 0, (root / "output.txt").read_text()[-2000:]
    finally:
        cluster.shutdown()
    ended = [read_json(trial.result)["provenance"] for trial in folder.trials()]
    spans = [Span(at["worker"], float(at["began"]), float(at["ended"]), float(at["slept"])) for at in ended]
    return Ran(nodes * SLOTS, spans, mib, machine, processor)


def watched(driver: "subprocess.Popen[bytes]", folder: StudyFolder, trials: int) -> tuple[list[float], float, float]:
    """The driver's memory in MiB whenever a trial has ended; the cores' busy share and its own time meanwhile."""
    mib: list[float] = []
    begun = last = None
    while driver.poll() is None:
        num_ended = len(list(folder.path.glob("trials/*/result.json")))
        if any(folder.path.glob("trials/*/epochs.jsonl")) and num_ended < trials:
            last = machine_s(), driver_s(driver.pid)
            begun = begun or last
        mib += [resident_mib(driver.pid)] * (num_ended - len(mib))
        time.sleep(0.5)
    assert begun
    assert last
    (busy, total), (first_busy, first_total) = last[0], begun[0]
    return mib, (busy - first_busy) / (total - first_total), last[1] - begun[1]


def machine_s() -> tuple[float, float]:
    """Seconds of all cores: at work, and in all."""
    user, nice, system, idle, wait, *rest = (int(word) for word in Path("/proc/stat").read_text().split()[1:9])
    total = user + nice + system + idle + wait + sum(rest)
    return total - idle - wait, total


def driver_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    """The driver's own memory: without what it shares with Ray's object store."""
    pages = [int(word) for word in Path(f"/proc/{pid}/statm").read_text().split()]
    return (pages[1] - pages[2]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def shown(nodes: int, ran: Ran) -> None:
    begin, end = ran.window
    whole_s = max(span.ended for span in ran.spans) - min(span.began for span in ran.spans)
    longer_s = [span.ended - span.began - span.slept_s for span in ran.spans]
    gaps = ran.gaps_s
    print(f"{nodes} node{'s' if nodes > 1 else ''}: {len(ran.spans)} trials on {ran.slots} slots in {whole_s:.0f} s")
    print(f"  {ran.an_hour:.0f} trials an hour and slot, {ran.training:.1%} of it training (over {end - begin:.0f} s)")
    print(f"  outside training: {median(longer_s):.2f} s in a trial (median), {median(gaps):.2f} s until the next, "
          f"95 % below {gaps[int(0.95 * len(gaps))]:.2f} s")  # fmt: skip
    print(f"  this machine's cores were {ran.busy:.0%} busy; the driver took {ran.driver_s / whole_s:.0%} of one, "
          f"{1000 * ran.driver_s / len(ran.spans):.0f} ms a trial", flush=True)  # fmt: skip


def main() -> None:
    trials, nodes = (int(word) for word in sys.argv[1:]) if sys.argv[1:] else (TRIALS, NODES)
    os.environ.update(ENVIRONMENT)
    ran = {}
    for number in (1, nodes):
        with tempfile.TemporaryDirectory() as root:
            ran[number] = measured(round(trials * number / nodes), number, Path(root))
        shown(number, ran[number])
    many = ran[nodes]
    print(f"trials an hour and slot, {nodes} nodes over one: {many.an_hour / ran[1].an_hour:.3f} (at least 0.9)")
    blocks = [mean(many.driver_mib[start : start + BLOCK]) for start in range(0, len(many.driver_mib), BLOCK)]
    print(f"the driver's memory over each {BLOCK} trials: {', '.join(f'{mib:.0f}' for mib in blocks)} MiB")


if __name__ == "__main__":
    drive(*sys.argv[2:]) if sys.argv[1:2] == ["--drive"] else main()

"""A study on a cluster of hosts: its driver, the trials that run where, and what must be true of it at the end."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from backends import BUCKET, Database, fetched
from chaos import trial_of
from hosts import Host, until
from pods import PACKAGE, TOKEN, Cluster

from equitune.analysis.pareto import front
from equitune.records.folder import StudyFolder, read_json
from equitune.records.reader import StudyReader

EPOCHS, TRIALS = 150, 4
STUDY = f"""\
study: small
data: {{name: digits, limit: 200}}
model: {{name: resnet, depth: 8, width: {{int: [2, 4]}}}}
augmentation: {{translate: {{max_px: {{float: [0, 2]}}}}}}
training: {{epochs: {EPOCHS}, batch_size: 32, lr: {{float: [1e-3, 1e-2], log: true}}}}
measures: [{{name: equivariance, most_images: 32}}]
objectives: {{accuracy: maximize, translation_error: minimize}}
search: {{sampler: random, trials: {TRIALS}, seed: 3}}
resources: {{cpu: 2, concurrent: 2}}
"""


class Study:
    """`equitune search` on a host of the cluster, as Ray's Jobs API would start it there."""

    def __init__(
        self, cluster: Cluster, database: Database, root: Path, name: str, *settings: str, in_bucket: bool = False
    ) -> None:
        """`in_bucket`: its folder lies in the object store, and comes to this machine when it has ended."""
        self.cluster, self.database, self.name, self._in_bucket = cluster, database, name, in_bucket
        self.folder = StudyFolder(root / name)
        self.file, self.log = root / f"{name}.yaml", root / f"{name}.log"
        root.mkdir(exist_ok=True)
        self.file.write_text(STUDY.replace("study: small", f"study: {name}"))
        self._settings = [part for setting in settings for part in ("--set", setting)]
        self._driver: subprocess.Popen[bytes] | None = None
        self._began = self._ended = 0.0

    def start(self, host: Host, **changes: str) -> None:
        command = [sys.executable, "-m", "equitune", "search", str(self.file), "--address", "auto", *self._settings]
        command += ["--root", f"s3://{BUCKET}"] if self._in_bucket else []
        self._began = self._began or time.monotonic()
        self._runs(host.popen(command, self.cluster.environment(host) | changes, self.log))

    def _runs(self, driver: "subprocess.Popen[bytes]") -> None:
        """Takes the time of its end."""

        def wait() -> None:
            driver.wait()
            self._ended = time.monotonic()

        self._driver, self._watch = driver, threading.Thread(target=wait, daemon=True)
        self._watch.start()

    def submit(self) -> None:
        """Through Ray's Jobs API, as from a laptop; `wait` then waits for the job."""
        network, url = self.cluster.network, f"http://{self.cluster.head.address}:8265"
        program = ["--program", f"{sys.executable} -m equitune", "--cluster", url, "--wait"]
        command = [sys.executable, "-m", "equitune", "submit", str(self.file), *self._settings, *program]
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "PYTHONPATH": str(PACKAGE)}
        self._began = self._began or time.monotonic()
        with self.log.open("ab") as log:
            self._runs(
                subprocess.Popen(
                    [*network.within, *command], env=os.environ | own, stdout=log, stderr=subprocess.STDOUT
                )
            )

    @property
    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def wait(self, timeout_s: float = 400) -> tuple[int, float]:
        """The exit code, and the seconds from its beginning to its end."""
        assert self._driver
        self._watch.join(timeout_s)
        assert not self._watch.is_alive(), f"{self.name} does not end:\n{self.output}"
        code, took_s = self._driver.returncode, self._ended - self._began
        if self._in_bucket:
            fetched(self.cluster.network, self.name, self.folder.path)
        return code, took_s

    def is_over(self) -> bool:
        return self._driver is None or self._driver.poll() is not None

    def until(self, condition: Any, what: str, timeout_s: float = 180) -> float:
        """Waits, while the driver lives; returns the seconds."""

        def holds() -> bool:
            if condition():
                return True
            assert not self.is_over(), f"ended before {what}:\n{self.output}"
            return False

        return until(holds, what, timeout_s)

    def epochs(self, number: int) -> list[int]:
        """Those recorded of a trial, as they stand there."""
        path = self.folder.trial(number).epochs
        return [json.loads(line)["epoch"] for line in path.read_text().splitlines()] if path.exists() else []

    def training_on(self, host: Host) -> dict[int, int]:
        """The trials that train on a host, with their processes."""
        workers = [pid for pid, command in host.processes() if command.startswith("ray::ImplicitFunc")]
        found = {pid: trial_of(pid) for pid in workers}
        return {number: pid for pid, number in found.items() if number is not None}

    def trained(self, host: Host, epochs: int = 3) -> int:
        """Waits until a trial trains on a host and has come some way; returns its number."""
        numbers: list[int] = []

        def some_way() -> bool:
            numbers[:] = [number for number in self.training_on(host) if len(self.epochs(number)) >= epochs]
            return bool(numbers)

        self.until(some_way, f"a trial trains on {host.name}")
        return numbers[0]

    def claims(self) -> dict[int, str]:
        """Who trains each trial, or did at last: another one after each loss."""
        begun = [trial for trial in self.folder.trials() if trial.worker.exists()]
        return {trial.number: read_json(trial.worker)["claim"] for trial in begun}

    def hosts_of_trials(self) -> list[str]:
        """Where each trial was trained at last."""
        return [read_json(trial.worker)["host"] for trial in self.folder.trials()]

    def answer(self) -> list[dict[str, Any]]:
        """What the study found: parameters, objectives and place on the front of each trial."""
        study = StudyReader(self.folder).read()
        best = {trial.number for trial in front(study)}
        return [
            {"number": trial.number, "state": trial.state, "params": trial.config.params, "front": trial.number in best}
            | {name: trial.metrics[name].value for name in ("accuracy", "translation_error")}
            | {"test": {name: metric.value for name, metric in (trial.test or {}).items()}}
            for trial in study.trials
        ]

    def require_whole(self, trials: int = TRIALS, epochs: int = EPOCHS) -> None:
        """Every trial was told exactly once, none is lost, and no epoch is missing; at most one more than once a loss."""
        assert self.database.tellings(self.name) == dict.fromkeys(range(trials), 1)
        assert [trial["number"] for trial in self.answer()] == list(range(trials))
        assert {trial["state"] for trial in self.answer()} == {"COMPLETE"}
        for number in range(trials):
            assert sorted(set(self.epochs(number))) == list(range(1, epochs + 1)), number
            assert not self.folder.trial(number).checkpoint.exists()

    def repeated(self) -> int:
        """The epochs that were trained twice."""
        return sum(len(self.epochs(n)) - len(set(self.epochs(n))) for n in self.folder.numbers())

"""The program as a user types it, its processes, and their deaths. Only processes that a test started are touched."""

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from equitune.config.load import load_study
from equitune.records.folder import StudyFolder, read_json
from equitune.records.reader import StudyReader
from equitune.search.storage import open_storage, storage_at

MARK = "EQUITUNE_TEST_MARK"  # in the environment of all that a test starts, Ray's daemons and workers too


def marked(mark: str) -> dict[int, str]:
    """The processes that carry a mark, with their command lines."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def trial_of(pid: int) -> int | None:
    """The number of the trial that a worker trains: its log is open for as long."""
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                path = Path(os.readlink(link))
                if path.name == "log.txt":
                    return int(path.parent.name)
    return None


class Search:
    """`equitune search`, started again and again on one study."""

    def __init__(self, file: Path, root: Path, *arguments: str) -> None:
        self.folder, self.mark = root / "small", uuid.uuid4().hex
        self._file, self._command = file, [sys.executable, "-m", "equitune", "search", str(file)]
        self._command += ["--root", str(root), *arguments]
        self.process: subprocess.Popen[str] | None = None
        self.output = ""

    def start(self) -> None:
        self.process = subprocess.Popen(
            self._command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self._file.parent,
            start_new_session=True,
            env=os.environ | {MARK: self.mark},
        )
        threading.Thread(target=self._read, args=(self.process,), daemon=True).start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        for line in process.stdout:
            self.output += line

    def is_over(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def wait(self, timeout_s: float) -> int:
        assert self.process
        return self.process.wait(timeout_s)

    def until(self, condition: Callable[[], bool], timeout_s: float = 120) -> bool:
        """Waits; returns False where the program ended before."""
        limit = time.monotonic() + timeout_s
        while not condition():
            if self.is_over():
                return condition()
            assert time.monotonic() < limit, f"waited in vain:\n{self.output}"
            time.sleep(0.02)
        return True

    def num_epochs(self) -> int:
        return sum(len(path.read_bytes().splitlines()) for path in self.folder.glob("trials/*/epochs.jsonl"))

    def workers(self) -> list[int]:
        return [pid for pid, command in marked(self.mark).items() if command.startswith("ray::ImplicitFunc")]

    def daemon(self, name: str) -> int | None:
        """The process of Ray's `raylet` or `gcs_server`; None where it does not run."""
        found = [pid for pid, command in marked(self.mark).items() if command.split(" ")[0].endswith(f"/{name}")]
        return found[0] if found else None

    def kill_driver(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()

    def kill_all(self) -> None:
        for pid in marked(self.mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Chaos:
    """Kills driver and workers of a search at moments that a seed draws, spread over all of its epochs."""

    def __init__(self, search: Search, seed: int, num_epochs: int) -> None:
        self.search, self.random = search, random.Random(seed)
        self.num_epochs = num_epochs
        self.killed: list[str] = []
        self.hits: dict[int, int] = {}  # kills a trial: Tune gives up after some
        self._results: dict[Path, str] = {}

    def run(self, kinds: list[str], most_hits: int) -> None:
        """Makes one kill after another, then lets the study end.

        Args:
            kinds: `worker`; `driver`; `starting`, a driver that has just been started again.
            most_hits: a trial is not hit more often.
        """
        if self.search.process is None:
            self.search.start()
        for index, kind in enumerate(kinds):
            reached = self.num_epochs * (index + self.random.random()) / (len(kinds) + 1)
            if kind == "starting":
                self._sleep(self.random.uniform(0.0, 7.0))
            else:
                assert self.search.until(lambda limit=reached: self.search.num_epochs() >= limit), self.search.output  # type: ignore[misc]
                self._sleep(self.random.uniform(0.0, 0.3))
            self._kill(kind, most_hits)
            self.check_results()
        code = self.search.wait(180)
        self.check_results()
        assert code == 0, self.search.output

    def _kill(self, kind: str, most_hits: int) -> None:
        if kind == "worker":
            limit = time.monotonic() + 60
            while time.monotonic() < limit:
                hit = [(pid, trial) for pid in self.search.workers() if (trial := trial_of(pid)) is not None]
                hit = [(pid, trial) for pid, trial in hit if self.hits.get(trial, 0) < most_hits]
                if hit:
                    pid, trial = self.random.choice(hit)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        self.hits[trial] = self.hits.get(trial, 0) + 1
                        self.killed.append(f"worker of trial {trial}")
                        return
                time.sleep(0.02)
            raise AssertionError(f"no worker to kill:\n{self.search.output}")
        self.killed.append(kind)
        self.search.kill_driver()
        self.search.start()

    def _sleep(self, seconds: float) -> None:
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            self.check_results()
            time.sleep(0.05)

    def check_results(self) -> None:
        """What has been written as a result stays, byte for byte: nothing is trained again."""
        for path in self.search.folder.glob("trials/*/result.json"):
            now = hashlib.sha256(path.read_bytes()).hexdigest()
            assert self._results.setdefault(path, now) == now, f"{path} was written twice"


def answer(folder: Path) -> list[dict[str, Any]]:
    """What a study found: all that `show` prints of each trial, but for what a clock has measured."""
    command = [sys.executable, "-m", "equitune", "show", "small", "--root", str(folder.parent), "--json"]
    trials = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["trials"]
    for trial in trials:
        trial["metrics"].pop("seconds", None)
    return trials


def require_whole(folder: StudyFolder, trials: int, url: str | None = None, epochs: int = 20) -> None:
    """Every trial is there once, told as its folder says, its epochs without a gap."""
    spec = load_study(folder.searchspace, tuple(read_json(folder.study)["overrides"]))
    records = StudyReader(folder).read().trials
    assert [record.number for record in records] == list(range(trials))
    assert {record.state for record in records} == {"COMPLETE"}
    with storage_at(url, folder, spec) as database:
        told = open_storage(folder, spec, database).get_trials()
    assert [trial.number for trial in told] == list(range(trials))
    assert {trial.state.name for trial in told} == {"COMPLETE"}
    for trial, record in zip(told, records, strict=True):
        assert trial.params == record.config.params
        assert trial.values == [record.metrics[name].value for name in spec.objectives]
    for each in folder.trials():
        found = [json.loads(line)["epoch"] for line in each.epochs.read_text().splitlines()]
        assert sorted(set(found)) == list(range(1, epochs + 1)), each.path
        assert not each.checkpoint.exists()


def tellings(journal: Path) -> Counter[int]:
    """How often the end of each trial stands in a journal."""
    from optuna.storages.journal._storage import JournalOperation

    operations = [json.loads(line) for line in journal.read_text().splitlines()]
    finished = [
        operation["trial_id"]
        for operation in operations
        if operation["op_code"] == JournalOperation.SET_TRIAL_STATE_VALUES and operation["state"] != 0
    ]
    return Counter(finished)


def mlflow_states(root: Path) -> Counter[str]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    return Counter(run.info.status for run in client.search_runs([experiment.experiment_id]))

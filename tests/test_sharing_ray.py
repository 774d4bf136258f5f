"""Three searches on a Ray of two CPUs: each gets its turn, and says when it waits. Slow."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray_cluster import REPOSITORY, TOKEN, end, free_port

from equitune.records.folder import StudyFolder
from equitune.records.reader import StudyReader

pytestmark = pytest.mark.slow

TRIALS = 4
STUDY = """\
study: {name}
data: {{name: digits, limit: 200}}
model: {{name: resnet, depth: 8, width: {{int: [2, 4]}}}}
augmentation: {{translate: {{max_px: {{float: [0, 2]}}}}}}
training: {{epochs: 4, batch_size: 32}}
measures: [{{name: equivariance, most_images: 32}}]
objectives: {{accuracy: maximize, translation_error: minimize}}
search: {{sampler: random, trials: {trials}, seed: 3}}
"""


@pytest.fixture
def environment() -> dict[str, str]:
    """Of all processes: on loopback alone, with a token."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "EQUITUNE_"))}
    return {
        **own,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


@pytest.fixture
def address(environment: dict[str, str]) -> Iterator[str]:
    """A Ray of two CPUs."""
    place, port = Path(tempfile.mkdtemp(prefix="eqs", dir="/tmp")), free_port()
    options = ["--head", "--block", "--num-cpus=2", f"--port={port}", "--node-ip-address=127.0.0.1"]
    options += ["--include-dashboard=false", "--object-store-memory=80000000", f"--temp-dir={place}/r"]
    with (place / "log").open("wb") as log:
        ray = subprocess.Popen(
            [f"{Path(sys.executable).parent}/ray", "start", *options],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        until(lambda: "Ray runtime started" in (place / "log").read_text(), "Ray starts", ray)
        yield f"127.0.0.1:{port}"
    finally:
        end(ray)
        shutil.rmtree(place, ignore_errors=True)


def until(condition: Callable[[], bool], what: str, process: subprocess.Popen[bytes], limit_s: float = 180) -> None:
    limit = time.monotonic() + limit_s
    while not condition():
        assert process.poll() is None, f"ended before: {what}"
        assert time.monotonic() < limit, f"waited in vain: {what}"
        time.sleep(0.1)


class Running:
    """`equitune search` of one study."""

    def __init__(self, name: str, folder: Path, address: str, environment: dict[str, str]) -> None:
        self.folder, self._log = StudyFolder(folder / "studies" / name), folder / f"{name}.log"
        file = folder / f"{name}.yaml"
        file.write_text(STUDY.format(name=name, trials=TRIALS))
        command = [sys.executable, "-m", "equitune", "search", str(file), "--root", str(folder / "studies")]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--address", address],
                env=environment,
                cwd=folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self._log.read_text()

    def ended(self) -> list[float]:
        """When its trials had their last epoch, in order."""
        return sorted(trial.epochs[-1].time for trial in StudyReader(self.folder).read().ended())


def test_three_searches_on_two_cpus_take_turns(tmp_path: Path, address: str, environment: dict[str, str]) -> None:
    running: list[Running] = []
    try:
        for name in ("first", "second", "third"):
            study = Running(name, tmp_path, address, environment)
            running.append(study)
            trials = study.folder.path / "trials"
            until(lambda trials=trials: len(list(trials.glob("*/config.json"))) >= 2, f"{name} begins", study.process)  # type: ignore[misc]
        for study in running:
            assert study.process.wait(300) == 0, study.output
    finally:
        for study in running:
            if study.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(study.process.pid, signal.SIGKILL)
    ended = {study.folder.name: study.ended() for study in running}
    assert {name: len(times) for name, times in ended.items()} == dict.fromkeys(ended, TRIALS)
    for name in ("second", "third"):
        assert ended[name][0] < ended["first"][-1], "it waited for the end of the first"
    assert any("waiting for a place: others have 2 of 2 CPUs" in study.output for study in running[1:])
    assert "waiting for a place" in (running[-1].folder.log.read_text() + running[1].folder.log.read_text())

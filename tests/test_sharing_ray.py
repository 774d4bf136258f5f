"""Three searches on a Ray of two CPUs: short ones end while a long one goes on, and say when they wait. Slow."""

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

pytestmark = pytest.mark.slow

SHORT, LONG = 2, 1000  # trials
WAITS = "waiting for a place: others have 2 of 2 CPUs"
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

    def __init__(self, name: str, trials: int, folder: Path, address: str, environment: dict[str, str]) -> None:
        self.folder, self._log = StudyFolder(folder / "studies" / name), folder / f"{name}.log"
        file = folder / f"{name}.yaml"
        file.write_text(STUDY.format(name=name, trials=trials))
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

    def num_ended(self) -> int:
        return len(list(self.folder.path.glob("trials/*/result.json")))

    def kill(self) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def test_short_searches_end_while_a_long_one_goes_on(tmp_path: Path, address: str, environment: dict[str, str]) -> None:
    """Without giving way the short ones would wait for the end of the long one."""
    running: list[Running] = []
    try:
        running.append(Running("long", LONG, tmp_path, address, environment))
        until(lambda: running[0].num_ended() >= 2, "the long one has both CPUs", running[0].process)
        running += [Running(name, SHORT, tmp_path, address, environment) for name in ("short", "other")]
        for study in running[1:]:
            assert study.process.wait(300) == 0, study.output
        assert running[0].process.poll() is None, running[0].output
        reached = running[0].num_ended()
        until(lambda: running[0].num_ended() > reached + 2, "the long one goes on", running[0].process)
    finally:
        for study in running:
            study.kill()
    assert [study.num_ended() for study in running[1:]] == [SHORT, SHORT]


HOLD = """\
import sys
import ray
from ray.util.placement_group import placement_group
ray.init(address=sys.argv[1], log_to_driver=False)
ray.get(placement_group([{"CPU": 2}]).ready())
print("held", flush=True)
sys.stdin.read()
"""


def test_a_search_without_a_place_says_so_and_can_be_interrupted(
    tmp_path: Path, address: str, environment: dict[str, str]
) -> None:
    """All CPUs are another program's, which gives nothing back."""
    command = [sys.executable, "-c", HOLD, address]
    other = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    begun: list[Running] = []
    try:
        assert other.stdout
        assert other.stdin
        assert other.stdout.readline() == b"held\n"
        for is_interrupted in (True, False):
            study = Running("short", SHORT, tmp_path, address, environment)
            begun.append(study)
            until(lambda study=study: WAITS in study.output, "it says that it waits", study.process)  # type: ignore[misc]
            assert WAITS in study.folder.log.read_text()
            assert not list(study.folder.path.glob("trials/*/worker.json")), "it is not at work"
            if is_interrupted:
                study.process.send_signal(signal.SIGINT)
                assert study.process.wait(120) == 130, study.output
            else:
                other.stdin.close()
                assert study.process.wait(300) == 0, study.output
                assert "a place is free: going on" in study.output
    finally:
        for study in begun:
            study.kill()
        other.kill()
        other.wait()

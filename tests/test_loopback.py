"""What the program starts on a machine of one's own listens on loopback alone."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from chaos import MARK, Search, marked
from conftest import SMALL_STUDY
from services import answers, free_port, wait_until


def listening(pids: set[int]) -> set[str]:
    """The addresses on which processes listen for TCP, as /proc has them."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes |= set(re.findall(r"socket:\[(\d+)\]", os.readlink(link)))
            except OSError:
                continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                raw = bytes.fromhex(fields[1].partition(":")[0])
                words = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
                found.add(socket.inet_ntop(socket.AF_INET if len(words) == 4 else socket.AF_INET6, words))
    return found


LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}

LOCAL_RAY = """
import sys, time
from equitune.driver.cluster import connected
from equitune.driver.ray_address import prepare
from equitune.config.resources import Resources
prepare(None)
with connected(Resources(), None):
    import ray
    ray.get(ray.remote(lambda: 1).remote())
    print("ready", flush=True)
    time.sleep(120)
"""


@pytest.mark.slow
def test_a_local_ray_and_the_ui_listen_on_loopback_alone(tmp_path: Path, store: str) -> None:
    environment = {**os.environ, MARK: f"doors-{os.getpid()}"}
    port = free_port()
    ui = [sys.executable, "-m", "equitune", "ui", "--root", str(tmp_path), "--port", str(port)]
    commands = [[sys.executable, "-c", LOCAL_RAY], ui]
    started = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
        for command in commands
    ]
    try:
        assert started[0].stdout is not None
        assert started[0].stdout.readline() == "ready\n"
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/health"), 120)
        mine = marked(environment[MARK])
        assert any("raylet" in command for command in mine.values())
        assert any("gcs_server" in command for command in mine.values())
        addresses = listening(set(mine))
        assert addresses
        assert addresses <= LOOPBACK
    finally:
        for pid in marked(environment[MARK]):
            os.kill(pid, 9)
        for process in started:
            process.wait()


@pytest.mark.slow
def test_the_workers_of_one_trial_listen_on_loopback_alone(study_file: Callable[..., Path], tmp_path: Path) -> None:
    file = study_file(SMALL_STUDY + "resources: {workers: 2, cpu: 2}\n")
    search = Search(file, tmp_path / "studies", "--set", "training.epochs=200")
    try:
        search.start()
        assert search.until(lambda: search.num_epochs() >= 1, 300), search.output
        mine = marked(search.mark)
        assert sum(command.startswith("ray::RayTrainWorker") for command in mine.values()) == 2
        assert listening(set(mine)) <= LOOPBACK
    finally:
        search.kill_all()


def test_who_listens_elsewhere_is_seen() -> None:
    with socket.socket() as everywhere:
        everywhere.bind(("0.0.0.0", 0))
        everywhere.listen()
        assert "0.0.0.0" in listening({os.getpid()})

"""Signals to driver, worker, raylet and GCS in every phase of a search change nothing of its answer. Slow.

The schedule follows a seed, which is printed: KILLS_SEED sets it, KILLS_ROUNDS runs as many seeds from there on.
"""

import fcntl
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from chaos import MARK, Search, answer, marked, mlflow_states, require_whole, tellings, trial_of
from services import free_port, wait_until

from equitune.config.load import load_study
from equitune.config.trial import TrialConfig
from equitune.data.on_device import to_device
from equitune.data.splits import load_splits
from equitune.driver import ray_thread
from equitune.driver.ray_files import base
from equitune.records.folder import StudyFolder, read_json, write_json
from equitune.report.arms import write_answer
from equitune.report.profile import write_profile
from equitune.search.engine import Engine, Task
from equitune.search.storage import open_storage
from equitune.search.study_record import begin as begin_study
from equitune.tracking.projector import sync
from equitune.training.run import run_trial
from equitune.training.test_split import measure_on_test

SEED, ROUNDS = int(os.environ.get("KILLS_SEED", "1")), int(os.environ.get("KILLS_ROUNDS", "1"))
EPOCHS, TRIALS = 4, 4
STUDY = f"""\
study: small
data: {{name: digits, size: 8, limit: 200}}
model: {{name: resnet, depth: 8, width: {{int: [2, 4]}}}}
training: {{epochs: {EPOCHS}, batch_size: 32, lr: {{float: [1e-3, 1e-2], log: true}}}}
objectives: {{accuracy: maximize, parameters: minimize}}
search: {{sampler: random, trials: {TRIALS}, seed: 3}}
"""

# Each phase with the longest time that is waited in it before the signal; what may be signalled there.
PHASES = {
    "loading": 1.0,
    "starting": 3.0,
    "first trial": 0.3,
    "middle": 0.3,
    "test split": 0.5,
    "registering": 2.0,
    "drawing": 1.0,
}
DRIVER = ["driver KILL", "driver TERM", "driver STOP", "driver INT", "driver INT INT", "driver INT INT INT"]
DAEMONS = ["raylet KILL", "gcs_server KILL"]
WORKER = ["worker KILL", "worker STOP"]
TARGETS = {
    "loading": DRIVER,
    # Not yet its GCS: one that died while Ray's library joined it was once answered after a minute only.
    "starting": [*DRIVER, "raylet KILL"],
    "first trial": DRIVER + DAEMONS + WORKER,
    "middle": DRIVER + DAEMONS + WORKER,
    "test split": DRIVER + DAEMONS + WORKER,
    "registering": DRIVER,
    "drawing": DRIVER,
}


def schedule(seed: int) -> list[tuple[str, str]]:
    """Draw a signal for each phase, in their order: each of the four targets has one."""
    draw = random.Random(seed)
    while True:
        drawn = [(phase, draw.choice(TARGETS[phase])) for phase in PHASES]
        if len({action.split()[0] for _, action in drawn}) == 4:
            return drawn


def test_the_schedules_reach_all_targets_in_all_phases() -> None:
    drawn = {pair for seed in range(150) for pair in schedule(seed)}
    assert drawn == {(phase, action) for phase, actions in TARGETS.items() for action in actions}


class Kills:
    """A search that is disturbed once in each phase, and started again as often as it ends."""

    def __init__(self, search: Search, seed: int) -> None:
        self.search, self.draw, self.done = search, random.Random(seed), list[str]()

    def run(self, drawn: list[tuple[str, str]]) -> None:
        self.search.start()
        for phase, action in drawn:
            if not self.search.until(lambda phase=phase: self._has_begun(phase), 180):  # type: ignore[misc]
                self._require_end(0)  # it was faster than the signal
                self._again()
                if not self.search.until(lambda phase=phase: self._has_begun(phase), 180):  # type: ignore[misc]
                    continue
            time.sleep(self.draw.uniform(0, PHASES[phase]))
            self._signal(phase, action)
        assert self.search.wait(180) == 0, self.search.output

    def _has_begun(self, phase: str) -> bool:
        output, study = self.search.output, self.search.folder / "study.json"
        is_trained = study.exists() and bool(read_json(study).get("ended_by"))
        return {
            "loading": "loading digits" in output,
            "starting": "starting Ray" in output,
            "first trial": self.search.num_epochs() >= 1 and bool(self.search.workers()),
            "middle": self.search.num_epochs() >= EPOCHS * TRIALS / 2 and bool(self.search.workers()),
            "test split": "measuring the" in output,
            "registering": is_trained,
            "drawing": "small: complete" in output,
        }[phase]

    def _signal(self, phase: str, action: str) -> None:
        target, *names = action.split()
        self.done.append(f"{phase}: {action}")
        pid = self._pid(target)
        if pid is None:  # it has gone by itself
            return
        for index, name in enumerate(names):
            if index:
                time.sleep(self.draw.uniform(0, 1.5))
            with suppress(ProcessLookupError):
                os.kill(pid, getattr(signal, f"SIG{name}"))
        if names == ["STOP"]:
            time.sleep(self.draw.uniform(0.2, 2))
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
            return
        if target != "worker":
            self._require_end(*{"KILL": (-9, 0) if target == "driver" else (2, 0)}.get(names[0], (130, 0)))
            self._again()

    def _pid(self, target: str) -> int | None:
        if target == "driver":
            return self.search.process.pid if self.search.process and not self.search.is_over() else None
        if target == "worker":
            workers = self.search.workers()
            training = [pid for pid in workers if trial_of(pid) is not None]
            return self.draw.choice(training or workers) if workers else None
        with suppress(AssertionError):
            self.search.until(lambda: self.search.daemon(target) is not None, 20)
        return self.search.daemon(target)

    def _require_end(self, *codes: int) -> None:
        """It ends within the time that is documented, with its code and its sentence; 0 where it was faster."""
        code, output = self.search.wait(90), self.search.output
        assert code in codes, f"{self.done}: code {code}\n{output}"
        assert "Traceback" not in output, f"{self.done}\n{output}"
        if code == 130:
            assert "Go on:   equitune search" in output, f"{self.done}\n{output}"
        if code == 2:
            assert "Ray ended on this machine (its " in output, f"{self.done}\n{output}"
            assert output.rstrip().endswith("run the same command again; nothing is lost"), f"{self.done}\n{output}"

    def _again(self) -> None:
        self.search.output = ""
        self.search.start()


@pytest.fixture
def begin(study_file: Callable[..., Path], tmp_path: Path) -> Iterator[Callable[..., Search]]:
    begun: list[Search] = []

    def make(root: str, *arguments: str) -> Search:
        begun.append(Search(study_file(STUDY), tmp_path / root, *arguments))
        return begun[-1]

    yield make
    for search in begun:
        search.kill_all()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the study that nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "study.yaml").write_text(STUDY)
    search = Search(folder / "study.yaml", folder / "studies")
    search.start()
    assert search.wait(180) == 0, search.output
    return search.folder


def require_equal(disturbed: Path, undisturbed: Path) -> None:
    """Nothing is lost, doubled or changed, in the folder, the journal and MLflow."""
    folder = StudyFolder(disturbed)
    require_whole(folder, TRIALS, epochs=EPOCHS)
    assert tellings(folder.journal) == dict.fromkeys(range(TRIALS), 1)
    assert mlflow_states(disturbed.parent) == {"FINISHED": TRIALS + 1}
    assert answer(disturbed) == answer(undisturbed)
    for path in undisturbed.glob("trials/*/test.json"):
        assert (disturbed / path.relative_to(undisturbed)).read_bytes() == path.read_bytes()


def left_behind(search: Search, within_s: float = 20) -> dict[int, str]:
    """The processes of a search that are there after its end for longer than some seconds."""
    limit = time.monotonic() + within_s
    while (found := marked(search.mark)) and time.monotonic() < limit:
        time.sleep(0.2)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEED, SEED + ROUNDS))
def test_a_search_through_a_signal_in_each_phase(seed: int, begin: Callable[..., Search], undisturbed: Path) -> None:
    drawn = schedule(seed)
    print(f"KILLS_SEED={seed}: {drawn}")
    others = set(base().glob("equitune-ray-*"))
    search = begin("disturbed")
    kills = Kills(search, seed)
    kills.run(drawn)
    assert len(kills.done) >= len(PHASES) - 2, kills.done
    require_equal(search.folder, undisturbed)
    assert left_behind(search) == {}
    left = {folder for folder in base().glob("equitune-ray-*") if nobody_uses(folder)}
    assert left <= others, "each search has removed what those before it left"


def nobody_uses(folder: Path) -> bool:
    """Return whether the search of this folder of Ray's has ended: other programs may search meanwhile."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


@pytest.fixture
def loopback_ray(begin: Callable[..., Search], monkeypatch: pytest.MonkeyPatch) -> Iterator[Search]:
    """A search of many epochs that joins a Ray of this machine, which listens on loopback alone."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv(ray_thread.GIVES_UP, "20")
    port = free_port()
    search = begin("joined", "--address", f"127.0.0.1:{port}", "--set", "training.epochs=500")
    ray = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1"]
    ray += ["--num-cpus=2", f"--port={port}", "--include-dashboard=false", "--disable-usage-stats"]
    environment = os.environ | {MARK: search.mark, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    with tempfile.TemporaryDirectory(prefix="eqk", dir="/tmp", ignore_cleanup_errors=True) as folder:
        ray += ["--object-store-memory=80000000", f"--temp-dir={folder}"]
        head = subprocess.Popen(ray, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
        wait_until(lambda: search.daemon("raylet") is not None, 60)
        yield search
        search.kill_all()
        head.wait()


@pytest.mark.slow
@pytest.mark.parametrize("daemon", ["raylet", "gcs_server"])
def test_a_ray_on_loopback_is_joined_and_its_loss_is_said(daemon: str, loopback_ray: Search) -> None:
    loopback_ray.start()
    assert loopback_ray.until(lambda: loopback_ray.num_epochs() >= 2, 90), loopback_ray.output
    pid = loopback_ray.daemon(daemon)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert loopback_ray.wait(60) == 2, loopback_ray.output
    said = r"does not answer any more \(its (raylet|GCS) was lost\): run the same command again; nothing is lost\s*$"
    assert re.search(said, loopback_ray.output), loopback_ray.output  # the raylet goes with its GCS
    assert "Traceback" not in loopback_ray.output


@pytest.fixture(scope="module")
def trained_here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the study, trained in this process without Ray."""
    root = tmp_path_factory.mktemp("here") / "studies"
    file = root.parent / "study.yaml"
    file.write_text(STUDY)
    spec, folder = load_study(file), StudyFolder(root / "small")
    splits = load_splits(spec.data)
    data = to_device(splits, "cpu")
    folder.path.mkdir(parents=True)
    begin_study(folder, spec, file, ())
    engine = Engine(spec, folder, open_storage(folder, spec))
    while isinstance(task := engine.next_task(), Task):
        if task.config:
            engine.ended(task.number, run_trial(task.config, data, folder=task.folder))
        else:
            config = TrialConfig.from_json_text(task.folder.config.read_text())
            engine.tested(task.number, measure_on_test(config, task.folder, splits, 0))
    write_json(folder.study, read_json(folder.study) | {"ended_by": engine.ended_by()})
    sync(folder, f"sqlite:///{root / 'mlflow.db'}", write_answer, write_profile)
    return folder.path


def lose_result(folder: Path) -> None:
    (folder / "trials/00002/result.json").unlink()


def lose_trial(folder: Path) -> None:
    shutil.rmtree(folder / "trials/00003")


def lose_epoch(folder: Path) -> None:
    path = folder / "trials/00001/epochs.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))


def tell_twice(folder: Path) -> None:
    journal = folder / "study.journal"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([*lines, next(line for line in reversed(lines) if '"values"' in line)]))


def change_a_number(folder: Path) -> None:
    path = folder / "trials/00002/test.json"
    path = path if path.exists() else next(folder.glob("trials/*/test.json"))
    path.write_text(path.read_text().replace("0.", "1.", 1))


def leave_a_checkpoint(folder: Path) -> None:
    (folder / "trials/00002/checkpoint.pt").touch()


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage", [lose_result, lose_trial, lose_epoch, tell_twice, change_a_number, leave_a_checkpoint, None]
)
def test_what_is_lost_doubled_or_changed_is_seen(
    damage: Callable[[Path], None] | None, trained_here: Path, tmp_path: Path
) -> None:
    """The broken twins of a search that goes on; without damage they are equal."""
    shutil.copytree(trained_here.parent, tmp_path / "studies")
    twin = tmp_path / "studies" / "small"
    if damage is None:
        require_equal(twin, trained_here)
        return
    damage(twin)
    with pytest.raises((AssertionError, KeyError, RuntimeError)):
        require_equal(twin, trained_here)

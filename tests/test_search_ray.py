"""The real thing: the program as a user types it, Ray and all. Slow."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

Write = Callable[..., Path]

STUDY = """\
study: small
data: {name: digits, limit: 200}
model: {name: resnet, depth: 8, width: {int: [2, 4]}}
augmentation: {translate: {max_px: {float: [0, 2]}}}
training: {epochs: 3, batch_size: 32}
measures: [equivariance, consistency]
objectives: {accuracy: maximize, translation_error: minimize}
search: {trials: 5, seed: 3}
"""
LONG = ("--set", "training.epochs=40")


class Program:
    """`equitune search`, running; its output is collected as it comes."""

    def __init__(self, file: Path, root: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "equitune", "search", str(file), "--root", str(root), *arguments]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=file.parent,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self.folder = root / "small"
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        self.lines.extend(iter(self.process.stdout.readline, ""))

    def wait(self, timeout_s: float = 180) -> int:
        code = self.process.wait(timeout_s)
        self._reader.join(10)
        return code

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def until(self, condition: Callable[[], bool], timeout_s: float = 120) -> None:
        limit = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < limit, f"waited in vain:\n{self.output}"
            assert self.process.poll() is None, f"ended early:\n{self.output}"
            time.sleep(0.05)

    def until_reached(self, num_ended: int, num_epochs: int) -> None:
        self.until(lambda: self.num_ended() >= num_ended and self.num_epochs() >= num_epochs)

    def num_ended(self) -> int:
        return len(list(self.folder.glob("trials/*/result.json")))

    def num_epochs(self) -> int:
        return sum(len(path.read_text().splitlines()) for path in self.folder.glob("trials/*/epochs.jsonl"))

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.wait()


@pytest.fixture
def start(tmp_path: Path, study_file: Write) -> Iterator[Callable[..., Program]]:
    """Starts the program on the small study, always under the same root."""
    file, root, started = study_file(STUDY), tmp_path / "studies", []

    def begin(*arguments: str) -> Program:
        started.append(Program(file, root, *arguments))
        return started[-1]

    yield begin
    for program in started:
        if program.process.poll() is None:
            program.kill()


def shown(root: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "equitune", "show", "small", "--root", str(root), "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)  # type: ignore[no-any-return]


def repeatable(study: dict[str, Any]) -> dict[str, Any]:
    """A study without what a clock has measured."""
    for trial in study["trials"]:
        del trial["metrics"]["seconds"]
    return study


def results(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in folder.glob("trials/*/result.json")}


def worker_pids() -> list[int]:
    """The processes that train for us: Ray names them after the trainable."""
    found = subprocess.run(["pgrep", "-f", "ray::ImplicitFunc"], capture_output=True, text=True).stdout.split()
    return [int(pid) for pid in found]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """One study, run to its end, for the tests that only look."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "study.yaml").write_text(STUDY)
    program = Program(folder / "study.yaml", folder / "studies")
    assert program.wait() == 0, program.output
    return program


def test_a_study_from_the_shell_to_its_answer(finished: Program) -> None:
    program, folder, root = finished, finished.folder, finished.folder.parent
    study = shown(root)
    assert (study["study"], study["state"]) == ("small", "complete")
    assert study["objectives"] == {"accuracy": "maximize", "translation_error": "minimize"}
    assert [trial["number"] for trial in study["trials"]] == [0, 1, 2, 3, 4]
    assert {trial["state"] for trial in study["trials"]} == {"COMPLETE"}
    for trial in study["trials"]:
        parts = {"metrics", "amounts", "exact", "violates"}
        assert set(trial) == {"number", "state", "reason", "params", "front"} | parts
        assert set(trial["metrics"]["accuracy"]) == {"value", "stderr", "n"}
    members = [trial["number"] for trial in study["trials"] if trial["front"]]
    assert members
    assert sorted(int(path.parent.name) for path in folder.glob("trials/*/test.json")) == members
    for name in ("front.png", "front.html", "front.csv", "searchspace.yaml", "study.log"):
        assert (folder / name).stat().st_size > 0
    assert "5/5 trial" in program.output
    assert f"Next:    equitune ui --root {root}" in program.output
    assert "WARNING" not in program.output
    assert not list(folder.glob("attempts/*"))


def test_a_finished_study_runs_nothing_again(finished: Program) -> None:
    before = results(finished.folder)
    again = Program(finished.folder.parent.parent / "study.yaml", finished.folder.parent)
    assert again.wait(60) == 0
    assert "starting Ray" not in again.output
    assert results(finished.folder) == before


def test_the_same_study_gives_the_same_numbers_one_trial_at_a_time(
    finished: Program, start: Callable[..., Program], tmp_path: Path
) -> None:
    assert start("--set", "resources.concurrent=1").wait() == 0
    assert repeatable(shown(tmp_path / "studies")) == repeatable(shown(finished.folder.parent))


def test_kill_9_of_the_driver_loses_and_repeats_nothing(start: Callable[..., Program], tmp_path: Path) -> None:
    finished: dict[str, bytes] = {}
    for num_ended, num_epochs in ((1, 50), (3, 140)):
        program = start(*LONG)
        program.until_reached(num_ended, num_epochs)
        program.kill()
        now = results(program.folder)
        assert {name: now[name] for name in finished} == finished
        finished = now
    last = start(*LONG)
    assert last.wait() == 0, last.output
    assert {name: results(last.folder)[name] for name in finished} == finished
    study = shown(tmp_path / "studies")
    assert [trial["number"] for trial in study["trials"]] == [0, 1, 2, 3, 4]
    assert {trial["state"] for trial in study["trials"]} == {"COMPLETE"}
    for path in last.folder.glob("trials/*/epochs.jsonl"):
        epochs = [json.loads(line)["epoch"] for line in path.read_text().splitlines()]
        assert sorted(set(epochs)) == list(range(1, 41))
        assert len(epochs) <= 40 + 2  # a kill repeats at most the epoch whose checkpoint it cut off


def test_early_stopping_survives_kill_9_and_leaves_no_trial_behind(
    start: Callable[..., Program], tmp_path: Path
) -> None:
    stopping = ("--set", "search={trials: 10, seed: 3, sampler: random, scheduler: {name: mo_asha, images: 16}}",
                "--set", "training.epochs=30")  # fmt: skip
    program = start(*stopping)
    program.until_reached(4, 40)
    program.kill()
    before = results(program.folder)
    last = start(*stopping)
    assert last.wait() == 0, last.output
    after = results(last.folder)
    assert {name: after[name] for name in before} == before
    trials = shown(tmp_path / "studies")["trials"]
    assert [trial["number"] for trial in trials] == list(range(10))
    assert {trial["state"] for trial in trials} == {"COMPLETE", "PRUNED"}
    assert "early stopping saved" in last.output
    for trial in trials:
        folder = last.folder / "trials" / f"{trial['number']:05d}"
        epochs = [json.loads(line) for line in (folder / "epochs.jsonl").read_text().splitlines()]
        reached = max(epoch["epoch"] for epoch in epochs)
        assert {epoch["epoch"] for epoch in epochs if epoch["metrics"]} == {at for at in (1, 3, 9, 27) if at <= reached}
        assert not (folder / "checkpoint.pt").exists()
        if trial["state"] == "PRUNED":
            assert trial["reason"].startswith("stopped at epoch ")
            assert reached < 30


def test_hours_end_a_study_and_more_of_them_go_on(start: Callable[..., Program], tmp_path: Path) -> None:
    budget = ("--set", "search={trials: 3, seed: 3, hours: 0.008}", "--set", "training.epochs=5000")  # 29 s
    program = start(*budget)
    assert program.wait() in (0, 1), program.output
    assert "ended by hours: 0.0" in program.output
    study = shown(tmp_path / "studies")
    assert study["state"] == "complete"
    assert "RUNNING" in {trial["state"] for trial in study["trials"]}
    begun = program.num_epochs()
    more = start("--set", "search={trials: 3, seed: 3, hours: 1}", "--set", "training.epochs=5000")
    more.until(lambda: more.num_epochs() > begun + 4)


def test_ctrl_c_finishes_what_runs_and_says_how_to_go_on(start: Callable[..., Program], tmp_path: Path) -> None:
    program = start(*LONG)
    program.until(lambda: program.num_epochs() > 10)
    os.killpg(program.process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    assert program.wait() == 130, program.output
    assert "interrupted: finishing the running trials" in program.output
    assert "Go on:   equitune search" in program.output
    assert "Traceback" not in program.output
    study = shown(tmp_path / "studies")
    assert study["state"] == "interrupted"
    assert {trial["state"] for trial in study["trials"]} == {"COMPLETE"}
    assert 0 < len(study["trials"]) < 5
    assert start(*LONG).wait() == 0
    assert shown(tmp_path / "studies")["state"] == "complete"


def test_a_second_ctrl_c_and_sigterm_stop_at_once_and_keep_the_epochs(
    start: Callable[..., Program], tmp_path: Path
) -> None:
    endless = ("--set", "training.epochs=1000")
    program = start(*endless)
    program.until(lambda: program.num_epochs() > 10)
    program.process.send_signal(signal.SIGINT)
    program.until(lambda: "interrupted" in program.output)
    program.process.send_signal(signal.SIGINT)
    assert program.wait(60) == 130, program.output
    begun = program.num_epochs()
    again = start(*endless)
    again.until(lambda: again.num_epochs() > begun + 4)
    again.process.send_signal(signal.SIGTERM)
    assert again.wait(60) == 130, again.output
    assert "Traceback" not in program.output + again.output
    assert {trial["state"] for trial in shown(tmp_path / "studies")["trials"]} == {"RUNNING"}
    for path in again.folder.glob("trials/*/epochs.jsonl"):
        epochs = [json.loads(line)["epoch"] for line in path.read_text().splitlines()]
        assert len(epochs) <= len(set(epochs)) + 2


def test_sigterm_ends_in_the_grace_period_of_a_pod_although_mlflow_is_silent(start: Callable[..., Program]) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=50) as silent:  # it takes connections and never answers
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        program = start("--set", "training.epochs=1000", "--tracking-uri", uri)
        program.until(lambda: program.num_epochs() > 10)
        time.sleep(10)  # by now the projection waits for an answer
        program.process.send_signal(signal.SIGTERM)
        assert program.wait(60) == 130, program.output
    assert "MLflow has not got everything: run `equitune mlflow sync small`" in program.output
    assert "Go on:" in program.output


def test_a_killed_worker_goes_on_from_its_checkpoint_and_hurts_nobody(
    start: Callable[..., Program], tmp_path: Path
) -> None:
    before = set(worker_pids())
    program = start("--set", "training.epochs=100", "--set", "search.trials=3")
    program.until(lambda: program.num_epochs() > 30)
    mine = [pid for pid in worker_pids() if pid not in before]
    assert mine
    os.kill(mine[0], signal.SIGKILL)
    assert program.wait() == 0, program.output
    assert [trial["state"] for trial in shown(tmp_path / "studies")["trials"]] == ["COMPLETE"] * 3
    for path in program.folder.glob("trials/*/epochs.jsonl"):
        epochs = [json.loads(line)["epoch"] for line in path.read_text().splitlines()]
        assert len(epochs) <= 101


def test_trials_that_raise_or_diverge_leave_the_others_and_show_their_reason(
    start: Callable[..., Program], tmp_path: Path
) -> None:
    diverging = ("--set", "training={optimizer: sgd, epochs: 3, lr: {choice: [1.0e+30, 1.0e-2]}, warmup_epochs: 0}")
    program = start(*diverging)
    assert program.wait() == 0, program.output
    trials = shown(tmp_path / "studies")["trials"]
    assert {trial["state"] for trial in trials} == {"COMPLETE", "INFEASIBLE"}
    for trial in trials:
        if trial["state"] == "INFEASIBLE":
            assert trial["params"]["training.lr"] == 1e30
            assert "diverged: the loss is nan at step" in trial["reason"]
            assert trial["reason"] in program.output


def test_a_trial_that_raises_is_a_failure_of_its_own(start: Callable[..., Program], tmp_path: Path) -> None:
    program = start(*LONG)
    program.until(lambda: program.num_epochs() > 10)
    program.kill()
    time.sleep(5)  # its workers outlive it by a moment, and may end a trial or write a checkpoint once more
    unfinished = [path for path in program.folder.glob("trials/*") if not (path / "result.json").exists()]
    victim = next(path for path in unfinished if (path / "checkpoint.pt").exists())
    (victim / "checkpoint.pt").write_bytes(b"no checkpoint")
    again = start(*LONG)
    assert again.wait() == 1, again.output
    trials = shown(tmp_path / "studies")["trials"]
    assert sorted(trial["state"] for trial in trials) == ["COMPLETE"] * 4 + ["FAILED"]
    assert f"trial {int(victim.name)} FAILED: " in again.output
    assert "Traceback" not in again.output
    assert "Traceback" in json.loads((victim / "result.json").read_text())["traceback"]


def test_a_second_driver_and_another_space_are_refused(start: Callable[..., Program], tmp_path: Path) -> None:
    program = start(*LONG)
    program.until(lambda: program.num_epochs() > 3)
    second = start(*LONG)
    assert second.wait(30) == 2
    assert f"study small is being searched already (process {program.process.pid} on " in second.output
    program.process.send_signal(signal.SIGTERM)
    assert program.wait(60) == 130
    changed = start(*LONG, "--set", "model.width={int: [2, 8]}")
    assert changed.wait(30) == 2
    assert "with another search space: model.resnet.width.int was [2, 4], is [2, 8]" in changed.output
    assert "Traceback" not in changed.output + second.output


def test_a_dead_tracking_server_stops_nothing_and_is_made_up_for(start: Callable[..., Program], tmp_path: Path) -> None:
    program = start("--tracking-uri", "http://127.0.0.1:9")
    assert program.wait() == 0, program.output
    assert program.output.count("does not answer") == 1
    assert "run `equitune mlflow sync small` when it answers again" in program.output
    store = f"sqlite:///{tmp_path / 'runs.db'}"
    command = [sys.executable, "-m", "equitune", "mlflow", "sync", "small", "--root", str(tmp_path / "studies")]
    subprocess.run([*command, "--tracking-uri", store], check=True, cwd=tmp_path)
    from mlflow import MlflowClient

    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 6


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--set", "resources.gpu=1"), "resources.gpu: a trial asks for 1 GPU, but there are 0"),
        (("--set", "data.name=mnist", "--data-root", "nowhere"), "equitune download mnist --data-root nowhere"),
        (("--set", "model.depth=9"), "no network of study small can be built"),
        (("--address", "127.0.0.1:1"), "Ray cannot be reached at 127.0.0.1:1"),
        (("--root", "/dev/null/x"), "/dev/null/x/small cannot be written: Not a directory"),
        (("--set", "study=../x"), "a study's name has 1 to 64"),
    ],
)
def test_what_cannot_run_is_said_in_a_sentence(
    arguments: tuple[str, ...], sentence: str, start: Callable[..., Program]
) -> None:
    program = start(*arguments)
    assert program.wait(90) == 2, program.output
    assert sentence in program.output
    assert "Traceback" not in program.output
    assert program.output.strip().splitlines()[-1].count(": ") >= 1

"""However the program ends, it says so in a sentence and with its documented code; a bug keeps its traceback."""

import errno
import fcntl
import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from equitune import cli
from equitune.cli import failures
from equitune.config.resources import Resources
from equitune.driver import cluster, ray_address, ray_files, ray_thread
from equitune.driver.ray_files import MARK, own_folder, sweep
from equitune.driver.ray_thread import Port, RayWatch, run_with_ray
from equitune.driver.tune_searcher import StopAll, StudySearcher
from equitune.errors import UserError

# -- failures from outside, and bugs


@pytest.fixture
def ends_with(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs a command that fails, and returns the code and the sentence."""

    def run(call: Callable[[], object]) -> tuple[int, str]:
        monkeypatch.setattr(cli, "cli", click.Command("failing", callback=call))
        monkeypatch.setattr(sys, "argv", ["equitune"])
        return cli._exit_code(), capsys.readouterr().err

    return run


OUTSIDE = [
    *("ENOSPC", "EDQUOT", "EACCES", "EPERM", "EROFS", "EIO", "EISDIR", "ENOTDIR", "ELOOP", "ENAMETOOLONG", "ESTALE"),
    *("ENOENT", "ENOTEMPTY", "EMFILE", "ENOMEM", "EFBIG", "ENODEV", "ENXIO", "EBUSY", "ETIMEDOUT"),
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_the_system_refuses_is_a_sentence_with_the_file(name: str, ends_with: Callable[..., Any]) -> None:
    number = getattr(errno, name)

    def fail() -> None:
        raise OSError(number, os.strerror(number), "studies/x/result.json")

    code, said = ends_with(fail)
    assert code == 2
    assert said.startswith("studies/x/result.json cannot be ")
    assert os.strerror(number) in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "error", [TypeError("x"), KeyError("x"), OSError(errno.EBADF, "x"), OSError(errno.EINVAL, "x")]
)
def test_a_bug_keeps_its_traceback(error: Exception, ends_with: Callable[..., Any]) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        ends_with(fail)
    assert failures.sentence(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")) is None  # of no file


def test_a_file_that_is_a_folder_a_loop_or_no_text_is_named(tmp_path: Path, ends_with: Callable[..., Any]) -> None:
    loop, text, deep, folder = (tmp_path / name for name in ("loop", "text", "deep.json", "folder"))
    loop.symlink_to(loop)
    text.write_bytes(b"caf\xe9")
    deep.write_text("[" * 200_000)
    folder.mkdir()

    def parse(path: Path) -> Any:
        return json.loads(path.read_text())

    for path, what in ((loop, "symbolic links"), (text, "its byte 3"), (deep, "nested"), (folder, "Is a directory")):
        code, said = ends_with(lambda path=path: parse(path))
        assert code == 2
        assert said.startswith(str(path))
        assert what in said


def recurse() -> None:
    recurse()


def test_a_recursion_of_our_own_is_a_bug(ends_with: Callable[..., Any]) -> None:
    with pytest.raises(RecursionError):
        ends_with(recurse)


def test_a_command_line_that_is_no_text(tmp_path: Path) -> None:
    command = [sys.executable.encode(), b"-m", b"equitune", b"show", b"caf\xe9"]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == b"command line: an argument must be text in UTF-8, but got 'caf\\udce9'\n"


# -- Ctrl-C and SIGTERM


def started(code: str, *arguments: str) -> subprocess.Popen[str]:
    """A program in a process, which has printed its first line."""
    head = f"import sys, os, time\nsys.argv = ['equitune', 'search', 'study.yaml', *{arguments}]\nfrom equitune import interrupts\n"
    process = subprocess.Popen(
        [sys.executable, "-c", head + code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    process.stdout.readline()
    return process


LAST_WORDS = "interrupted\nGo on:   equitune search study.yaml"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_of_the_imports_is_a_sentence(number: int) -> None:
    """-v says what is imported as it happens: the signal comes in their midst."""
    command = [sys.executable, "-v", "-m", "equitune", "search", "study.yaml"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    for line in process.stderr:
        if line.startswith("import 'click"):
            process.send_signal(number)
            break
    said = "\n".join(line for line in process.communicate()[1].splitlines() if not line.startswith(("#", "import")))
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert LAST_WORDS in said


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_data_are_loaded_says_how_to_go_on(
    number: int, study_file: Callable[..., Path], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "equitune", "search", str(study_file()), "--root", str(tmp_path / "studies")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout
    for line in process.stdout:
        if line.startswith("loading"):
            process.send_signal(number)
            break
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert said.strip().splitlines()[-2:] == ["interrupted", f"Go on:   equitune {' '.join(command[3:])}"]


def test_an_interrupt_that_an_import_swallows_is_obeyed(ends_with: Callable[..., Any]) -> None:
    """As pybind11 does: the interrupt becomes an ImportError."""
    code = """
interrupts.install()
import click
from equitune import cli
def fail():
    try:
        print("ready", flush=True)
        time.sleep(30)
    except KeyboardInterrupt:
        raise ImportError("initialization failed")
cli.cli = click.Command("search", callback=fail, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
cli.main()
"""
    process = started(code)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, LAST_WORDS + "\n")


UNWINDING = """
interrupts.install()
try:
    print("ready", flush=True)
    time.sleep(30)
finally:
    print("unwinding", flush=True)
    time.sleep(30)
"""


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_at_once_with_the_last_words(second: int) -> None:
    process = started(UNWINDING)
    process.send_signal(signal.SIGINT)
    assert process.stdout
    assert process.stdout.readline() == "unwinding\n"
    process.send_signal(second)
    _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (130, f"\n{LAST_WORDS}\n")


def test_a_job_says_its_code_whoever_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUITUNE_TYPED", "equitune submit study.yaml")
    process = started(UNWINDING)
    process.send_signal(signal.SIGTERM)
    assert process.stdout
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=20)
    assert said == "\ninterrupted\nGo on:   equitune submit study.yaml\nequitune ends with code 130\n"


def test_a_signal_at_the_very_end_changes_no_code() -> None:
    process = started("interrupts.install()\ninterrupts.ending(1)\nprint('ready', flush=True)\ntime.sleep(30)\n")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (1, "")


def test_a_fork_of_the_program_ends_as_its_parent_wants() -> None:
    code = """
interrupts.install()
child = os.fork()
if not child:
    print("ready", flush=True)
    time.sleep(30)
time.sleep(1)
os.kill(child, 15)
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    process = started(code)
    _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (128 + 15, "")


# -- Ray, in a thread that can be left


class Asked:
    """What the thread of Ray and the program say to each other of a study."""

    def __init__(self) -> None:
        self.draining = self.stopping = False
        self.halted: str | None = None
        self.hearing = threading.Lock()


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done when Ray is left, but for killing."""
    done: list[str] = []
    monkeypatch.setattr(ray_thread, "leave_ray", lambda: done.append("left"))
    monkeypatch.setattr(ray_thread, "LOOK_S", 0.02)
    return done


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Starts processes that are called as Ray's."""
    begun = []

    def start(name: str) -> subprocess.Popen[bytes]:
        shutil.copy(shutil.which("sleep") or "", tmp_path / name)
        begun.append(subprocess.Popen([tmp_path / name, "60"]))
        return begun[-1]

    yield start
    for each in begun:
        each.kill()
        each.wait()


@pytest.mark.parametrize(("process", "name"), [("raylet", "raylet"), ("gcs_server", "GCS")])
@pytest.mark.parametrize("phase", ["starting", "running"])
def test_the_end_of_a_daemon_is_seen_and_said(
    process: str, name: str, phase: str, daemons: Callable[[str], subprocess.Popen[bytes]], left: list[str]
) -> None:
    watch, engine, is_begun = RayWatch(None), Asked(), threading.Event()
    both = {each: daemons(each) for each in ("raylet", "gcs_server")}

    def work() -> None:
        watch.is_connected = watch.is_running = phase == "running"
        is_begun.wait()

    assert watch.lost() is None
    both[process].kill()
    run_with_ray(work, engine, watch)  # type: ignore[arg-type]
    again = "run the same command again; nothing is lost"
    assert engine.halted == f"Ray ended on this machine (its {name} was lost): {again}"
    assert left == ["left"]
    assert engine.hearing.locked(), "what the thread of Ray still says is not heard"


def test_daemons_that_end_when_they_should_are_no_loss(daemons: Callable[[str], subprocess.Popen[bytes]]) -> None:
    watch = RayWatch(None)
    raylet = daemons("raylet")
    assert watch.lost() is None
    watch.is_ending = True
    raylet.kill()
    raylet.wait()
    assert watch.lost() is None
    watch.is_ending = False
    assert watch.lost()


def test_who_does_not_start_and_who_does_not_end_is_left(left: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_thread, "START_S", 0.05)
    monkeypatch.setattr(ray_thread, "STOP_S", 0.05)
    for_ever = threading.Event()
    engine = Asked()
    run_with_ray(for_ever.wait, engine, RayWatch("host:1"))  # type: ignore[arg-type]
    assert engine.halted is not None
    assert engine.halted.startswith("Ray at host:1 does not answer within 0 s: run the same")
    for change in ({"stopping": True}, {"halted": "the disk is full"}):
        engine, watch = Asked(), RayWatch("host:1")
        watch.is_connected = watch.is_running = True
        vars(engine).update(change)
        run_with_ray(for_ever.wait, engine, watch)  # type: ignore[arg-type]
        assert engine.halted == change.get("halted")
    assert left == ["left"] * 3


def test_an_interrupt_while_ray_starts_is_obeyed_at_once(left: list[str]) -> None:
    engine = Asked()
    engine.draining = True
    run_with_ray(threading.Event().wait, engine, RayWatch(None))  # type: ignore[arg-type]
    assert left == ["left"]
    assert engine.halted is None


def test_what_the_thread_raises_is_raised_and_an_orderly_end_leaves_nothing(left: list[str]) -> None:
    def fail() -> None:
        raise UserError("no GPU")

    with pytest.raises(UserError, match="no GPU"):
        run_with_ray(fail, Asked(), RayWatch(None))  # type: ignore[arg-type]
    engine = Asked()
    run_with_ray(lambda: None, engine, RayWatch(None))  # type: ignore[arg-type]
    assert not engine.hearing.locked()
    assert left == []


def test_ray_that_was_left_is_not_heard() -> None:
    heard: list[object] = []
    engine: Any = SimpleNamespace(
        hearing=threading.Lock(),
        halted=None,
        stopping=False,
        tick=lambda: heard.append("tick"),
        lost=heard.append,
        left=heard.append,
    )
    searcher = StudySearcher(engine)
    searcher._numbers = {"a": 3, "b": 4}
    searcher.on_trial_complete("a", error=True)
    assert heard == [3]
    engine.hearing.acquire()
    for call in (lambda: searcher.on_trial_complete("b", error=True), lambda: StopAll(engine).stop_all()):
        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
    assert heard == [3]
    engine.hearing.release()


def test_no_worker_is_to_blame_for_the_end_of_a_search_that_halts() -> None:
    told: list[str] = []
    engine: Any = SimpleNamespace(
        hearing=threading.Lock(),
        halted="Ray ended",
        lost=lambda number: told.append("lost"),
        left=lambda number: told.append("left"),
    )
    searcher = StudySearcher(engine)
    searcher._numbers = {"a": 3}
    searcher.on_trial_complete("a", error=True)
    assert told == ["left"]


def test_a_port_of_a_cluster_is_lost_after_its_patience() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = Port("raylet", "127.0.0.1", server.getsockname()[1], patience_s=0.0)
        assert port.knock()
        port.patience_s = 60.0
        assert not port.is_lost()
    assert not port.knock()
    assert not port.is_lost()
    port.answered -= 61
    assert port.is_lost()


@pytest.mark.parametrize("is_lost", [True, False])
def test_a_ray_that_is_lost_is_not_shut_down(is_lost: bool, left: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its library sees it before the watch; without a loss the error is a bug, and Ray is shut down."""
    import ray

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("broken pipe")

    for name, call in (
        ("init", lambda **_: None),
        ("cluster_resources", fail),
        ("shutdown", lambda: left.append("shut")),
    ):
        monkeypatch.setattr(ray, name, call)
    watch = RayWatch(None)
    monkeypatch.setattr(watch, "lost", lambda: "Ray ended on this machine" if is_lost else None)
    with pytest.raises(UserError if is_lost else ConnectionError), cluster.connected(Resources(), None, watch=watch):
        raise AssertionError
    assert left == ["left" if is_lost else "shut"]


# -- an address on loopback


@pytest.mark.parametrize(("host", "expected"), [("127.0.0.1", True), ("0.0.0.0", False)])
def test_an_address_that_only_loopback_answers_is_seen(host: str, expected: bool) -> None:
    with socket.create_server((host, 0)) as server:
        port = server.getsockname()[1]
        assert ray_address._is_on_loopback_alone(f"127.0.0.1:{port}") is expected
        assert not ray_address._is_on_loopback_alone(f"192.0.2.1:{port}")
    assert not ray_address._is_on_loopback_alone(f"127.0.0.1:{port}"), "nobody answers"
    assert not ray_address._is_on_loopback_alone("auto")
    assert not ray_address._is_on_loopback_alone(None)


# -- Ray's files


@pytest.fixture
def where(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files."""
    folder = tmp_path_factory.mktemp("t")
    monkeypatch.setattr(ray_files, "base", lambda: folder)
    return folder


def test_ray_s_folder_goes_with_the_search(where: Path) -> None:
    with own_folder() as folder:
        assert folder.parent == where
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "session_1" / "sockets").mkdir(parents=True)
        sweep()
        with own_folder() as other:
            assert folder.exists(), "another search leaves it"
            assert other != folder
    assert list(where.iterdir()) == []
    with pytest.raises(UserError), own_folder():
        raise UserError("no GPU")
    assert list(where.iterdir()) == []


def left_by_a_dead_search(where: Path) -> Path:
    code = (
        f"import os, pathlib\nfrom equitune.driver import ray_files\nray_files.base = lambda: pathlib.Path({str(where)!r})\n"
        "with ray_files.own_folder() as folder:\n    (folder / 'session_1').mkdir()\n    print(folder, flush=True)\n    os._exit(9)\n"
    )
    return Path(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip())


def test_what_a_killed_search_has_left_goes_with_the_next_and_nothing_else(where: Path, tmp_path: Path) -> None:
    dead = left_by_a_dead_search(where)
    assert (dead / "session_1").is_dir()
    kept = [where / f"equitune-ray-{name}" for name in ("users", "open", "link", "living")]
    unmarked, open_to_others, link, living = kept
    for folder in (unmarked, open_to_others, living):
        folder.mkdir(mode=0o700)
        (folder / "session_2").mkdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    for folder in (open_to_others, living, tmp_path / "elsewhere"):
        (folder / MARK).touch()
    open_to_others.chmod(0o755)
    link.symlink_to(tmp_path / "elsewhere")
    (where / "session_3").mkdir()  # of the user's own Ray
    lock = os.open(living, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    sweep()
    os.close(lock)
    assert not dead.exists()
    assert all(folder.exists() for folder in kept)
    assert (tmp_path / "elsewhere" / MARK).exists()
    assert (where / "session_3").exists()
    sweep()
    assert not living.exists(), "nobody holds it any more"


def test_a_folder_that_a_dying_worker_has_made_anew_goes_and_no_other_without_a_mark(where: Path) -> None:
    anew, with_more, writable = (where / f"equitune-ray-{name}" for name in ("anew", "more", "writable"))
    for folder in (anew, with_more, writable):
        (folder / "r" / "session_2026" / "logs" / "old").mkdir(parents=True)
        (folder / "r" / "session_latest").symlink_to(folder / "r" / "session_2026")
    (with_more / "r" / "mine.txt").touch()
    writable.chmod(0o777)
    sweep()
    assert not anew.exists()
    assert with_more.exists()
    assert writable.exists()


def test_no_socket_of_ray_s_gets_too_long_a_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/var/tmp")
    assert ray_files.base() == Path("/var/tmp")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("x" * 40)))
    assert ray_files.base() == Path("/tmp")
    longest = "/" + "x" * (ray_files.MOST_BASE - 1) + "/equitune-ray-12345678/r"
    longest += "/session_2026-12-01_05-02-33_308692_4194304/sockets/plasma_store"
    assert len(longest) <= 107


def test_a_handler_that_rays_library_puts_in_place_of_ours_does_not_stay() -> None:
    """The library's own ends the process with a dump of the stack; here the system's default stands for it."""
    program = """
import ctypes, os, signal, time
from equitune.driver.ray_thread import LOOK_S, run_leavable
heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append("heard"))
def work():
    ctypes.CDLL(None).signal(signal.SIGTERM, None)
    time.sleep(5 * LOOK_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5 * LOOK_S)
run_leavable(work, lambda: False)
print(*heard)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr


def test_no_garbage_is_collected_while_ray_shuts_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of Ray's references that another thread frees meanwhile ends the process, with code 1."""
    import ray

    collects: list[bool] = []
    for name, call in (
        ("init", lambda **_: None),
        ("cluster_resources", lambda: {"CPU": 2.0}),
        ("shutdown", lambda: collects.append(gc.isenabled())),
    ):
        monkeypatch.setattr(ray, name, call)
    with cluster.connected(Resources(), None):
        collects.append(gc.isenabled())
    assert (collects, gc.isenabled()) == ([True, False], True)


def test_what_ray_leaves_of_its_processes_is_ended(
    daemons: Callable[[str], subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    for name, call in (
        ("init", lambda **_: None),
        ("cluster_resources", lambda: {"CPU": 2.0}),
        ("shutdown", lambda: None),
    ):
        monkeypatch.setattr(ray, name, call)
    raylet, other = daemons("raylet"), daemons("bystander")
    with cluster.connected(Resources(), None):
        pass
    assert raylet.wait(5) == -signal.SIGKILL
    assert other.poll() is None


def test_nothing_is_taken_apart_at_the_end() -> None:
    """Python gives the signals back to the system before it takes its modules apart, which may last."""
    program = """
import time
from equitune.__main__ import leave
class Slow:
    def __del__(self):
        print("taken apart", flush=True)
slow = Slow()
print("said")
leave(0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "said\n"), done.stderr


@pytest.mark.parametrize(("full", "code"), [(True, 2), (False, 1)])  # 1 is click's, of a reader that has enough
def test_an_output_that_takes_nothing_is_no_traceback(full: bool, code: int) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "wb") if full else open(writer, "wb") as nowhere:
        run = [sys.executable, "-m", "equitune", "--version"]
        done = subprocess.run(run, stdout=nowhere, stderr=subprocess.PIPE, text=True)
    assert done.returncode == code, done.stderr
    assert ("cannot be written: No space left on device" in done.stderr) == full
    assert "Traceback" not in done.stderr


def test_what_libraries_log_once_the_log_is_closed_is_not_said(tmp_path: Path) -> None:
    """MLflow is sent the last numbers after that; a store that fails then is told of in a sentence of our own."""
    program = f"""
import logging, pathlib
from equitune.driver.log import logging_to
with logging_to(pathlib.Path({str(tmp_path / "log")!r})):
    logging.getLogger("mlflow").error("kept")
logging.getLogger("mlflow").error("dropped")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "log").read_text().endswith("mlflow ERROR kept\n")

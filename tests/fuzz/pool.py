"""Worker processes that are used again and again, each with a watchdog: a case that hangs is ended, and named."""

import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HANG_S = 20.0  # of one case: that it computes, or waits
IDLE_S = 0.5  # who computes less than this within its time waits for something
START_S = 120.0  # of a worker: it imports torch, on a machine that may be busy
MOST_HANGS = 5  # of an area: each of them costs HANG_S
TESTS = Path(__file__).parent.parent


@dataclass(frozen=True)
class Report:
    """How one case ended."""

    area: str
    index: int
    wrong: list[str]
    words: list[str]
    code: int | str | None
    seconds: float
    err: str
    peak_mib: int = 0

    def __str__(self) -> str:
        return f"{self.area}/{self.index}: {'; '.join(self.wrong)}\n    equitune {' '.join(self.words)!r:.600}"


class Worker:
    """One process that runs cases."""

    def __init__(self, place: Path, number: int) -> None:
        self.log = place / f"worker-{number}.txt"
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
            "MPLCONFIGDIR": str(place / "matplotlib"),
            "PYTHONWARNINGS": "ignore",
        }
        for name in [each for each in environment if each.startswith(("EQUITUNE_", "MLFLOW_", "RAY_"))]:
            del environment[name]
        command = [sys.executable, "-m", "fuzz.worker", str(place), str(self.log)]
        with (place / f"worker-{number}.err").open("ab") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment,
                start_new_session=True,
            )  # fmt: skip
        self._lines = b""
        if self._answer(START_S) != "ready":
            self.end()
            raise RuntimeError(f"a worker does not start: {(place / f'worker-{number}.err').read_text()[-2000:]}")

    def run(self, seed: int, area: str, index: int, limit_s: float) -> Any:
        """Return what the worker says of a case; None where it says nothing in time, or dies."""
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps([seed, area, index]).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return None
        return self._answer(limit_s)

    def end(self) -> str:
        """End the process; return where it stood, as the stack of its threads."""
        if self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGUSR1)
            time.sleep(0.3)
        stack = self.log.read_text() if self.log.exists() else ""
        with_children = self._process.pid  # which is the group's: it has a session of its own
        with suppress(ProcessLookupError):
            os.killpg(with_children, signal.SIGKILL)
        self.code = self._process.wait()
        return stack

    @property
    def has_died(self) -> bool:
        return self._process.poll() is not None

    def _cpu_s(self) -> float:
        """Return the seconds that the process has computed; 0 where the system does not say."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _answer(self, limit_s: float) -> Any:
        assert self._process.stdout
        end, cpu_s = time.monotonic() + limit_s, self._cpu_s()
        while b"\n" not in self._lines:
            if not select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
                before, cpu_s = cpu_s, self._cpu_s()  # on a busy machine a case that computes has more time
                used_s, limit_s = cpu_s - before, limit_s - (cpu_s - before)
                if limit_s <= 0 or used_s < IDLE_S:
                    return None
                end = time.monotonic() + limit_s
                continue
            more = os.read(self._process.stdout.fileno(), 65536)
            if not more:
                self._process.wait()
                return None
            self._lines += more
        line, _, self._lines = self._lines.partition(b"\n")
        return json.loads(line)


def run_cases(
    cases: Iterable[tuple[str, int]], seed: int, place: Path, workers: int = 2, limit_s: float = HANG_S
) -> list[Report]:
    """Run cases, named by area and index, in worker processes, and report each of them."""
    todo: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
    for case in cases:
        todo.put(case)
    reports: list[Report] = []
    hangs: dict[str, int] = {}
    errors: list[BaseException] = []

    def work(number: int) -> None:
        worker: Worker | None = None
        try:
            while True:
                try:
                    area, index = todo.get_nowait()
                except queue.Empty:
                    break
                if hangs.get(area, 0) >= MOST_HANGS:
                    reports.append(Report(area, index, ["not run: too many before it hang"], [], None, 0, ""))
                    continue
                if worker is None:
                    worker = Worker(place, number)
                answer = worker.run(seed, area, index, limit_s)
                if answer is not None:
                    reports.append(Report(area, index, **answer))
                    continue
                died = worker.has_died
                stack = worker.end()
                wrong = f"the process dies ({worker.code})" if died else f"hangs for more than {limit_s:g} s"
                hangs[area] = hangs.get(area, 0) + 1
                reports.append(Report(area, index, [wrong], [], None, limit_s, stack[-6000:]))
                worker = None
        except BaseException as error:
            errors.append(error)
        finally:
            if worker is not None:
                worker.end()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return sorted(reports, key=lambda report: (report.area, report.index))

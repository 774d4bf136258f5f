"""The process in which cases run, one after the other: reads their names from its standard input, answers in JSON."""

import faulthandler
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fuzz.case import CLUSTER, Case, Make, Outcome, complaints, snapshot

MOST_MEMORY = 12 * 2**30  # of addresses, of which torch alone reserves some GiB


class _Beyond(BaseException):
    """A command has come so far that it would start Ray, or a server."""


def main(place: Path, log: Path) -> None:
    """Run each case that a line of the standard input names, as [seed, area, index], within a folder of its own."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    commands = os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    faulthandler.register(signal.SIGUSR1, log.open("a"), all_threads=True)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    tempfile.tempdir = str(place)
    _warm_up()
    environment = dict(os.environ)
    print(json.dumps("ready"), file=answers, flush=True)
    for line in commands:
        seed, area, index = json.loads(line)
        folder = place / f"{area}-{index}"
        answer = _answer(seed, area, index, folder, log)
        os.environ.clear()
        os.environ.update(environment)
        _remove(folder)
        print(json.dumps(answer), file=answers, flush=True)


def run(case: Case, folder: Path) -> Outcome:
    """Run a command as the program does, with its output in files, so that what C code prints is had as well."""
    import equitune.cli

    out, err = folder / "out.txt", folder / "err.txt"
    kept = os.dup(1), os.dup(2), sys.argv, sys.stdout, sys.stderr, os.getcwd()
    with out.open("wb") as out_file, err.open("wb") as err_file:
        os.dup2(out_file.fileno(), 1)
        os.dup2(err_file.fileno(), 2)
    sys.argv = ["equitune", *case.words]
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    os.chdir(folder / "work")
    code: int | str = "none"
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in case.patches]
    try:
        for owner, name, value in case.patches:
            setattr(owner, name, value)
        code = equitune.cli._exit_code()
    except _Beyond:
        code = CLUSTER
    except BaseException:
        traceback.print_exc(file=sys.stderr)
        code = 1
    finally:
        for owner, name, value in originals:
            setattr(owner, name, value)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        os.close(kept[0])
        os.close(kept[1])
        sys.argv, sys.stdout, sys.stderr = kept[2], kept[3], kept[4]
        os.chdir(kept[5])
    return Outcome(code, *(path.read_text(encoding="utf-8", errors="backslashreplace") for path in (out, err)))


def _answer(seed: int, area: str, index: int, folder: Path, log: Path) -> dict[str, Any]:
    """Make a case, run it, judge it."""
    rng = random.Random(f"{seed}/{area}/{index}")
    inside = folder / "case"  # what must not change
    for name in ("work", "home", "tmp", "case/outside"):
        (folder / name).mkdir(parents=True)
    (inside / "outside" / "victim.txt").write_text("untouched")
    os.environ |= {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")}
    tempfile.tempdir = str(folder / "tmp")
    try:
        case = _maker(area)(rng, inside)
        for owner, name, _ in case.patches:
            getattr(owner, name)
    except Exception:
        wrong = f"the generator fails: {traceback.format_exc()[-1500:]}"
        return {"words": [], "code": None, "wrong": [wrong], "seconds": 0.0, "err": ""}
    os.environ |= case.env
    log.write_text(f"equitune {case.words!r}\n", encoding="utf-8", errors="backslashreplace")
    places = [folder / name for name in ("case", "work", "tmp", "home")]
    before = {path: what for place in places for path, what in snapshot(place).items()}
    began = time.monotonic()
    outcome = run(case, folder)
    seconds = time.monotonic() - began
    after = {path: what for place in places for path, what in snapshot(place).items()}
    return {
        "words": case.words,
        "code": outcome.code,
        "wrong": complaints(case, outcome, before, after),
        "seconds": round(seconds, 2),
        "err": outcome.err[-6000:],
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def _maker(area: str) -> Make:
    if area == "broken":
        from test_fuzz import a_broken_command

        return a_broken_command
    from fuzz.areas import AREAS

    return AREAS[area]


def _warm_up() -> None:
    """Import once what the commands import, and take away what a case must not reach: Ray and the network's waits."""
    import optuna  # noqa: F401
    import torch

    import equitune.cli
    import equitune.driver.run_study
    import equitune.driver.session
    import fuzz.areas  # noqa: F401
    from equitune.importing import foreign
    from equitune.measuring import compare
    from equitune.networks.device import make_deterministic

    torch.set_num_threads(1)
    make_deterministic("cpu")

    foreign._kept.append(foreign.Opener())  # not of a case, whose folder goes
    compare.close_opener = lambda: None  # it imports torch, seconds: one for all cases

    def beyond(*_: Any, **__: Any) -> None:
        raise _Beyond

    equitune.driver.session.connected = beyond  # type: ignore[assignment]
    equitune.driver.run_study.require_ray = beyond  # type: ignore[assignment]
    equitune.cli.tools.subprocess = SimpleNamespace(Popen=beyond)  # type: ignore[assignment]


def _remove(folder: Path) -> None:
    for parent, _, _ in os.walk(folder):
        os.chmod(parent, 0o700)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

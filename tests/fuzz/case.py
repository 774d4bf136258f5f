"""One generated case: what is typed, where, and what must hold afterwards."""

import hashlib
import os
import random
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TRACEBACK = "Traceback (most recent call last)"
HASHED_BYTES = 2**20  # of a file; of larger ones the size counts
CLUSTER = "beyond"  # the code of what would start Ray or a server, which no case does


@dataclass
class Case:
    """What a generator makes of its random numbers."""

    words: list[str]  # the command line, without the program's name
    places: list[str] = field(default_factory=list)  # a refusal names one of them: a file, a key, an option
    env: dict[str, str] = field(default_factory=dict)
    codes: tuple[int | str, ...] = (0, 2)
    writes: tuple[Path, ...] = ()  # where it may write, whole or not at all
    logs: tuple[Path, ...] = ()  # where it may write even if it refuses
    canary: Path | None = None  # exists where code of the input was run
    patches: list[tuple[Any, str, Any]] = field(default_factory=list)  # for the time of the command: owner, name, value


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int | str
    out: str
    err: str


Make = Callable[[random.Random, Path], Case]


def complaints(case: Case, outcome: Outcome, before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Say what is wrong with how a case ended; nothing where all holds."""
    said = outcome.err + outcome.out
    found = []
    if TRACEBACK in said:
        found.append(f"a traceback: {said.strip().splitlines()[-1][:300]}")
    elif outcome.code not in case.codes:
        found.append(f"exit code {outcome.code}, but only {case.codes} may be")
    elif outcome.code == 2 and not names_a_place(outcome.err, case):
        found.append(f"a refusal without a place: {outcome.err.strip()[:300]!r}")
    elif outcome.code == 2 and len(outcome.err) > 20_000:
        found.append(f"a refusal of {len(outcome.err):,} characters")
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    allowed = [str(path) for path in (*case.logs, *(case.writes if outcome.code != 2 else ()))]
    wild = [name for name in changed if not any(name == each or name.startswith(f"{each}/") for each in allowed)]
    if wild:
        found.append(f"written although nothing may be: {', '.join(wild)[:300]}")
    if case.canary is not None and case.canary.exists():
        found.append(f"code of the input was run: {case.canary} is there")
    return found


def names_a_place(sentence: str, case: Case) -> bool:
    """Tell whether a refusal names a file, a key or an option of its case."""
    options = [word.partition("=")[0] for word in case.words if word.startswith("-") and len(word) > 1]
    return any(place in sentence for place in (*case.places, *options, "command line")) or bool(
        re.search(r"--[a-z]", sentence)
    )


def snapshot(folder: Path) -> dict[str, str]:
    """Return what lies in a folder, link for link: path -> kind, size and hash. Nothing but regular files is opened."""
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(parent, name)
            found[path] = _described(path)
    return found


def _described(path: str) -> str:
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        return f"link {os.readlink(path)}"
    if not stat.S_ISREG(status.st_mode):
        return f"mode {stat.S_IFMT(status.st_mode)}"
    if status.st_size > HASHED_BYTES:
        return f"file of {status.st_size}"
    with open(path, "rb") as file:
        return f"file {hashlib.sha256(file.read()).hexdigest()}"

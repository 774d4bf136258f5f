"""Study folders in which one to three files are damaged, under every command that reads them, and under `search`."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz import values
from fuzz.case import CLUSTER, Case
from fuzz.templates import a_root, a_study_file

READING = [
    ["show", "small"], ["show", "small", "--json"], ["list"], ["list", "--json"], ["show", "small/1"], ["show", "small/1", "--json"],
    ["analyze", "small"], ["analyze", "small", "--json"], ["watch", "small"], ["pack", "small"],
]  # fmt: skip
WRITING = [
    ["report", "small", "--format", "csv"],
    ["report", "small", "--format", "markdown"],
    ["export", "small"],
]


def make(rng: random.Random, place: Path) -> Case:
    """Damage a study, then read it; or go on with it, where no Ray is needed."""
    root = a_root(place / "studies")
    (root / "small" / "driver.lock").touch()
    aimed = [path for path in sorted(root.rglob("*")) if not path.name.startswith("weights")]
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        path = rng.choice(aimed)
        if path.exists() and not path.is_symlink():
            rng.choice(_DAMAGES if path.is_file() else _OF_FOLDERS)(rng, path, place)
    if rng.random() < 0.1:
        rng.choice(_STRANGE)(root)
    case = Case([], ["small", str(root)], logs=(root / "small" / "study.log",))
    kind = rng.random()
    if kind < 0.7:
        case.words = rng.choice(READING)
    elif kind < 0.9:
        case.words = [*rng.choice(WRITING), "--output", str(place / "out")]
        case.writes = (place / "out",)
    elif kind < 0.93:
        case.words = ["fetch", "small", "--from", str(root), "--root", str(place / "copy")]
        case.writes = (place / "copy",)
        return case
    else:
        case.words = ["search", str(a_study_file(place)), "--no-register", "--tracking-uri", "http://127.0.0.1:9"]
        case.logs, case.codes = (root,), (0, 1, 2, CLUSTER)  # it draws the answer of what is whole, then refuses
    case.words = [*case.words, "--root", str(root)]
    return case


def _truncated(rng: random.Random, path: Path, place: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.choice([0, 1, rng.randrange(len(data) + 1)])])


def _flipped(rng: random.Random, path: Path, place: Path) -> None:
    data = bytearray(path.read_bytes() or b"x")
    for _ in range(rng.choice([1, 1, 5])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(data))


def _garbage(rng: random.Random, path: Path, place: Path) -> None:
    path.write_bytes(rng.choice([
        rng.randbytes(300), b"\x80" * 10, b"[]", b"{}", b"null", b"1", b'"x"', b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe{\x00}\x00", b"\0" * 4096, b"NaN",
        b"1e999", b"-", b"9" * 5000, b'{"study": "\\ud800"}', b"\n" * 1000, b'{"a": 1, "a": 2}', b"[{}]\n[]\nnull\n1\n",
    ]))  # fmt: skip


def _altered(rng: random.Random, path: Path, place: Path) -> None:
    """A value of its JSON becomes another one; a key is lost, or a new one comes."""
    try:
        data = json.loads(path.read_text())
    except ValueError:
        return _flipped(rng, path, place)
    nodes = list(_nodes(data))
    if not nodes:
        return _garbage(rng, path, place)
    parent, key = rng.choice(nodes)
    change = rng.randrange(4)
    if change == 0:
        del parent[key]
    elif change == 1 and isinstance(parent, dict):
        parent[values.text(rng)] = values.scalar(rng)
    else:
        parent[key] = rng.choice(
            [None, [], {}, "x", -1, 10**30, 1e308, float("nan"), True, values.text(rng), [1], {"a": 1}]
        )
    path.write_text(json.dumps(data), encoding="utf-8")


def _nodes(data: Any) -> list[tuple[Any, Any]]:
    items = list(data.items()) if isinstance(data, dict) else list(enumerate(data)) if isinstance(data, list) else []
    return [pair for key, inner in items for pair in ((data, key), *_nodes(inner))]


def _replaced(make: Callable[[Path, Path], object]) -> Callable[[random.Random, Path, Path], None]:
    def replace(rng: random.Random, path: Path, place: Path) -> None:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        make(path, place)

    return replace


def _folder_with_a_file(path: Path, place: Path) -> None:
    path.mkdir()
    (path / "x").write_text("x")


def _link_to(target: str) -> Callable[[Path, Path], None]:
    def link(path: Path, place: Path) -> None:
        path.symlink_to(target)

    return link


def _to_the_victim(path: Path, place: Path) -> None:
    path.symlink_to(place / "outside" / "victim.txt")


_DAMAGES: list[Callable[[random.Random, Path, Path], None]] = [
    _truncated, _flipped, _garbage, _garbage, _altered, _altered, _altered,
    _replaced(lambda path, place: None), _replaced(lambda path, place: path.mkdir()), _replaced(_folder_with_a_file),
    _replaced(lambda path, place: os.mkfifo(path)), _replaced(lambda path, place: path.symlink_to(path)), _replaced(_to_the_victim),
    _replaced(_link_to("/dev/zero")), _replaced(_link_to("/proc/self/environ")), _replaced(_link_to("nowhere")),
]  # fmt: skip
_OF_FOLDERS: list[Callable[[random.Random, Path, Path], None]] = [
    _replaced(lambda path, place: None), _replaced(lambda path, place: path.write_text("x")), _replaced(lambda path, place: os.mkfifo(path)),
    _replaced(lambda path, place: path.symlink_to(path)), _replaced(lambda path, place: path.mkdir()),
    _replaced(lambda path, place: path.symlink_to(place / "outside")),
]  # fmt: skip


def _odd_trials(root: Path) -> None:
    for name in ("99999", "٣", "7", "1e3", "9" * 200, "-1", "00001 ", "x\n"):
        (root / "small" / "trials" / name).mkdir(parents=True, exist_ok=True)
        (root / "small" / "trials" / name / "config.json").write_text("{}")


def _odd_studies(root: Path) -> None:
    for name in ("\x1b]0;x\x07", "a" * 255, "-", ".hidden", "ü", os.fsdecode(b"\xff\xfe")):
        (root / name).mkdir()
        (root / name / "study.json").write_text("{}")


_STRANGE: list[Callable[[Path], object]] = [
    lambda root: os.mkfifo(root / "pipe"),
    lambda root: (root / "loop").symlink_to("loop"),
    lambda root: (root / "file").write_text("x"),
    lambda root: (root / "up").symlink_to(root.parent),
    _odd_trials,
    _odd_studies,
]

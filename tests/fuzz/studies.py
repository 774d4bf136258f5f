"""Study files: mutants of the shipped search spaces, in their values, keys, structure and bytes."""

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from equitune import catalog
from fuzz import values
from fuzz.case import Case

SHIPPED = sorted((Path(__file__).parents[2] / "searchspaces").rglob("*.yaml"))
Node = tuple[Any, Any]  # a mapping or a list, and the key or the position within it


def make(rng: random.Random, place: Path) -> Case:
    """Check a mutant, or plan it."""
    file = place / rng.choice(["study.yaml", "study.yaml", "a b.yaml", "ünï.yaml", "s;x.yaml"])
    text = rng.choice(SHIPPED).read_text(encoding="utf-8")
    file.write_bytes(rng.choice(_FILES)(rng, text) if rng.random() < 0.3 else _tree(rng, text))
    words = ["check", str(file)]
    if rng.random() < 0.1:  # small enough that the plan itself is no matter of time
        words = [
            "search",
            "--dry-run",
            str(file),
            "--set",
            "search.trials=2",
            "--set",
            "data={name: digits, limit: 60}",
        ]
    elif rng.random() < 0.3:
        words += ["--set", f"{_path(rng, text)}={_written(values.value(rng)).strip()}"]
    return Case(words, [str(file)])


def odd_file(rng: random.Random, place: Path) -> Case:
    """What is no regular file of a study's size, or none at all."""
    file = place / "study.yaml"
    rng.choice(_ODD)(file)
    command = rng.choice(
        [["check"], ["search"], ["search", "--dry-run"], ["submit", "--cluster", "http://127.0.0.1:9"]]
    )
    return Case([*command, str(file)], [str(file)])


def argument(rng: random.Random, place: Path) -> Case:
    """Every setting of every component and section in turn, with a hostile value."""
    settings = list(_settings())
    section, key = rng.choice(settings)
    study: dict[str, Any] = {
        "study": "s", "data": {"name": "digits", "limit": 60}, "model": {"name": "resnet", "depth": 8, "width": 2},
        "training": {"epochs": 1}, "objectives": {"accuracy": "maximize"}, "search": {"trials": 2},
    }  # fmt: skip
    given = rng.choice([values.value, values.number, values.sized, values.sized, values.sized])(rng)
    kind, _, name = section.partition(" ")
    inner = {key: given}
    if kind == "measure":
        study["measures"] = [{"name": name, **inner}]
    elif kind == "augmentation":
        study["augmentation"] = {name: inner}
    elif kind == "model" or (kind == "prior" and rng.random() < 0.5):
        study[kind] = {**(study["model"] if name == "resnet" else {}), "name": name, **inner}
    elif name:
        study[{"dataset": "data"}.get(kind, kind)] = {"name": name, **inner}
    else:
        study[kind] = {**study.get(kind, {}), **inner}
    if kind == "prior" and name in catalog.parts("vit", "prior"):
        study["model"] = {"name": "vit"}
    file = place / "study.yaml"
    file.write_bytes(_written(study).encode("utf-8", "surrogatepass"))
    words = (
        ["search", "--dry-run", str(file), "--set", "search.trials=2"] if rng.random() < 0.2 else ["check", str(file)]
    )
    return Case(words, [str(file)])


def _settings() -> Iterator[tuple[str, str]]:
    from equitune.config.resources import Resources
    from equitune.config.search import SearchSpec
    from equitune.config.trial import DataConfig, InputConfig, TrainingConfig

    for kind in catalog.KINDS:
        for name in catalog.names(kind):
            for parameter in catalog.describe(kind, name).parameters:
                yield f"{kind} {name}", parameter
    for section, model in (
        ("training", TrainingConfig), ("input", InputConfig), ("data", DataConfig), ("search", SearchSpec), ("resources", Resources),
    ):  # fmt: skip
        for parameter in model.model_fields:
            yield section, parameter


def _tree(rng: random.Random, text: str) -> bytes:
    """A study whose plain data are changed in one to three places."""
    data = yaml.safe_load(text)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        nodes = list(_nodes(data))
        if nodes:
            rng.choice(_CHANGES)(rng, *rng.choice(nodes))
    return _written(data).encode("utf-8", "surrogatepass")


def _written(data: Any) -> str:
    try:
        return yaml.safe_dump(data, allow_unicode=True, sort_keys=False, width=10**6)
    except (ValueError, yaml.YAMLError):  # a number of thousands of digits
        return f"study: {'9' * 5000}\n"


def _nodes(data: Any, depth: int = 0) -> Iterator[Node]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, inner in items if depth < 20 else ():  # a part may hold itself
        yield data, key
        yield from _nodes(inner, depth + 1)


def _replace(rng: random.Random, parent: Any, key: Any) -> None:
    parent[key] = values.value(rng)


def _remove(rng: random.Random, parent: Any, key: Any) -> None:
    del parent[key]


def _rename(rng: random.Random, parent: Any, key: Any) -> None:
    if isinstance(parent, dict):
        parent[rng.choice([values.text(rng), values.scalar(rng), f"{key}s", "choose", "choice", "int", "name"])] = (
            parent.pop(key)
        )


def _wrap(rng: random.Random, parent: Any, key: Any) -> None:
    inner = parent[key]
    parent[key] = rng.choice([
        lambda: [inner], lambda: {"choose": {"conv": inner}}, lambda: {"choice": [inner, values.scalar(rng)]}, lambda: {"choose": inner},
        lambda: {"int": inner}, lambda: {"float": [inner, inner]}, lambda: {"name": inner}, lambda: {values.text(rng): inner},
    ])()  # fmt: skip


def _grow(rng: random.Random, parent: Any, key: Any) -> None:
    """A number becomes a range up to something large; a list of choices becomes long."""
    inner = parent[key]
    if isinstance(inner, list) and inner:
        parent[key] = [*inner, *(index + 1000 for index in range(rng.choice([10, 300, 5000])))]
    elif isinstance(inner, int | float) and not isinstance(inner, bool):
        parent[key] = rng.choice(
            [inner * 10**k for k in (1, 2, 3, 6, 9, 18)] + [{"int": [1, 10**9]}, {"float": [0.0, 1e9], "step": 1e-3}]
        )
    else:
        _replace(rng, parent, key)


def _exchange(rng: random.Random, parent: Any, key: Any) -> None:
    """Another component, or the value of another place."""
    kind = rng.choice(list(catalog.KINDS))
    parent[key] = rng.choice(
        [rng.choice(catalog.names(kind)), parent, {name: {} for name in catalog.names(kind)}][:: rng.choice([1, 2])]
    )
    if parent[key] is parent:
        parent[key] = dict(parent) if isinstance(parent, dict) else list(parent)


_CHANGES: list[Callable[..., None]] = [_replace, _replace, _replace, _remove, _rename, _wrap, _grow, _grow, _exchange]


def _path(rng: random.Random, text: str) -> str:
    """A dotted path of `--set`: one that the file has, or none."""
    data, parts = yaml.safe_load(text), []
    while isinstance(data, dict) and data:
        key = rng.choice(list(data))
        parts.append(str(key))
        data = data[key]
        if rng.random() < 0.3:
            break
    return rng.choice(
        [".".join(parts)] * 8 + [values.text(rng), "a..b", ".", "model.width.x.y.z", "measures.99999999999999999999"]
    )


def _flipped(rng: random.Random, text: str) -> bytes:
    data = bytearray(text.encode())
    for _ in range(rng.choice([1, 3, 30])):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def _cut(rng: random.Random, text: str) -> bytes:
    return text.encode()[: rng.randrange(len(text))]


def _lines(rng: random.Random, text: str) -> bytes:
    """Lines twice, away, in another order, or indented anew."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for _ in range(rng.choice([1, 2, 5])):
        at = rng.randrange(len(lines))
        change = rng.randrange(4)
        if change == 0:
            lines.insert(at, lines[at])
        elif change == 1 and len(lines) > 1:
            del lines[at]
        elif change == 2:
            rng.shuffle(lines)
        else:
            lines[at] = " " * rng.randrange(9) + lines[at].lstrip()
    return "\n".join(lines).encode()


def _inserted(rng: random.Random, text: str) -> bytes:
    tokens = [
        "&a", "*a", "<<: *a", "!!python/name:os.system", "!!binary aGk=", "!!set {a}", "!!timestamp 2026-01-01", "? ", "- ", ": ", "{", "}", "[", "]",
        "'", '"', "|", ">", "%YAML 1.3", "---", "...", "\t", "\0", "\ufeff", "\u2028", '"\\ud800"', '"\\x00"', '"\\U0010ffff"', "#", "@", "`", "!!float nan",
        "!!int 0b1", "!!null", "!<tag:yaml.org,2002:int> x", "*x", "&a [*a]", "~: 1", "? [a] : b", "1: 2", "true: 1", '"\\ud800": maximize',
    ]  # fmt: skip
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(tokens) + text[at:]
    return text.encode("utf-8", "surrogatepass")


def _whole(rng: random.Random, text: str) -> bytes:
    """Files that are hostile as a whole."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith(("#", "measures", "objectives")))
    bomb = "\n".join(
        [
            f"a0: &a0 [{', '.join(['1'] * 10)}]",
            *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)),
        ]
    )
    choices = [
        b"", b"\0" * 100, b"\xff\xfe" + text.encode("utf-16-le"), b"\xef\xbb\xbf" + text.encode(), text.encode("utf-32"), b"\x80abc", b"--- a\n--- b",
        b"[" * 100_000, b"{a: " * 60_000, b"- " * 50_000, b"a: " + b"9" * 150_000, b"? " * 3000, bomb.encode(), b"a: &a [*a]", b"study: &a {x: *a}",
        b"x" * 199_999, b"x: y\n" * 20_000, b"# " + b"x" * 300_000, ("study: " + "a" * 150_000).encode(), b"'" + b"\\" * 100_000, b'"' + b"\\ud800" * 1000 + b'"',
        f"{lines}\nobjectives: {{\"\\ud800\": maximize}}\n".encode(), f"{lines}\nobjectives: {{accuracy: \"\\ud800\"}}\n".encode(),
        f"{lines}\n\"\\ud800\": 1\nobjectives: {{accuracy: maximize}}\n".encode(), f"{lines}\nmeasures: [\"\\udfff\"]\nobjectives: {{accuracy: maximize}}\n".encode(),
        f"{lines}\nobjectives: {{{', '.join(f'm{i}: maximize' for i in range(3000))}}}\n".encode(),
        f"{lines}\nmeasures: [{', '.join(['equivariance'] * 1500)}]\nobjectives: {{accuracy: maximize}}\n".encode(),
        b"study: !!python/object/apply:os.system ['touch pwned']\n", b"a: !!binary ////", b"password: postgresql://u:p@h/d",
        b"study: x" + b"\n" * 150_000, b"%TAG ! tag:yaml.org,2002:python/\n---\n!name:os.system x",
    ]  # fmt: skip
    return rng.choice(choices)


_FILES: list[Callable[[random.Random, str], bytes]] = [_flipped, _cut, _lines, _inserted, _inserted, _whole]


def _looped(file: Path) -> None:
    file.symlink_to(file)


_ODD: list[Callable[[Path], object]] = [
    lambda file: None,
    lambda file: file.mkdir(),
    lambda file: os.mkfifo(file),
    _looped,
    lambda file: file.symlink_to("nowhere"),
    lambda file: file.symlink_to("/dev/zero"),
    lambda file: file.symlink_to("/proc/self/mem"),
    lambda file: file.symlink_to("/etc/shadow"),
    lambda file: file.write_bytes(b"a: 1\n" * 100_000),
]

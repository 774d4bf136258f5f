"""Command lines: every command of the program, with hostile words in its arguments and options."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import click

from equitune.cli import cli
from fuzz import values
from fuzz.case import CLUSTER, Case
from fuzz.templates import a_root, a_study_file

LOCAL = ("http://127.0.0.1:9", "http://127.0.0.1:9/x", "127.0.0.1:9")
ADDRESSES = [
    *LOCAL, "http://", "http://[::1", "ftp://x", "http://u:pw@127.0.0.1:9", "http://127.0.0.1:99999", "http://127.0.0.1:-1", "http://127.0.0.1:x",
    "javascript:1", "file:///etc/passwd", "\n", "http://\0", "http://127.0.0.1:9\r\nX: y",
]  # fmt: skip
NUMBERS = [
    "0",
    "1",
    "5",
    "6",
    "-1",
    "00000",
    "1e3",
    "٣",
    "99999999999999999999",
    "9" * 5000,
    "0x1",
    "",
    " 0",
    "0 ",
    "0/0",
    "²",
]
ROOTS = [
    "ftp://a/b", "http://x", "https://127.0.0.1:9/x", "memory://x", "file:", "file:///", "s3:/x", "s3://", "s3:///x", "s3://b?x=1", "s3://k@b/x", "gs://", "zip://a::s3://b/c",
    "simplecache::s3://b/x", "github://a:b@/", "~nouser/x", "~", "/proc/self", "/dev/null", "/dev/full/x", "/sys", "/root/x" * 100, "a" * 300,
]  # fmt: skip


def make(rng: random.Random, place: Path) -> Case:
    """Type a command with one to three hostile words, beside a root with a whole study."""
    root = a_root(place / "studies")
    names = [name for name, _ in _commands(cli)]
    name = rng.choice(names)
    command = dict(_commands(cli))[name]
    words: list[str] = []
    hostile = {rng.randrange(len(command.params) + 1) for _ in range(rng.choice([1, 1, 2, 3]))}
    for position, parameter in enumerate(command.params):
        is_hostile = position in hostile
        if isinstance(parameter, click.Argument):
            count = rng.choice([0, 1, 2]) if is_hostile and rng.random() < 0.1 else 1
            words += [_argument(rng, name, parameter, place, is_hostile) for _ in range(count)]
        elif isinstance(parameter, click.Option) and (
            is_hostile or parameter.name in ("root", "cluster", "data", "dry_run")
        ):
            words += _option(rng, parameter, place, root, is_hostile)
    if rng.random() < 0.1:
        words.insert(
            rng.randrange(len(words) + 1), rng.choice([values.text(rng), "--nope", "-x", "--set", "--json=1", "--root"])
        )
    path = name.split()
    if rng.random() < 0.03:
        path = [values.text(rng), *path[1:]]
    words = [word.replace("\0", "\\0") for word in (*path, *words)]  # no program can be given one
    words = [word.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape") for word in words]
    out = place / "out"
    writes = [out, place / "studies", place.parent / "work", place.parent / "home"] if _may_write(name) else []
    return Case(
        words,
        [word.partition("=")[2][:40] or word[:40] for word in words[1:] if len(word) > 3]
        + ["'", "Usage", str(place), "STUDY", "NUMBER", "data root"],
        env={"MLFLOW_TRACKING_URI": LOCAL[0], "AWS_ENDPOINT_URL": LOCAL[0], "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"},
        codes=(0, 2, *((CLUSTER,) if name in ("search", "submit", "ui") else ()), *((1,) if name in ("trial",) else ())),
        writes=tuple(writes),
    )  # fmt: skip


def _may_write(name: str) -> bool:
    return name not in ("check", "show", "list", "analyze", "watch", "pack", "catalog")


def _commands(group: click.Group, before: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command


def _argument(rng: random.Random, command: str, argument: click.Argument, place: Path, is_hostile: bool) -> str:
    good = {
        "file": str(a_study_file(place)),
        "files": str(a_study_file(place)),
        "study": "small",
        "studies": "small",
        "trial": "small/0",
        "models": "small/0",
        "dataset": "digits",
        "job": "small",
        "kind": "prior",
    }.get(argument.name or "", "small")
    if command == "measure":
        good = rng.choice(["resnet:depth=8,width=2", "small/0", "cnn:width=2"])
    if not is_hostile:
        return good
    if command == "measure":
        return rng.choice([
            f"resnet:{values.text(rng)}", f"resnet:depth={values.number(rng)!r:.4000}", f"{values.text(rng)}@x", "resnet@", "@", ":", "timm/", "timm/nope", "torchvision/x",
            f"resnet:width=2@{place / 'nothing.pt'}", str(place), "x.pt2", f"{place}/x.pt2", "resnet:depth=8,depth=8", f"small/{rng.choice(NUMBERS)}", values.text(rng),
            "resnet:depth=1000000", "resnet:width=100000000000", "vit:patch=999", "cnn:width=[1]", "resnet:{}", "resnet:width=1e400", "resnet:width=NaN", f"resnet@{place}",
        ])  # fmt: skip
    return rng.choice([
        values.text(rng), values.text(rng), f"small/{rng.choice(NUMBERS)}", f"{values.text(rng)}/{rng.choice(NUMBERS)}", "small/", "small//", "./small", "../studies/small",
        "small/trials", "small/trials/00000", str(place / "studies" / "small"), "SMALL", "smal", "small\n", "small ", "nothing.yaml", str(place), "/dev/null", "/dev/zero", "/etc/shadow",
    ])  # fmt: skip


def _option(rng: random.Random, option: click.Option, place: Path, root: Path, is_hostile: bool) -> list[str]:
    flag = rng.choice(option.opts)
    if option.is_flag:
        return [flag] if not is_hostile or rng.random() < 0.7 else [f"{flag}={values.text(rng)}"]
    good = {
        "root": str(root), "cluster": LOCAL[0], "data": "digits", "output": str(place / "out"), "source": str(root), "data_root": str(place / "data"),
        "tracking_uri": LOCAL[0], "host": "127.0.0.1",
    }.get(option.name or "", "1")  # fmt: skip
    if not is_hostile:
        return [flag, good]
    text = rng.choice([values.text(rng), values.text(rng), str(values.number(rng))[:4000], "0", "-1", "1e9", "nan"])
    if option.name in ("root", "data_root", "source"):
        text = rng.choice(
            [
                text,
                rng.choice(ROOTS),
                rng.choice(ROOTS),
                str(place / "studies" / "small" / "study.json"),
                str(_loop(place)),
                str(_fifo(place)),
            ]
        )
    elif option.name in ("cluster", "address", "storage", "tracking_uri", "host"):
        text = rng.choice(
            [
                text,
                *ADDRESSES,
                "postgresql://u:p@127.0.0.1:9/d",
                "postgresql://127.0.0.1:9/d",
                "sqlite:///x.db",
                "sqlite:////dev/full",
                "mysql://x",
            ]
        )
        if option.name == "host" and "127" not in text:
            text = "256.256.256.256"
    elif option.name == "overrides":
        text = rng.choice(
            [
                text,
                f"{values.text(rng)}={values.text(rng)}",
                f"search.trials={values.number(rng)!r:.4000}",
                "=",
                "a=",
                "=b",
                "study=[",
                "model.depth=1000000",
            ]
        )
    elif option.name in (
        "output",
        "token_file",
        "ship",
    ):  # no pipe: for one that the user names they wait, as all programs do
        text = rng.choice(
            [
                text,
                str(root),
                str(place / "studies" / "small" / "study.json"),
                "/dev/null",
                "/dev/full",
                "/proc/x",
                str(_loop(place)),
                "a" * 300,
            ]
        )
    elif option.name == "measures":
        text = rng.choice(
            [
                text,
                f"consistency:{values.text(rng)}",
                "equivariance:group=x",
                "consistency:num_shifts=1000000000000",
                "stability:cut_off=1e300",
                "x:y=z",
            ]
        )
    elif option.name in ("mean", "std"):
        text = rng.choice([text, "nan", "1,2", "1,2,3,4,5", "inf,inf,inf", "0", "-1", "1e-320", ","])
    if option.name in ("images", "batch", "size") and rng.random() < 0.5:
        text = rng.choice(["2", "1000000000000", "2147483648", "1"])
    return [flag, text] if rng.random() < 0.8 else [f"{flag}={text}"]


def _loop(place: Path) -> Path:
    path = place / "loop"
    if not path.is_symlink():
        path.symlink_to(path)
    return path


def _fifo(place: Path) -> Path:
    path = place / "fifo"
    if not path.exists():
        os.mkfifo(path)
    return path

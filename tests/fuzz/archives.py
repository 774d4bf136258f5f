"""What `fetch` is sent through a job's log: archives with names, links, sizes and headers that no study has."""

import base64
import gzip
import hashlib
import importlib
import io
import random
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import equitune.remote.submit
from equitune.records.archive import BEGIN, END, from_text
from equitune.remote.jobs import Job
from fuzz import values
from fuzz.case import Case
from fuzz.templates import a_root

NAMES = [
    "../victim.txt", "../../outside/victim.txt", "/tmp/x", "trials/../../x", "..\\x", "C:\\x", "\\\\host\\x", ".git/hooks/post-checkout", "attempts/1/x.pkl", "driver.json",
    "study.journal", "driver.lock", "heartbeat", "\x1b]0;x\x07", "trials/00000/../../../x", "trials/x/config.json", "trials/00000/config.json/x", "a" * 300, "trials/" + "a/" * 200,
    "study.json/x", "\ud800", "x\ny", "", ".", "..", "trials", "fetched.json", "trials/00000/checkpoint.pt", "CON", "front.html ", "searchspace.yaml", "~/x", "-rf", "trials//x",
]  # fmt: skip


def make(rng: random.Random, place: Path) -> Case:
    """Fetch an archive, into a place without the study or with it."""
    root = place / "here"
    if rng.random() < 0.3:
        a_root(root)
    sent = _text(rng, _archive(rng))
    at = rng.choice([None] * 20 + ["/nowhere", "ftp://x/y", "http://127.0.0.1:9/", str(root), "s3://", "file://x"])
    jobs = [Job("small@1", "small", "SUCCEEDED", 0, "", 0.0, rng.choice(["x", values.text(rng)]), at)]
    cluster = SimpleNamespace(url="http://127.0.0.1:9", jobs=lambda: jobs)
    patches: list[tuple[Any, str, Any]] = [
        (importlib.import_module("equitune.cli.fetch"), "connect", lambda *_, **__: cluster),
        (equitune.remote.submit, "carried", lambda *_, **__: from_text(sent) or b""),
    ]
    words = [
        "fetch",
        "small",
        "--root",
        str(root),
        "--cluster",
        "http://127.0.0.1:9",
        *(["--force"] * rng.randrange(2)),
        *(["--weights"] * rng.randrange(2)),
    ]
    places = ["archive", "study", "small"]
    return Case(words, places, writes=(root, root / "small"), patches=patches)


def _archive(rng: random.Random) -> bytes:
    kind = rng.randrange(12)
    if kind == 0:
        return rng.choice(
            [
                b"",
                b"x",
                b"\x1f\x8b",
                gzip.compress(b"x" * 10_000),
                gzip.compress(b"\0" * 10_240),
                b"BZh91AY&SY",
                rng.randbytes(2000),
            ]
        )
    if kind == 1:
        return _bomb(rng)
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w:gz", format=rng.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
    ) as made:
        for name, data in _files(rng).items():
            _add(made, name, data)
        for _ in range(rng.randrange(4)):
            name = rng.choice([*NAMES, values.text(rng)])
            fields: dict[str, Any] = rng.choice([
                {}, {}, {"type": tarfile.SYMTYPE, "linkname": rng.choice(["/etc/passwd", "../outside", "study.json"])}, {"type": tarfile.LNKTYPE, "linkname": "study.json"},
                {"type": tarfile.FIFOTYPE}, {"type": tarfile.CHRTYPE}, {"type": tarfile.DIRTYPE}, {"type": b"S"}, {"mode": 0o6777}, {"uid": 2**21}, {"mtime": 2**33}, {"type": b"Z"},
                {"pax_headers": {"size": "99999999999"}}, {"pax_headers": {"path": "../x"}}, {"pax_headers": {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}},
            ])  # fmt: skip
            _add(made, name, b"evil", **fields)
    data = buffer.getvalue()
    if kind == 2:
        data = data[: rng.randrange(len(data))]
    if kind == 3:
        raw = bytearray(gzip.decompress(data))
        for _ in range(rng.choice([1, 5, 50])):
            raw[rng.randrange(min(len(raw), 4096))] = rng.randrange(256)
        data = gzip.compress(bytes(raw))
    if kind == 4:
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        data = bytes(flipped)
    return data


def _files(rng: random.Random) -> dict[str, bytes]:
    files = {"study.json": b'{"study": "small"}', "trials/00000/config.json": b"{}", "trials/00000/result.json": b"{}"}
    if rng.random() < 0.2:
        del files[rng.choice(list(files))]
    if rng.random() < 0.1:
        files |= {f"trials/{number:05d}/result.json": b"{}" for number in range(500)}
    return files


def _add(made: tarfile.TarFile, name: str, data: bytes, **fields: Any) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    try:
        made.addfile(info, io.BytesIO(data))
    except (ValueError, UnicodeEncodeError):  # no archive of this format can say it
        return


def _bomb(rng: random.Random) -> bytes:
    """A small archive that unpacks to 1.5 GiB: of an entry, or of a header's long name."""
    block = bytearray(tarfile.TarInfo("trials/00000/log.txt").tobuf(tarfile.GNU_FORMAT))
    long_name = rng.random() < 0.5
    info = tarfile.TarInfo("././@LongLink" if long_name else "trials/00000/log.txt")
    info.size, info.type = 3 * 2**29, tarfile.GNUTYPE_LONGNAME if long_name else tarfile.REGTYPE
    head = gzip.compress(info.tobuf(tarfile.GNU_FORMAT))
    return head + _ZEROS * (3 * 2**29 // 2**24) + gzip.compress(bytes(block))


_ZEROS = gzip.compress(b"\0" * 2**24)


def _text(rng: random.Random, data: bytes) -> str:
    lines = [
        BEGIN.format(study="small", digest=hashlib.sha256(data).hexdigest()),
        *base64.encodebytes(data).decode().splitlines(),
        END,
    ]
    if rng.random() < 0.15 and len(lines) > 3:
        change = rng.randrange(4)
        if change == 0:
            del lines[rng.randrange(len(lines))]
        elif change == 1:
            lines[rng.randrange(len(lines))] = values.TEXTS[rng.randrange(len(values.TEXTS))]
        elif change == 2:
            lines = lines[: rng.randrange(len(lines))]
        else:
            lines = lines * 2
    return "\n".join(lines)

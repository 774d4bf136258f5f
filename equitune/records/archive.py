"""A study's folder on its way from one machine to another: as files, as an archive, as text in a log.

What comes from elsewhere is data: nothing of it decides where it is written but names within the study's folder.
"""

import base64
import binascii
import gzip
import hashlib
import io
import re
import tarfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from equitune.errors import UserError
from equitune.records.folder import StudyFolder, read_json, write_json, write_whole
from equitune.records.place import Place, files_below
from equitune.records.reader import is_driven

MOST_MIB = 1024  # of an archive, unpacked
BEGIN, END = "-----BEGIN STUDY {study} sha256={digest}-----", "-----END STUDY-----"
FETCHED = "fetched.json"  # what was fetched: from where, when, and each file's hash
_LEFT_OUT = ("attempts/", "driver.lock", "driver.json", "heartbeat", FETCHED)  # what only a driver needs


@dataclass(frozen=True)
class Fetched:
    """What a fetch has changed on this machine."""

    num_new: int
    num_changed: int
    num_same: int


def study_files(folder: StudyFolder, weights: bool = False) -> Iterator[tuple[str, bytes]]:
    """The files of a study that somebody else can read, by their names within its folder: its records and its answer.

    Checkpoints are left out, and what only a driver needs; `weights` adds the networks.
    """
    for name, path in files_below(folder.path):
        last = name.rpartition("/")[2]
        left_out = name.startswith(_LEFT_OUT) or last == "checkpoint.pt" or last.startswith(".")
        if left_out or (last == "weights.safetensors" and not weights):
            continue
        try:
            yield name, path.read_bytes()
        except FileNotFoundError:
            continue  # a study that runs replaces its files


def packed(files: Iterator[tuple[str, bytes]]) -> bytes:
    """Files as one compressed archive.

    Raises:
        UserError: they are too large.
    """
    buffer, size = io.BytesIO(), 0
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files:
            size += len(data)
            _require_size(size)
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = len(data), int(time.time())
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def unpacked(data: bytes) -> dict[str, bytes]:
    """The files of an archive, by name.

    Raises:
        UserError: it is damaged, or has an entry that no study has: a link, or a name that leads out of its folder.
    """
    files: dict[str, bytes] = {}
    size = 0
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
            for entry in archive:
                name = PurePosixPath(entry.name)
                inside = not name.is_absolute() and ".." not in name.parts and "\\" not in entry.name and name.parts
                if not entry.isreg() or not inside or "\0" in entry.name:
                    raise UserError(f"the archive holds '{entry.name}', which no study does: nothing of it was taken")
                size += entry.size
                _require_size(size)
                file = archive.extractfile(entry)
                assert file is not None  # of a regular file there is one
                files[str(name)] = file.read()
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, OSError, ValueError) as error:
        raise UserError(f"the archive is damaged ({error}): fetch again") from None
    return files


def as_text(study: str, data: bytes) -> Iterator[str]:
    """An archive as lines of plain text, which a log can hold, with its hash."""
    yield BEGIN.format(study=study, digest=hashlib.sha256(data).hexdigest())
    yield from base64.encodebytes(data).decode("ascii").splitlines()
    yield END


def from_text(text: str) -> bytes | None:
    """The archive that a log holds; None where it holds none.

    Raises:
        UserError: it did not arrive whole.
    """
    pattern = re.escape(BEGIN).replace(r"\{study\}", r"\S+").replace(r"\{digest\}", "([0-9a-f]{64})")
    begin = re.search(f"^{pattern}$", text, re.MULTILINE)
    if begin is None:
        return None
    body, end, _ = text[begin.end() :].partition(END)
    try:
        data = base64.b64decode("".join(body.split()), validate=True)
    except binascii.Error:
        data = b""
    if not end or hashlib.sha256(data).hexdigest() != begin[1]:
        raise UserError("the study did not arrive whole: fetch again")
    return data


def keep(folder: StudyFolder, files: Mapping[str, bytes], source: str, force: bool = False) -> Fetched:
    """Writes fetched files into a study's folder on this machine, over what an earlier fetch has left there.

    Args:
        folder: where they belong.
        files: by name within it.
        source: where they come from, to be kept.
        force: also over a record that was changed here, or over another study of the name.

    Raises:
        UserError: a driver is at work there; what is there is another study, or was changed here.
    """
    _require_study(folder.name, files)
    if is_driven(folder):
        raise UserError(
            f"study {folder.name} is being searched on this machine, in {folder.path}: fetch with --root DIR"
        )
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    here = {name: _hash(folder.path / name) for name in files}
    if folder.study.exists() and not force:
        before = _before(folder)
        own = [
            name
            for name, digest in here.items()
            if digest not in (None, hashes[name], before.get(name)) and _is_record(name)
        ]
        known = files.keys() | before.keys()
        beside = [name for name, _ in study_files(folder) if _is_record(name) and name not in known]
        if own or beside:
            what = ", ".join(sorted(own + beside)[:3])
            raise UserError(
                f"{folder.path} holds a study of this name that differs from the cluster's and did not come from "
                f"there ({len(own + beside)} files: {what}): fetch with --root DIR into another place, "
                "or over it with --force"
            )
    for name in sorted(files, key="study.json".__eq__):  # the last one: only then it is a study
        if here[name] != hashes[name]:
            write_whole(folder.path / name, files[name])
    write_json(folder.path / FETCHED, {"from": source, "at": time.time(), "files": _before(folder) | hashes})
    num_same = sum(here[name] == hashes[name] for name in files)
    num_new = sum(digest is None for digest in here.values())
    return Fetched(num_new, len(files) - num_new - num_same, num_same)


def _require_study(name: str, files: Mapping[str, bytes]) -> None:
    if "study.json" not in files:
        raise UserError(f"what arrived as study {name} has no study.json: nothing of it was written")


def _is_record(name: str) -> bool:
    """Whether a file is what the study found; of pictures and pages, each machine draws its own."""
    return name in ("study.json", "searchspace.yaml") or name.startswith("trials/")


def _before(folder: StudyFolder) -> dict[str, str]:
    """The hashes of what was fetched before."""
    path = folder.path / FETCHED
    said: dict[str, Any] = read_json(path) if path.is_file() else {}
    return dict(said.get("files", {}))


def _hash(path: Place) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _require_size(size: int) -> None:
    if size > MOST_MIB * 2**20:
        raise UserError(
            f"the study holds more than {MOST_MIB} MiB: fetch it without --weights, or copy its folder with the tools "
            "of its file system"
        )

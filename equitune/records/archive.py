"""A study's folder on its way from one machine to another: as files, as an archive, as text in a log.

What comes from elsewhere is data: nothing of it decides where it is written but names within the study's folder.
"""

import base64
import hashlib
import io
import re
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from equitune.errors import UserError
from equitune.records.folder import StudyFolder, read_json, write_json, write_whole
from equitune.records.names import is_inside, is_study_file, require_study_file
from equitune.records.place import Place, files_below, read_file
from equitune.records.reader import is_driven
from equitune.records.regular import require_unlinked

MOST_MIB = 1024  # of an archive, unpacked
MOST_FILES = 500_000  # of a study: seven a trial
IN_MEMORY_MIB = 32  # of an archive while it is unpacked; the rest lies on the disk
CHUNK = 2**20
BEGIN, END = "-----BEGIN STUDY {study} sha256={digest}-----", "-----END STUDY-----"
FETCHED = "fetched.json"  # what was fetched: from where, when, and each file's hash


@dataclass(frozen=True)
class Fetched:
    """What a fetch has changed on this machine."""

    num_new: int
    num_changed: int
    num_same: int


def study_files(folder: StudyFolder, weights: bool = False) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a study that somebody else can read, with their names within its folder: records and answer.

    What only a driver needs is left out, as is what no study has; `weights` adds the networks.

    Raises:
        UserError: the folder holds a name that leads out of it, or too much.
    """
    size = 0
    for num, (name, path, num_bytes) in enumerate(files_below(folder.path), 1):
        if not is_inside(name) and not isinstance(path, Path):
            raise UserError(f"{folder.path} holds {name[:200]!r}, which leads out of a study: nothing of it was taken")
        _require_count(num)
        if not is_study_file(name) or (name.endswith("/weights.safetensors") and not weights):
            continue
        size += num_bytes
        _require_size(size)
        with suppress(FileNotFoundError):  # a study that runs replaces its files
            yield name, read_file(path, MOST_MIB * 2**20)


def packed(files: Iterator[tuple[str, bytes]]) -> bytes:
    """Files as one compressed archive.

    Raises:
        UserError: they are too large.
    """
    buffer, size = io.BytesIO(), 0
    with tarfile.open(fileobj=buffer, mode="w:gz", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files:
            size += len(data)
            _require_size(size)
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = len(data), int(time.time())
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def unpacked(data: bytes) -> dict[str, bytes]:
    """Return the files of an archive, by name.

    Raises:
        UserError: it is damaged, too large, or has an entry that no study has: a link, or a name that leads elsewhere.
    """
    files: dict[str, bytes] = {}
    with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY_MIB * 2**20) as plain:
        try:
            _inflate(data, plain)
            _require_plain_headers(plain)
            plain.seek(0)
            with tarfile.open(fileobj=plain, mode="r:") as archive:
                for entry in archive:
                    require_study_file(entry.name, "the archive")
                    file = archive.extractfile(entry)
                    assert file is not None  # of a regular file there is one
                    files[entry.name] = file.read()
        except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:
            raise UserError(f"the archive is damaged ({error}): fetch again") from None
    return files


def _inflate(data: bytes, plain: IO[bytes]) -> None:
    """Decompress a gzip file, piece by piece and no further than a study may be large."""
    inflating, size = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS), 0
    while data and not inflating.eof:
        piece = inflating.decompress(data, CHUNK)
        size += len(piece)
        _require_size(size)
        plain.write(piece)
        data = inflating.unconsumed_tail
    if not inflating.eof:
        raise ValueError("it ends too early")


def _require_plain_headers(plain: IO[bytes]) -> None:
    """Refuse every entry but a regular file of a short name, before anything of its size is read.

    tarfile itself reads what a long name, or a table of attributes, says of its own size into memory.
    """
    at, num, end = 0, 0, plain.seek(0, io.SEEK_END)
    while at + tarfile.BLOCKSIZE <= end:
        plain.seek(at)
        header = plain.read(tarfile.BLOCKSIZE)
        if not header.strip(b"\0"):
            return
        entry = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        if entry.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or entry.size < 0:
            raise UserError(f"the archive holds {entry.name[:200]!r}, which no study does: nothing of it was taken")
        num += 1
        _require_count(num)
        at += tarfile.BLOCKSIZE * (1 + -(-entry.size // tarfile.BLOCKSIZE))
    raise ValueError("it ends too early")


def as_text(study: str, data: bytes) -> Iterator[str]:
    """Yield an archive as lines of plain text, which a log can hold, with its hash."""
    yield BEGIN.format(study=study, digest=hashlib.sha256(data).hexdigest())
    yield from base64.encodebytes(data).decode("ascii").splitlines()
    yield END


def from_text(text: str) -> bytes | None:
    """Return the archive that a log holds; None where it holds none.

    Raises:
        UserError: it did not arrive whole.
    """
    pattern = re.escape(BEGIN).replace(r"\{study\}", r"\S+").replace(r"\{digest\}", "([0-9a-f]{64})")
    begin = re.search(f"^{pattern}$", text, re.MULTILINE)
    if begin is None:
        return None
    body, end, _ = text[begin.end() :].partition(END)
    _require_size(len(body) // 2)  # base64 adds a third
    try:
        data = base64.b64decode("".join(body.split()), validate=True)
    except ValueError:  # no base64, or no ASCII
        data = b""
    if not end or hashlib.sha256(data).hexdigest() != begin[1]:
        raise UserError("the study did not arrive whole: fetch again")
    return data


def keep(folder: StudyFolder, files: Mapping[str, bytes], source: str, force: bool = False) -> Fetched:
    """Write fetched files into a study's folder on this machine, over what an earlier fetch has left there.

    Args:
        folder: where they belong.
        files: by name within it.
        source: where they come from, to be kept.
        force: also over a record that was changed here, or over another study of the name.

    Raises:
        UserError: a driver is at work there; what is there is another study, or was changed here.
    """
    for name in files:
        require_study_file(name, f"what arrived as study {folder.name}")
    _require_study(folder.name, files)
    if is_driven(folder):
        raise UserError(
            f"study {folder.name} is being searched on this machine, in {folder.path}: fetch with --root DIR"
        )
    for name in files:
        _require_no_link(folder, name)
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


def _require_no_link(folder: StudyFolder, name: str) -> None:
    """Refuse to write, or to read, behind a link within the study's folder."""
    try:
        if isinstance(folder.path, Path):
            require_unlinked(folder.path / name, folder.path)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}, and fetch again") from None


def _is_record(name: str) -> bool:
    """Whether a file is what the study found; of pictures and pages, each machine draws its own."""
    return name in ("study.json", "searchspace.yaml") or name.startswith("trials/")


def fetched_from(folder: StudyFolder) -> str | None:
    """Return where a study's folder on this machine was fetched from before."""
    return _fetched(folder).get("from")


def _before(folder: StudyFolder) -> dict[str, str]:
    """Return the hashes of what was fetched before."""
    return dict(_fetched(folder).get("files", {}))


def _fetched(folder: StudyFolder) -> dict[str, Any]:
    path = folder.path / FETCHED
    return dict(read_json(path)) if path.is_file() else {}


def _hash(path: Place) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _require_count(num: int) -> None:
    if num > MOST_FILES:
        raise UserError(
            f"the study holds more than {MOST_FILES:,} files: copy its folder with the tools of its file system"
        )


def _require_size(size: int) -> None:
    if size > MOST_MIB * 2**20:
        raise UserError(
            f"the study holds more than {MOST_MIB} MiB: fetch it without --weights, or copy its folder with the tools "
            "of its file system"
        )

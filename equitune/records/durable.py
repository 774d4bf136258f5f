"""The one door through which a study's files are written: what returns from here is still there after a power cut.

On a disk a file is whole or not there, and it is flushed (`fsync`) together with the folder that names it, before the
caller reports it to anybody. A failed flush raises: the kernel forgets what it could not write, so another flush of the
same file would succeed without the data. In an object store a write that was answered is durable by the store's
contract. Readers may see a new file some milliseconds before it is flushed.
"""

import errno
import json
import os
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

from equitune.records.place import Place
from equitune.records.regular import require_unlinked

# Where a file system cannot flush a folder. PostgreSQL's fsync_fname ignores the first two as well.
NO_FLUSH_OF_FOLDERS = (errno.EBADF, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


def write_json(path: Place, data: Any) -> None:
    """Write a file as JSON, as `write_whole` does."""
    write_whole(path, json.dumps(data, indent=1, allow_nan=False).encode())


def write_whole(path: Place, data: bytes | memoryview) -> None:
    """Write a file whole or not at all, and make its folder.

    Raises:
        OSError: it cannot be written or flushed; what stood there before still stands, or the new file does.
    """
    if not isinstance(path, Path):
        path.write_bytes(data)
        return
    require_unlinked(path.parent)  # a link in place of the file itself is replaced
    make_folder(path.parent)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "wb", opener=_open_unlinked) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):  # on a file system that has become read-only
            partial.unlink(missing_ok=True)
        error.filename = str(path)  # what failed to be written says no name
        raise


def append(path: Place, text: str) -> None:
    """Add lines to the end of a file. A last line that was torn by a power cut or a full disk is ended first.

    Raises:
        OSError: they cannot be written or flushed.
    """
    if not isinstance(path, Path):
        before = ""
        with suppress(FileNotFoundError):
            before = path.read_text()
        path.write_text(before + text)  # nothing is appended to in an object store
        return
    require_unlinked(path)
    try:
        with open(path, "ab+", opener=_open_unlinked) as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                text = text if file.read(1) == b"\n" else "\n" + text
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        if not size:  # it may be new in its folder
            sync_folder(path.parent)
    except OSError as error:
        error.filename = str(path)
        raise


def rewrite(path: Place) -> None:
    """Write a file again as it stands, for one whose writer died before it could say that the file is on the disk."""
    if isinstance(path, Path):
        write_whole(path, path.read_bytes())


def make_folder(folder: Place) -> None:
    """Make a folder and the folders above it, where they do not exist. Raises OSError where it cannot."""
    if not isinstance(folder, Path) or folder.is_dir():
        return
    missing = [folder]
    missing += takewhile(lambda parent: not os.path.lexists(parent), folder.parents)
    try:
        for each in reversed(missing):
            each.mkdir(exist_ok=True)
            sync_folder(each.parent)
    except OSError as error:
        error.filename = str(folder)
        raise


def replace(source: Path, target: Path) -> None:
    """Give a file, or a folder with all that lies in it, another name beside its own. Raises OSError."""
    for path in [*source.rglob("*"), source] if source.is_dir() else [source]:
        sync_folder(path) if path.is_dir() else sync_file(path)
    os.replace(source, target)
    sync_folder(target.parent)


def remove(path: Place) -> None:
    """Remove a file, if there is one, so that no power cut brings it back. Raises OSError where it cannot."""
    if not isinstance(path, Path):
        path.unlink(missing_ok=True)
    elif path.exists():
        path.unlink(missing_ok=True)
        sync_folder(path.parent)


def truncate(path: Path, size: int) -> None:
    """Cut a file off after a number of bytes. Raises OSError where it cannot."""
    with path.open("r+b") as file:
        file.truncate(size)
        os.fsync(file.fileno())


def sync_file(path: Path) -> None:
    """Flush a file that another library wrote, before it gets its name. Raises OSError, which names it."""
    _sync(path, os.O_RDONLY)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder: what was made, renamed or removed there. Raises OSError, which names it."""
    try:
        _sync(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        if error.errno not in NO_FLUSH_OF_FOLDERS:
            raise


def _open_unlinked(path: str, flags: int) -> int:
    """Open a file for `open`; a link that somebody placed there raises OSError (ELOOP)."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _sync(path: Path, flags: int) -> None:
    try:
        descriptor = os.open(path, flags)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        error.filename = str(path)
        raise

"""The one way to read a file of a folder that others can write into: no link is followed, no pipe is waited for."""

import errno
import os
import stat
from pathlib import Path

DEPTH = 3  # trials/00017/result.json: how far below its folder a study's files lie
MOST_BYTES = 256 * 2**20  # of one record: the largest that a study of 50,000 images has written is a hundredth of it


def read_regular(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """Return the content of a regular file. The folders on the way may be links, the file itself may not.

    Args:
        path: the file.
        most_bytes: how large it may be; asked before any memory is taken.

    Raises:
        OSError: there is none, it cannot be read, it is a link (ELOOP), a folder (EISDIR), a pipe, a socket or a device
            (EINVAL), or it is larger (EFBIG).
    """
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        found = os.fstat(file)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        if found.st_size > most_bytes:
            raise OSError(errno.EFBIG, f"it has {found.st_size:,} bytes, of at most {most_bytes:,}", str(path))
        with os.fdopen(file, "rb", closefd=False) as opened:
            return opened.read(most_bytes)
    finally:
        os.close(file)


def is_regular(path: Path) -> bool:
    """Return whether a file is there that `read_regular` would read: no link, pipe, device or folder."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def require_unlinked(path: Path, study: Path | None = None) -> None:
    """Refuse a place of a study that lies behind a link. The study's folder itself may lie behind one.

    Args:
        path: what is to be written or read.
        study: the study's folder; None: the one that `path` lies in. What lies in no study is not looked at.

    Raises:
        OSError: ELOOP, with the name of the link.
    """
    study = study or find_study_above(path)
    while study is not None and path != study:
        if path.is_symlink():
            raise OSError(errno.ELOOP, "it is a link, which a study does not follow: remove it", str(path))
        path = path.parent


def find_study_above(path: Path) -> Path | None:
    """Return the study's folder that a place is or lies in; None where it lies in none."""
    return next((folder for folder in (path, *path.parents[:DEPTH]) if os.path.lexists(folder / "study.json")), None)

"""Ray's own files: a folder for one search, that nobody else can enter, and that does not outlive it for long.

A driver that is killed leaves its folder. The lock on it goes with the driver, so the next search sees that nobody
uses it, and removes it. Links, folders of other users, and folders that are neither marked nor hold Ray's sessions
alone are never touched.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "equitune-ray-"
MARK = "made-by-equitune"  # a file in the folder
TEMPORARY = "r"  # what Ray is told to take for its files, below
MOST_BASE = 18  # characters: a socket's path has 107, and what follows takes 89


def base() -> Path:
    """Return where Ray keeps temporary files; /tmp where that is too long a path for its sockets."""
    asked = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    return Path(asked if len(os.fsencode(asked)) <= MOST_BASE else "/tmp")  # noqa: S108


@contextmanager
def own_folder() -> Iterator[Path]:
    """Make a folder for the time of the block."""
    where = base()
    begun = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=where))
    lock = os.open(begun, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (begun / MARK).touch()
        folder = begun.rename(where / begun.name.removeprefix("."))  # only now can another search see it
        try:
            yield folder
        finally:
            _remove(folder)
    finally:
        os.close(lock)


def _remove(folder: Path) -> None:
    """Remove a folder. What a dying daemon still writes there is marked, and left to the next search."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        (folder / MARK).touch()


def sweep() -> None:
    """Remove the folders that dead searches of this user have left."""
    for folder in base().glob(f"{PREFIX}*"):
        with suppress(OSError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if _is_ours(lock):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _remove(folder)
            finally:
                os.close(lock)


def _is_ours(folder: int) -> bool:
    """Say whether an open folder is this user's, closed to others, and marked; or was made anew after its removal."""
    status = os.fstat(folder)
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        return False
    with suppress(OSError):
        os.stat(MARK, dir_fd=folder, follow_symlinks=False)
        return not status.st_mode & 0o077
    return _is_made_anew(folder)


def _is_made_anew(folder: int) -> bool:
    """Say whether nothing lies in an open folder but Ray's sessions, as its path on the driver is.

    A worker that was just starting when its raylet was killed makes these folders, wherever it finds none.
    """
    if os.listdir(folder) != [TEMPORARY]:
        return False
    inner = os.open(TEMPORARY, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
    try:
        return all(name.startswith("session_") for name in os.listdir(inner))
    finally:
        os.close(inner)

"""Data that lie elsewhere: copied from a bucket or a slow volume to this node, once, by whichever process is first.

The others wait for it. Beside the copy lie `.copied`, a line for each whole file, from which an interrupted copy goes
on, and `.whole`, the stamp of the listing that it is a copy of.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock, Timeout

from equitune.config.address import FOLDERS, store_address
from equitune.errors import UserError
from equitune.records.durable import make_folder, sync_file, sync_folder, write_whole

Say = Callable[[str], None]
Listing = dict[str, tuple[int, str]]  # name below the folder -> its bytes, and its ETag or time of change

THREADS = 16  # of a copy: each mostly waits for the network
AT_ONCE = 1024  # files that are asked for, so that memory does not grow with the number of files
MOST_FILES, MOST_LETTERS = 20_000_000, 1024  # of a data set, and of a name in it: S3 takes no longer ones
SPARE = 0.02  # of the disk, which a copy leaves free
SAY_S = 5.0
_TAGS = ("ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "last_modified", "updated")
# So that a store which does not answer is told within half a minute.
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 3}}}
}


@dataclass(frozen=True)
class Source:
    """A folder of data, wherever it lies.

    Attributes:
        root: the data root: a folder, or a URL that fsspec knows, such as s3://bucket/data.
        folder: below the root; or a place of its own, absolute.
        stamp: of the listing that is meant, so that every node has the same files; empty: as they are now.
    """

    root: str
    folder: str
    stamp: str = ""

    @property
    def place(self) -> str:
        """The whole path or URL."""
        if is_url(self.folder):
            return self.folder.rstrip("/")
        return f"{self.root.rstrip('/')}/{self.folder}" if is_url(self.root) else str(Path(self.root, self.folder))


def is_url(root: str) -> bool:
    """Whether a data root is a URL rather than a folder."""
    return "://" in root


def cache_root() -> Path:
    """Where this node keeps what it has copied or decoded: EQUITUNE_DATA_CACHE, or ~/.cache/equitune."""
    given = os.environ.get("EQUITUNE_DATA_CACHE")
    try:
        return Path(given).expanduser() if given else Path.home() / ".cache" / "equitune"
    except RuntimeError:
        raise UserError(
            f"EQUITUNE_DATA_CACHE: {given or '~'} is the home of nobody known here: name a folder"
        ) from None


def on_node(source: Source, say: Say = lambda sentence: None) -> tuple[Path, str]:
    """Return the folder on this node, and the stamp of what it holds, empty where nothing was copied.

    A folder is read where it lies, unless EQUITUNE_DATA_CACHE names a place for copies. What lies at a URL is copied.

    Args:
        source: what is wanted.
        say: is told of the progress, a sentence at a time.

    Raises:
        UserError: there is no such folder, or it cannot be reached, read or copied, or it has changed; says why.
    """
    if not is_url(source.place) and not os.environ.get("EQUITUNE_DATA_CACHE"):
        return Path(source.place), ""
    store_address(source.place, "a data root")
    target = _target(source)
    if source.stamp and _stamp(target) == source.stamp:
        return target, source.stamp
    try:
        make_folder(target.parent)
        with locked(target, f"waiting for another process of this node that copies {source.place}", say):
            if source.stamp and _stamp(target) == source.stamp:
                return target, source.stamp
            return target, _copied(source, target, say)
    except OSError as error:
        raise unwritable(error) from None


@contextmanager
def locked(target: Path, while_waiting: str, say: Say) -> Iterator[None]:
    """Hold the lock of what is made at a place; a process that dies lets go of it."""
    lock = FileLock(f"{target}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(while_waiting)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class CannotKeep(UserError, OSError):
    """The cache's disk is full, or is not to be written: no fault of a trial."""


def unwritable(error: OSError) -> CannotKeep:
    """Return what the cache's disk says, as a sentence."""
    cache = cache_root()
    if isinstance(error, CannotKeep):
        return error
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CannotKeep(f"{cache} is full: free some space, or name another folder with EQUITUNE_DATA_CACHE")
    why = error.strerror or error
    return CannotKeep(
        f"{error.filename or cache} cannot be written ({why}): name another folder with EQUITUNE_DATA_CACHE"
    )


def _copied(source: Source, target: Path, say: Say) -> str:
    """Brings a copy up to date; its new stamp."""
    system, base, listing = _listed(source.place)
    stamp = hashlib.blake2b(json.dumps(sorted(listing.items())).encode(), digest_size=8).hexdigest()
    if source.stamp and stamp != source.stamp:
        raise UserError(f"{source.place} has changed since the study was started: start it again")
    had = _journal(target)
    missing = [name for name, entry in listing.items() if had.get(name) != entry or not _is_there(target, name, entry)]
    if not missing and had.keys() == listing.keys() and _stamp(target) == stamp:
        return stamp
    _whole(target).unlink(missing_ok=True)
    for name in had.keys() - listing.keys():
        _remove(target / name)
    need = sum(listing[name][0] for name in missing)
    require_room(need, source.place)
    with _copied_so_far(target).open("a", encoding="utf-8") as journal:
        done = sent = 0
        told = time.monotonic()
        for name in _fetched(system, base, target, missing, listing, source.place):
            journal.write(json.dumps([name, *listing[name]]) + "\n")
            journal.flush()
            done, sent = done + 1, sent + listing[name][0]
            if time.monotonic() - told > SAY_S or done == len(missing):
                told = time.monotonic()
                amount = f"{done:,} of {len(missing):,} files, {sent / 1e9:.2f} of {need / 1e9:.2f} GB"
                say(f"copying {source.place}: {amount}")
    lines = (json.dumps([name, *entry]) + "\n" for name, entry in listing.items())
    _flush(target, listing)
    write_whole(_copied_so_far(target), "".join(lines).encode())
    write_whole(_whole(target), stamp.encode())
    return stamp


def _remove(path: Path) -> None:
    """Remove what lies at a place, if anything. Older versions copied links to folders, as folders."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush(target: Path, listing: Listing) -> None:
    """Bring a whole copy onto the disk: in one go, since most of it has been written there meanwhile."""
    folders = {target.parent}
    for name in listing:
        sync_file(target / name)
        folders |= set((target / name).parents[: len(PurePosixPath(name).parts)])
    for folder in folders:
        sync_folder(folder)


def _listed(place: str) -> tuple[Any, str, Listing]:
    """Return the file system of a place, the place's name there, and what it holds."""
    import fsspec  # a tenth of a second to import, and its doors far more

    protocol = place.partition("://")[0] if is_url(place) else "file"
    try:
        if is_url(place):
            system, base = fsspec.core.url_to_fs(place, **_OPTIONS.get(protocol, {}))
        else:  # a path may hold `::`, which chains addresses
            system, base = fsspec.filesystem("file"), place
        system.invalidate_cache()
        found = system.find(base, detail=True)
    except ImportError as error:
        install = "pip install 'equitune[s3]'" if protocol == "s3" else f"install it ({_first_line(error)})"
        raise UserError(f"{place}: {protocol}:// needs a package that is not there: {install}") from None
    except Exception as error:  # of many kinds: each file system has its own
        raise _unreadable(place, error) from None
    if len(found) > MOST_FILES:
        raise UserError(f"{place} holds {len(found):,} files, of at most {MOST_FILES:,}: pack them into fewer")
    listing: Listing = {}
    for path, info in found.items():
        name = path[len(base.rstrip("/")) + 1 :]
        if not name or name.endswith("/"):  # what some tools leave in a bucket for an empty folder
            continue
        if not _may_be_copied(name):
            raise UserError(f"{place} holds {name[:200]!r}, which would lie outside of its copy: rename or remove it")
        if protocol in FOLDERS and not os.path.isfile(path):  # behind a link, too
            if os.path.isdir(path) or os.path.islink(path):
                continue  # a link to a folder, or to nothing: a copy has neither
            raise UserError(f"{place}/{name} is no file but a pipe, a socket or a device: remove it")
        size = info.get("size")
        if not isinstance(size, int) or size < 0:
            raise UserError(
                f"{place} does not say how many bytes {name!r} has: copy the data into a folder or a bucket"
            )
        tag = next((str(info[key]) for key in _TAGS if info.get(key) is not None), "")
        listing[name] = (size, tag)
    if not listing:
        raise _unreadable(place, FileNotFoundError())
    return system, base.rstrip("/"), listing


def _may_be_copied(name: str) -> bool:
    """Return whether a name from a listing stays within the folder that it is copied to."""
    parts = name.split("/")
    is_plain = not re.search(r"[\x00-\x1f\x7f\\]", name)
    return is_plain and len(name) <= MOST_LETTERS and not {"", ".", ".."} & set(parts)


def _unreadable(place: str, error: Exception) -> UserError:
    """Why a place cannot be read, by what its file system raised."""
    kind, said = type(error).__name__, _first_line(error)
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return UserError(
            f"there is nothing in {place}: put the data there, or name their root with --data-root or EQUITUNE_DATA"
        )
    if isinstance(error, PermissionError) or "Credential" in kind or "Forbidden" in str(error):
        return UserError(f"{place} may not be read ({said}): give this node the right to list and read it")
    return UserError(f"{place} cannot be reached ({said}): mend that and run the same command again")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _fetched(system: Any, base: str, target: Path, names: list[str], listing: Listing, place: str) -> Iterator[str]:
    """Copy files, several at a time; give the name of each that is whole."""

    def fetch(name: str) -> str:
        path = target / name
        part = path.with_name(path.name + ".part")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            system.get_file(f"{base}/{name}", str(part))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT) or error.filename == str(part):
                raise unwritable(error) from None
            raise _unreadable(f"{place}/{name}", error) from None
        except Exception as error:
            raise _unreadable(f"{place}/{name}", error) from None
        if part.stat().st_size != listing[name][0]:
            raise UserError(
                f"{place}/{name} has {listing[name][0]} bytes, but {part.stat().st_size} came: "
                "run the same command again; what is whole is kept"
            )
        part.replace(path)  # flushed with the others, before `.whole` says that they are there
        return name

    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for start in range(0, len(names), AT_ONCE):
                futures = [pool.submit(fetch, name) for name in names[start : start + AT_ONCE]]
                yield from (future.result() for future in as_completed(futures))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def require_room(need: int, place: str) -> None:
    """Raise CannotKeep where the cache's disk has not so many bytes to give."""
    disk = shutil.disk_usage(cache_root())
    free = disk.free - int(SPARE * disk.total)
    if need > free:
        raise CannotKeep(
            f"{place} needs {need / 1e9:.1f} GB, but {cache_root()} has {max(free, 0) / 1e9:.1f} to give: "
            "free some space, or name another folder with EQUITUNE_DATA_CACHE"
        )


def _target(source: Source) -> Path:
    """Where the copy of a source lies: its folder's name is kept, since data sets look for it below their root."""
    folder = PurePosixPath(source.folder)
    if is_url(source.folder) or folder.is_absolute() or ".." in folder.parts:
        root, _, name = source.place.rstrip("/").rpartition("/")
        folder = PurePosixPath(name)
    else:
        root = source.root if is_url(source.root) else str(Path(source.root).absolute())
    return cache_root() / hashlib.blake2b(root.rstrip("/").encode(), digest_size=8).hexdigest() / folder


def _is_there(target: Path, name: str, entry: tuple[int, str]) -> bool:
    try:
        return (target / name).stat().st_size == entry[0]
    except OSError:
        return False


def _journal(target: Path) -> Listing:
    """Return the files that are whole; a line that was cut off counts for nothing."""
    found: Listing = {}
    try:
        lines = _copied_so_far(target).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return found
    for line in lines:
        try:
            name, size, tag = json.loads(line)
        except ValueError:
            continue
        found[name] = (size, tag)
    return found


def _copied_so_far(target: Path) -> Path:
    return target.with_name(target.name + ".copied")


def _whole(target: Path) -> Path:
    return target.with_name(target.name + ".whole")


def _stamp(target: Path) -> str:
    try:
        return _whole(target).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""

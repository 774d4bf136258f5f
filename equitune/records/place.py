"""Where a study's folder may lie: on a disk, as pathlib has it, or in an object store, through fsspec.

A `RemotePath` has what of `pathlib.Path` a study's folder needs. In a store there are no folders and nothing is
appended: a folder is what names begin with, and a file is put whole or not at all.
"""

import errno
import functools
import io
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from equitune.config.address import FOLDERS, store_address
from equitune.errors import StoreError, UserError
from equitune.records.patience import cleaned, no_bucket, patiently, trust
from equitune.records.regular import is_regular, read_regular

# Who waits is `patiently`, not the client. Whoever fetches a file in parts first asks how large it is.
S3: dict[str, Any] = {
    "connect_timeout": 5,
    "read_timeout": 30,
    "retries": {"max_attempts": 2},
    "max_pool_connections": 32,
}
OPTIONS: dict[str, dict[str, Any]] = {"s3": {"config_kwargs": S3, "max_concurrency": 1}}
MTIMES = ("LastModified", "mtime", "modified", "last_modified", "updated", "created")  # what file systems call it
EXTRAS = {
    "abfs": "pip install adlfs",
    "s3": "pip install 'equitune[s3]'",
    "gs": "pip install gcsfs",
    "gcs": "pip install gcsfs",
}

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Stat:
    """What is known of a file."""

    st_mtime: float  # Unix time, in seconds, by the store's clock
    st_size: int


class RemotePath:
    """A file or a folder in an object store. Every method that asks the store raises StoreError where it refuses."""

    def __init__(self, files: Any, scheme: str, at: PurePosixPath) -> None:
        """`files`: fsspec's file system; `at`: the bucket and what follows."""
        self.files, self.scheme, self.at = files, scheme, at

    @property
    def store(self) -> str:
        """The store's name: s3://bucket."""
        return f"{self.scheme}://{self.at.parts[0]}"

    @property
    def name(self) -> str:
        return self.at.name

    @property
    def stem(self) -> str:
        return self.at.stem

    @property
    def suffix(self) -> str:
        return self.at.suffix

    @property
    def parent(self) -> "RemotePath":
        return self._at(self.at.parent)

    def with_name(self, name: str) -> "RemotePath":
        return self._at(self.at.with_name(name))

    def with_suffix(self, suffix: str) -> "RemotePath":
        return self._at(self.at.with_suffix(suffix))

    def through(self, files: Any) -> "RemotePath":
        """Return the same place, asked through another file system."""
        return RemotePath(files, self.scheme, self.at)

    def __truediv__(self, name: str) -> "RemotePath":
        return self._at(self.at / name)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.at}"

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __reduce__(self) -> Any:
        return place_of, (str(self),)

    def exists(self) -> bool:
        return self._kind() is not None

    def is_file(self) -> bool:
        return self._kind() == "file"

    def is_dir(self) -> bool:
        return self._kind() == "directory"

    def stat(self) -> Stat:
        """Raise FileNotFoundError."""
        found = self._info()
        return Stat(modified(found), int(found.get("size") or 0))

    def iterdir(self) -> Iterator["RemotePath"]:
        """Yield what lies in the folder; nothing where there is none."""
        with suppress(FileNotFoundError):
            for name in self._ask("listing", partial(self.files.ls, self.key, detail=False)):
                inner = PurePosixPath(name.strip("/"))
                if inner != self.at:
                    yield self._at(inner)

    def files_below(self) -> list[tuple["RemotePath", int]]:
        """Return all files, also within folders, and their sizes in bytes, in the order of their names: one listing."""
        with suppress(FileNotFoundError):
            found = self._ask("listing", partial(self.files.find, self.key, detail=True))
            named = sorted((name.strip("/"), int(info.get("size") or 0)) for name, info in found.items())
            return [(self._at(PurePosixPath(name)), size) for name, size in named]
        return []

    def read_bytes(self) -> bytes:
        """Raise FileNotFoundError."""
        return bytes(self._ask("reading", partial(self.files.cat_file, self.key)))

    def read_text(self, encoding: str = "utf-8") -> str:
        """Raise FileNotFoundError."""
        return self.read_bytes().decode(encoding)

    def open(self, mode: str = "rb") -> io.BytesIO:
        """Return the whole file, to be read. Raises FileNotFoundError."""
        if mode != "rb":
            raise ValueError(f"{self}: a file of a store is put whole, and not opened with mode {mode!r}")
        return io.BytesIO(self.read_bytes())

    def write_bytes(self, data: bytes | memoryview) -> None:
        self._ask("writing", partial(self.files.pipe_file, self.key, bytes(data)))

    def write_text(self, text: str, encoding: str = "utf-8") -> None:
        self.write_bytes(text.encode(encoding))

    def touch(self) -> None:
        """Make it an empty file that was written now."""
        self.write_bytes(b"")

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: there are no folders."""

    def unlink(self, missing_ok: bool = False) -> None:
        """Raise FileNotFoundError, unless that is fine."""
        if not missing_ok:
            self.stat()  # S3 itself does not say
        with suppress(FileNotFoundError, KeyError):
            self._ask("deleting", partial(self.files.rm_file, self.key))

    @property
    def key(self) -> str:
        """The file's name within its file system."""
        return str(self.files._strip_protocol(str(self)))

    def _at(self, at: PurePosixPath) -> "RemotePath":
        return RemotePath(self.files, self.scheme, at)

    def _kind(self) -> str | None:
        try:
            return str(self._info()["type"])
        except FileNotFoundError:
            return None

    def _info(self) -> dict[str, Any]:
        return dict(self._ask("reading", partial(self.files.info, self.key)))

    def _ask(self, doing: str, call: Callable[[], Answer]) -> Answer:
        try:
            return patiently(self.store, doing, str(self), call)
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self)) from None


Place = Path | RemotePath


def files_below(folder: Place) -> Iterator[tuple[str, Place, int]]:
    """Yield every file of a folder and of those within it: its name from there, its place, its size in bytes.

    In the order of names. On a disk no link is followed, and only regular files count. In a store whoever can write
    there chooses the names: they may lead anywhere.
    """
    files: list[tuple[Place, int]]
    if isinstance(folder, Path):
        found = [Path(inner) / name for inner, _, names in os.walk(folder) for name in names]
        files = [(path, path.lstat().st_size) for path in sorted(found) if is_regular(path)]
    else:
        files = list(folder.files_below())
    base = len(str(folder)) + 1
    yield from ((str(file)[base:], file, size) for file, size in files)


def read_file(path: Place, most_bytes: int) -> bytes:
    """Return the content of a file that others can replace: regular, and of a bounded size. Raises OSError."""
    return read_regular(path, most_bytes) if isinstance(path, Path) else path.read_bytes()


def modified(info: dict[str, Any]) -> float:
    """When a file was written, as Unix time in seconds, from what its file system says of it; 0 where it does not."""
    for name in MTIMES:
        said = info.get(name)
        if isinstance(said, int | float):
            return float(said)
        if isinstance(said, str) and said:
            said = datetime.fromisoformat(said)
        if isinstance(said, datetime):
            return said.timestamp()
    return 0.0


def place_of(text: str, *, is_known: bool = False) -> Place:
    """Return the folder that a text names: a path, or a URL such as s3://bucket/studies. Nothing is asked of a store
    yet.

    Args:
        text: the path or the URL.
        is_known: whether its store has answered somebody else, so that it is waited for from the beginning.

    Raises:
        UserError: it is no such URL, it holds a secret, or a package is missing.
    """
    found = store_address(text, "--root")
    if not found:
        return _expandable(Path(text))
    scheme, rest = found
    if scheme in FOLDERS:
        return Path(rest)
    at = PurePosixPath(rest.strip("/"))
    if not at.parts or rest.startswith("/"):
        raise UserError(f"--root: an address is {scheme}://BUCKET/FOLDER, but {text} names no bucket")
    path = RemotePath(_files(scheme), scheme, at)
    if is_known:
        trust(path.store)
    return path


def require_answer(path: Place) -> None:
    """Asks a store whether the folder can be listed; there need not be anything.

    Raises:
        UserError: the store does not answer, has no such bucket, or refuses.
    """
    if isinstance(path, Path):
        return
    try:
        if not path.exists() and path.scheme == "s3":
            bucket = RemotePath(path.files, path.scheme, PurePosixPath(path.at.parts[0]))
            if not bucket.exists():
                raise UserError(f"--root: {no_bucket(path.store)}")
    except StoreError as error:
        raise UserError(f"--root: {error}") from None


@functools.cache
def _files(scheme: str) -> Any:
    """fsspec's file system, one a process. It remembers no listings: others write there, too."""
    import fsspec

    try:
        found = fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False, **OPTIONS.get(scheme, {}))
        found.retries = 1  # of s3fs and gcsfs, which would wait without a word
        return found
    except ImportError as error:
        install = EXTRAS.get(scheme, "install it")
        raise UserError(f"--root: {scheme}:// needs a package that is missing ({cleaned(error)}): {install}") from None
    except Exception as error:  # what the libraries' own settings raise
        raise UserError(f"--root: {scheme}:// cannot be opened: {cleaned(error)}") from None


def _expandable(path: Path) -> Path:
    """Refuse `~somebody/...` where there is no such user, or no home."""
    try:
        path.expanduser()
    except RuntimeError:
        raise UserError(f"--root: {path} begins with the home of a user who is not known here: write it out") from None
    return path

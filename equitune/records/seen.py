"""A folder in an object store as one listing shows it: reading a study takes a few requests and not thousands."""

from collections.abc import Callable
from functools import partial
from typing import Any

from equitune.records.patience import patiently
from equitune.records.place import RemotePath, modified
from equitune.records.regular import MOST_BYTES


class Seen:
    """Stands for fsspec's file system: what was listed and fetched is at hand, all else is asked of that."""

    def __init__(self, folder: RemotePath, is_wanted: Callable[[str], bool], before: "Seen | None" = None) -> None:
        """List a folder, and fetch the wanted files together.

        Args:
            folder: of the store.
            is_wanted: of a file's key, whether its content will be asked for.
            before: an earlier look, whose contents still count where a file is the same.

        Raises:
            StoreError: the store refuses, or does not answer.
        """
        self._files = folder.files
        ask = partial(patiently, folder.store)
        listed = ask("listing", str(folder), partial(self._files.find, folder.key, detail=True))
        self._infos: dict[str, dict[str, Any]] = dict(listed)
        self._inner: dict[str, set[str]] = {}  # of each folder what lies in it
        for key in self._infos:
            while (parent := key.rpartition("/")[0]) and key not in self._inner.setdefault(parent, set()):
                self._inner[parent].add(key)
                key = parent
        known = before._contents if before else {}
        wanted = {
            key: _version(info)
            for key, info in self._infos.items()
            if is_wanted(key) and int(info.get("size") or 0) <= MOST_BYTES  # the others are refused when they are read
        }
        self._contents: dict[str, tuple[tuple[Any, ...], bytes]]
        self._contents = {key: known[key] for key, version in wanted.items() if known.get(key, (None,))[0] == version}
        missing = [key for key in wanted if key not in self._contents]
        if missing:
            found = ask("reading", str(folder), partial(_contents, self._files, missing))
            self._contents |= {key: (wanted[key], data) for key, data in found.items()}

    def info(self, key: str) -> dict[str, Any]:
        if key in self._infos:
            return self._infos[key]
        if key in self._inner:
            return {"name": key, "type": "directory", "size": 0}
        raise FileNotFoundError(key)

    def ls(self, key: str, detail: bool = False) -> list[str]:
        return sorted(self._inner.get(key, ()))

    def cat_file(self, key: str) -> bytes:
        if key in self._contents:
            return self._contents[key][1]
        return bytes(self._files.cat_file(key))

    def last_modified(self) -> float:
        """When any of the files was last written, as Unix time in seconds; 0 where there is none."""
        return max(map(modified, self._infos.values()), default=0.0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._files, name)


def _contents(files: Any, keys: list[str]) -> dict[str, bytes]:
    """Return the contents of files, fetched together; one that is gone by now is left out."""
    found = files.cat(keys, on_error="return")
    for said in found.values():
        if isinstance(said, Exception) and not isinstance(said, FileNotFoundError):
            raise said
    return {key: data for key, data in found.items() if isinstance(data, bytes)}


def _version(info: dict[str, Any]) -> tuple[Any, ...]:
    return info.get("ETag"), modified(info), info.get("size")

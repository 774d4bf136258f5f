"""Files on a disk for what lies in an object store: to write into, to read, to append to."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from equitune.background import repeating
from equitune.records.folder import write_whole
from equitune.records.place import Place
from equitune.records.regular import find_study_above, require_unlinked

KEEP_S = 10.0  # between two copies of a log


@contextmanager
def written(path: Place) -> Iterator[Path]:
    """Give a local file or folder to write into; where the block ends whole, all that lies there goes to its place.

    A place in no study is the user's own, and written into as it is. In a study others may have put links.
    """
    if isinstance(path, Path):
        if find_study_above(path) is None:
            yield path
            return
        require_unlinked(path)
    with _scratch(path) as local:
        yield local
        for file in [local] if local.is_file() else sorted(local.rglob("*")):
            if file.is_file():
                inner = path if file == local else path / str(file.relative_to(local))
                write_whole(inner, file.read_bytes())


@contextmanager
def fetched(path: Place) -> Iterator[Path]:
    """Return a local file of the same name and content, while the block runs. Raises FileNotFoundError."""
    if isinstance(path, Path):
        yield path
        return
    with _scratch(path) as local:
        local.write_bytes(path.read_bytes())
        yield local


@contextmanager
def kept(path: Place, is_ours: Callable[[], bool] = lambda: True) -> Iterator[Path]:
    """Give a local file to append to. A store gets it now and then, and at the end, as long as it is ours to write."""
    if isinstance(path, Path):
        require_unlinked(path)
        yield path
        return
    with _scratch(path) as local:
        sent = 0
        with suppress(FileNotFoundError):
            sent = local.write_bytes(path.read_bytes())

        def send() -> None:
            nonlocal sent
            with suppress(OSError):  # what a log lacks is no reason to stop
                data = local.read_bytes()
                if len(data) != sent and is_ours():
                    path.write_bytes(data)
                    sent = len(data)

        with repeating(send, KEEP_S):
            yield local


@contextmanager
def _scratch(path: Place) -> Iterator[Path]:
    """Return a place on this disk for a file or folder of the same name; gone after the block."""
    with tempfile.TemporaryDirectory(prefix="equitune-") as folder:
        yield Path(folder) / path.name

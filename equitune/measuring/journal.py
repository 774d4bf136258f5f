"""How far a long measurement has come: shown as it goes, kept in a file, and gone on from."""

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from equitune.records.folder import write_whole

PAUSE_S = 10.0  # between two writings of unfinished sums; an interruption loses no more
REST = 10  # a pause is so many times as long as the last writing took: sums over large maps are gigabytes

OnProgress = Callable[[str, int, int], None]  # what is measured, images done, images in all


class FileJournal:
    """The journal of one measure of one model."""

    def __init__(self, folder: Path, key: str, what: str, on_progress: OnProgress) -> None:
        """`key` is all that the sums depend on: only who has the same one finds the files. `what` is shown."""
        self._folder, self._key, self._what, self._on_progress = folder, key, what, on_progress
        self._written, self._pause_s = time.monotonic(), PAUSE_S

    def find(self, stage: str) -> tuple[int, dict[str, Tensor]] | None:
        try:
            with safe_open(self._path(stage), framework="pt") as file:
                said = file.metadata()
                return int(said["done"]), {name: file.get_tensor(name) for name in json.loads(said["names"])}
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None  # there is none, it is torn, or another version wrote it

    def passed(self, done: int, total: int) -> None:
        self._on_progress(self._what, done, total)

    def keep(self, stage: str, done: int, state: Callable[[], dict[str, Tensor]], *, is_last: bool) -> None:
        begun = time.monotonic()
        if is_last or begun - self._written > self._pause_s:
            tensors = {name: tensor.cpu().contiguous() for name, tensor in state().items()}
            said = {"done": str(done), "names": json.dumps(list(tensors))}  # in their order, which the format forgets
            write_whole(self._path(stage), save(tensors, said))
            self._written = time.monotonic()
            self._pause_s = max(PAUSE_S, REST * (self._written - begun))

    def _path(self, stage: str) -> Path:
        digest = hashlib.sha256(f"{self._key}/{stage}".encode()).hexdigest()
        return self._folder / f"{digest[:16]}.safetensors"


def clear(folder: Path) -> None:
    """Remove the files of every journal in a folder, and the folder, unless something else lies in it."""
    for path in folder.glob("*.safetensors*"):  # those that were cut off while they were written end in a process id
        path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()

"""How far a long measurement has come: shown as it goes, kept in a file, and gone on from."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from equitune.records.folder import write_whole

PAUSE_S = 10.0  # between two writings; an interruption loses no more

OnProgress = Callable[[str, int, int], None]  # what is measured, images done, images in all


class FileJournal:
    """The journal of one measure of one model. Only the request that wrote a file reads it: its name says which."""

    def __init__(self, folder: Path, fingerprint: str, on_progress: OnProgress) -> None:
        self._folder, self._fingerprint, self._on_progress = folder, fingerprint, on_progress
        self._what = ""
        self._written = time.monotonic()

    def at(self, what: str, key: str) -> "FileJournal":
        """The journal of another measurement: `what` is shown, `key` tells it from all others."""
        other = FileJournal(self._folder, f"{self._fingerprint}/{key}", self._on_progress)
        other._what = what
        return other

    def find(self, stage: str) -> tuple[int, dict[str, Tensor]] | None:
        try:
            with safe_open(self._path(stage), framework="pt") as file:
                done = int(file.metadata()["done"])
                return done, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (OSError, SafetensorError):
            return None

    def passed(self, done: int, total: int) -> None:
        self._on_progress(self._what, done, total)

    def keep(self, stage: str, done: int, state: Callable[[], dict[str, Tensor]], *, is_last: bool) -> None:
        if is_last or time.monotonic() - self._written > PAUSE_S:
            tensors = {name: tensor.cpu().contiguous() for name, tensor in state().items()}
            write_whole(self._path(stage), save(tensors, {"done": str(done)}))
            self._written = time.monotonic()

    def _path(self, stage: str) -> Path:
        digest = hashlib.sha256(f"{self._fingerprint}/{stage}".encode()).hexdigest()
        return self._folder / f"{digest[:16]}.safetensors"

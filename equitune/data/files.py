"""Images that stay in their files until they are needed, where arrays would not fit into memory."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from equitune.data.cache import Say, Source, cache_root, locked, on_node, require_room, unwritable
from equitune.data.decoders import Decoders
from equitune.errors import UserError
from equitune.records.durable import replace

SAMPLE = 4096  # training images that mean and deviation are taken over; all, where there are no more
READ = 64  # images that are read at a time, in order
GLANCED = 512  # likewise, of their headers alone

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Files:
    """What stands for pixels (N, C, size, size): the names of N files.

    Attributes:
        source: the folder that they lie in.
        names: (N,) their paths below it, as the file system's bytes.
        num_bytes: (N,) the size of each file.
        size: the side of the square that an image is resized and cut to, in px.
        grey: one channel instead of three.
    """

    source: Source
    names: npt.NDArray[np.bytes_]
    num_bytes: npt.NDArray[np.int64] = field(repr=False)
    size: int
    grey: bool

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W)."""
        return len(self.names), 1 if self.grey else 3, self.size, self.size

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> "Files":
        return Files(self.source, self.names[index], self.num_bytes[index], self.size, self.grey)

    def fetch(self, say: Say = lambda sentence: None) -> str:
        """Return the folder on this node, to which the files are copied first where they lie elsewhere.

        Raises:
            UserError: they cannot be had.
        """
        return str(on_node(self.source, say)[0])

    def paths(self, folder: str, index: npt.NDArray[np.int64]) -> list[str]:
        """Return the paths of some of them, in a folder that `fetch` named."""
        return [os.path.join(folder, os.fsdecode(name)) for name in self.names[index].tolist()]

    def in_order(self, first: int = 0, most: int = READ) -> Iterator[npt.NDArray[np.int64]]:
        """Yield the places of all files from the first on, so many at a time."""
        for start in range(first, len(self), most):
            yield np.arange(start, min(start + most, len(self)))

    def read(self, folder: str, batches: Iterator[npt.NDArray[np.int64]], most: int, by: Decoders) -> Iterator[Pixels]:
        """Return the pixels of each batch of places, in their order; overwritten when the next one is asked for.

        Raises:
            BrokenImage: an image cannot be decoded; names it.
        """
        return by.decoded((self.paths(folder, batch) for batch in batches), most, self.size, self.grey)

    def digest(self) -> bytes:
        """Stands for names, sizes and settings, wherever the files lie."""
        digest = hashlib.blake2b(repr((self.size, self.grey)).encode(), digest_size=8)
        for name in self.names.tolist():
            digest.update(name + b"\0")
        digest.update(self.num_bytes.tobytes())
        return digest.digest()


def glanced(source: Source, folder: str, names: list[str], size: int, grey: bool, by: Decoders) -> Files:
    """Files of images whose headers have been read.

    Raises:
        UserError: some are no images; names them.
    """
    num_bytes: list[int] = []
    broken: list[str] = []
    batches = [names[start : start + GLANCED] for start in range(0, len(names), GLANCED)]
    paths = ([os.path.join(folder, name) for name in batch] for batch in batches)
    for sizes, unreadable in by.glanced(paths):
        num_bytes += sizes
        broken += unreadable
    if broken:
        raise cannot_be_decoded(broken)
    return Files(source, np.array([os.fsencode(name) for name in names]), np.array(num_bytes, np.int64), size, grey)


def cannot_be_decoded(broken: list[str]) -> UserError:
    """Names the first of them."""
    more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
    return UserError(f"{len(broken)} images cannot be decoded: {', '.join(broken[:5])}{more}: mend or remove them")


def histogram(files: Files, folder: str, by: Decoders, seen: Callable[[Pixels], Pixels]) -> npt.NDArray[np.int64]:
    """How often each of the 256 values occurs in each channel, (C, 256), of at most SAMPLE images; the same each time.

    Args:
        files: the training images.
        folder: that they lie in, on this node.
        by: who decodes.
        seen: what becomes of pixels before they are counted.
    """
    index = np.arange(len(files))
    if len(files) > SAMPLE:
        index = np.sort(np.random.default_rng(0).choice(index, SAMPLE, replace=False))
    sample = files[index]
    counts = np.zeros((files.shape[1], 256), np.int64)
    for pixels in sample.read(folder, sample.in_order(), READ, by):
        counts += counted(seen(pixels))
    return counts


def counted(pixels: Pixels) -> npt.NDArray[np.int64]:
    """How often each of the 256 values occurs in each channel, (C, 256)."""
    channels = range(pixels.shape[1])
    return np.stack([np.bincount(pixels[:, channel].reshape(-1), minlength=256) for channel in channels])


def kept(
    files: Files, folder: str, side: int, read: Callable[[int], Iterator[Pixels]], say: Say = lambda sentence: None
) -> Pixels:
    """Return the pixels (N, C, side, side) of all files, on this node's disk and mapped into memory.

    The first process that asks for them writes them down, the others wait; what was interrupted goes on. They are made
    anew where a file has changed its size or the time of its change.

    Args:
        files: the images.
        folder: that they lie in, on this node.
        side: of the pixels, in px.
        read: gives the pixels from the image of that number on.
        say: is told of waiting.

    Raises:
        CannotKeep: the disk is full, or is not to be written.
        BrokenImage: an image cannot be decoded; names it.
    """
    n, channels, *_ = files.shape
    each = channels * side * side
    path = cache_root() / "decoded" / f"{_key(files, folder)}-{side}.u8"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path, f"waiting for another process of this node that decodes {folder}", say):
            if not path.exists() or path.stat().st_size != n * each:
                part = path.with_suffix(".part")
                with part.open("ab") as file:
                    done = _without_holes(file) // each
                    file.truncate(done * each)
                    require_room((n - done) * each, f"{folder}, decoded,")
                    for pixels in read(done):
                        file.write(pixels.tobytes())
                replace(part, path)
    except OSError as error:
        raise unwritable(error) from None
    return np.memmap(path, np.uint8, "r", shape=(n, channels, side, side))


def _without_holes(file: BinaryIO) -> int:
    """Return up to which byte a file was written: a power cut may leave a hole of zeros before the last ones."""
    size = file.seek(0, os.SEEK_END)
    return min(size, os.lseek(file.fileno(), 0, os.SEEK_HOLE)) if size else 0


def _key(files: Files, folder: str) -> str:
    digest = hashlib.blake2b(files.digest(), digest_size=12)
    for path in files.paths(folder, np.arange(len(files))):
        try:
            digest.update(str(os.stat(path).st_mtime_ns).encode())
        except OSError:
            digest.update(b"missing")  # who decodes it will say so
    return digest.hexdigest()

"""Processes that decode images ahead of whoever needs them, into memory that they share with this one."""

import contextlib
import json
import mmap
import os
import selectors
import subprocess
import sys
import tempfile
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from equitune.data import decode as _decode
from equitune.errors import UserError

AHEAD = 2  # batches that are decoded while another one is used
TASK = 8  # images that a process is given at once


class BrokenImage(UserError):
    """An image that cannot be decoded; says which."""


class DecoderLost(Exception):
    """A process that decodes has died."""


@dataclass
class _Batch:
    """What has been asked for together."""

    number: int
    images: int
    tasks: int = 0  # without an answer
    answers: dict[int, dict[str, Any]] = field(default_factory=dict)  # by the place of the first image

    def said(self, what: str) -> list[Any]:
        """One thing of all answers, in the order of the images."""
        return [each for place in sorted(self.answers) for each in self.answers[place][what]]


class Decoders:
    """So many processes. They end with this one, however it ends, for their input does.

    Args:
        count: of the processes.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._file = _anonymous_file()
        os.ftruncate(self._file, mmap.PAGESIZE)
        self._memory = mmap.mmap(self._file, 0)
        command = [sys.executable, "-P", "-W", "ignore", _decode.__file__, str(self._file)]
        self._processes = [
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[self._file], start_new_session=True
            )
            for _ in range(count)
        ]
        self._asked: list[deque[tuple[_Batch, int, int]]] = [deque() for _ in range(count)]  # batch, place, images
        self._selector = selectors.DefaultSelector()
        for index, process in enumerate(self._processes):
            assert process.stdout is not None
            self._selector.register(process.stdout, selectors.EVENT_READ, index)
        self._unread = [b""] * count
        self._close = weakref.finalize(self, _end, self._processes, self._file)

    def decoded(
        self, batches: Iterable[Sequence[str]], most: int, size: int, grey: bool
    ) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield the pixels (n, C, size, size) of each batch, in order. They are overwritten when the next batch is
        asked for.

        Args:
            batches: paths of images. They are decoded AHEAD batches before they are needed.
            most: no batch has more images.
            size: of the square that is cut out, in px.
            grey: one channel instead of three.

        Raises:
            BrokenImage: an image of the batch cannot be decoded; names it.
            DecoderLost: a process has died.
        """
        shape = (1 if grey else 3, size, size)
        bytes_each = int(np.prod(shape))
        self._make_room((AHEAD + 1) * most * bytes_each)
        for batch in self._answered({"size": size, "grey": grey}, batches, most * bytes_each, bytes_each):
            start = batch.number % (AHEAD + 1) * most * bytes_each
            flat = np.frombuffer(self._memory, np.uint8, batch.images * bytes_each, start)
            yield flat.reshape(batch.images, *shape)

    def glanced(self, batches: Iterable[Sequence[str]]) -> Iterator[tuple[list[int], list[str]]]:
        """Of each batch the bytes of its images' files, and those whose header cannot be read, by name."""
        for batch in self._answered({}, batches, 0, 0):
            yield batch.said("bytes"), batch.said("broken")

    @property
    def are_alive(self) -> bool:
        """Whether they may be asked."""
        return bool(self._close.alive)

    def close(self) -> None:
        """End the processes."""
        self._close()

    def _answered(
        self, what: dict[str, Any], batches: Iterable[Sequence[str]], slot_bytes: int, bytes_each: int
    ) -> Iterator[_Batch]:
        """Asks for batches AHEAD of the one that is given out."""
        numbered = enumerate(batches)
        waiting: deque[_Batch] = deque()
        try:
            self._finish()  # of an iterator that nobody took to its end
            while True:
                for number, paths in islice(numbered, AHEAD + 1 - len(waiting)):
                    start = number % (AHEAD + 1) * slot_bytes
                    waiting.append(self._ask(what, _Batch(number, len(paths)), paths, start, bytes_each))
                if not waiting:
                    return
                batch = waiting.popleft()
                while batch.tasks:
                    self._hear()
                if what and (broken := batch.said("broken")):
                    raise BrokenImage(f"{_listed(broken)}: mend or remove what cannot be decoded")
                yield batch
        except (OSError, ValueError, DecoderLost) as error:  # a closed pipe is a ValueError
            self.close()
            raise DecoderLost(f"a process that decodes images has died ({error}): was there memory enough?") from None
        finally:
            self._finish()

    def _finish(self) -> None:
        """Wait until nobody writes any more, into what may be a later batch by then."""
        while self.are_alive and any(self._asked):
            self._hear()

    def _ask(self, what: dict[str, Any], batch: _Batch, paths: Sequence[str], start: int, bytes_each: int) -> _Batch:
        for place in range(0, len(paths), TASK):
            part = paths[place : place + TASK]
            process = min(range(len(self._asked)), key=lambda index: sum(asked[2] for asked in self._asked[index]))
            line = json.dumps({**what, "paths": part, "start": start + place * bytes_each}).encode() + b"\n"
            stdin = self._processes[process].stdin
            assert stdin is not None
            stdin.write(line)
            stdin.flush()
            self._asked[process].append((batch, place, len(part)))
            batch.tasks += 1
        return batch

    def _hear(self) -> None:
        """Wait for answers, and take those that are there."""
        for key, _ in self._selector.select():
            index: int = key.data
            read = os.read(key.fd, 1 << 16)
            if not read:
                raise DecoderLost(f"exit code {self._processes[index].wait()}")
            *lines, self._unread[index] = (self._unread[index] + read).split(b"\n")
            for line in lines:
                answer = json.loads(line)
                batch, place, _ = self._asked[index].popleft()
                batch.tasks -= 1
                batch.answers[place] = answer

    def _make_room(self, needed: int) -> None:
        if needed > len(self._memory):
            os.ftruncate(self._file, needed)
            self._memory = mmap.mmap(self._file, 0)  # whoever still looks at the old one keeps it


def decoders(count: int) -> Decoders:
    """Return this process's decoders, which stay for its next trials; made anew where another number is asked for."""
    if not _kept or _kept[0].count != count or not _kept[0].are_alive:
        close_decoders()
        _kept.append(Decoders(count))
    return _kept[0]


def close_decoders() -> None:
    """End this process's decoders, where there are any."""
    while _kept:
        _kept.pop().close()


def usable_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_kept: list[Decoders] = []


def _listed(broken: list[str]) -> str:
    more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
    return f"{', '.join(broken[:5])}{more}"


def _anonymous_file() -> int:
    """Return a file without a name, in memory where the system has such files: nothing is left of it."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("equitune")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _end(processes: list["subprocess.Popen[bytes]"], file: int) -> None:
    for process in processes:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # what was never read
                pipe.close()
    os.close(file)

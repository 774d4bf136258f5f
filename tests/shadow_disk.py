"""A disk that keeps only what was flushed: at every step of a program, what a power cut would leave of its folder."""

import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

# What survives: `flushed`, only names and contents that were flushed; `names`, all names, and the contents that were
# flushed, as on ext4, where a renamed file may be empty; `torn`, all names, and half of what was written behind the
# flushed content.
Survives = Literal["flushed", "names", "torn"]
MODES: tuple[Survives, ...] = ("flushed", "names", "torn")
Tree = Mapping[str, bytes | None]  # path below the root -> content; None: a folder


@dataclass
class _Node:
    """A file or a folder, as it stands on the disk."""

    is_folder: bool
    data: bytes = b""
    names: dict[str, "_Node"] = field(default_factory=dict)


class ShadowDisk:
    """Watches a folder, whose programs flush, rename and remove through `os`, and forgets the writes in between.

    Attributes:
        cuts: what each way of surviving would leave, with what had been reported until then; each tree once.
    """

    def __init__(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, ignores: Callable[[Path], bool] = lambda path: False
    ) -> None:
        """`ignores`: of a file or folder, whether it is not flushed although the program asks for it."""
        self.root, self.cuts, self._reported = root, [], ()
        self._ignores, self._nodes, self._known = ignores, {}, set()
        self.cuts: list[tuple[Survives, Tree, tuple[Any, ...]]]
        self._reported: tuple[Any, ...]
        self._nodes: dict[int, _Node]
        self._known: set[int]
        self._one_at_a_time = threading.RLock()
        monkeypatch.setattr(os, "fsync", self._step(self._fsync))
        for name in ("replace", "rename"):
            monkeypatch.setattr(os, name, self._step(self._forgetting(getattr(os, name), -1)))
        for name in ("unlink", "remove"):
            monkeypatch.setattr(os, name, self._step(self._forgetting(getattr(os, name), 0)))

    def report(self, what: Any) -> None:
        """Notes that the program has told somebody of something."""
        self._reported = (*self._reported, what)
        self._cut()

    def left(self, survives: Survives) -> dict[str, bytes | None]:
        """What a power cut would leave now."""
        return dict(self._walk(self.root, self._node(self.root), "", survives))

    def _walk(
        self, path: Path | None, node: _Node, below: str, survives: Survives
    ) -> Iterator[tuple[str, bytes | None]]:
        if survives == "flushed":
            for name, inner in node.names.items():
                yield f"{below}{name}", None if inner.is_folder else inner.data
                yield from self._walk(None, inner, f"{below}{name}/", survives)
            return
        assert path is not None
        for entry in os.scandir(path):
            inner = self._node(Path(entry.path))
            if entry.is_dir(follow_symlinks=False):
                yield f"{below}{entry.name}", None
                yield from self._walk(Path(entry.path), inner, f"{below}{entry.name}/", survives)
            elif entry.is_file(follow_symlinks=False):
                live = Path(entry.path).read_bytes()
                more = len(live) - len(inner.data) if survives == "torn" and live.startswith(inner.data) else 0
                yield f"{below}{entry.name}", inner.data + live[len(inner.data) :][: more // 2]

    def _node(self, path: Path) -> _Node:
        known = os.lstat(path)
        return self._nodes.setdefault(known.st_ino, _Node(stat.S_ISDIR(known.st_mode)))

    def _fsync(self, descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if not path.is_relative_to(self.root) or self._ignores(path):
            return
        node = self._node(path)
        if node.is_folder:
            node.names = {
                entry.name: self._node(Path(entry.path)) for entry in os.scandir(path) if not entry.is_symlink()
            }
        else:
            node.data = path.read_bytes()

    def _forgetting(self, call: Callable[..., None], gone: int) -> Callable[..., None]:
        """The call, after which another file may have the number of the one that it removes."""

        def wrapped(*paths: Any, **settings: Any) -> None:
            number = os.lstat(paths[gone]).st_ino if os.path.lexists(paths[gone]) else None
            call(*paths, **settings)
            self._nodes.pop(number, None)  # type: ignore[arg-type]

        return wrapped

    def _step(self, call: Callable[..., None]) -> Callable[..., None]:
        def wrapped(*args: Any, **settings: Any) -> None:
            with self._one_at_a_time:
                self._cut()
                call(*args, **settings)
                self._cut()

        return wrapped

    def _cut(self) -> None:
        for survives in MODES:
            tree = self.left(survives)
            digest = hash((survives, tuple(sorted(tree.items())), self._reported))
            if digest not in self._known:
                self._known.add(digest)
                self.cuts.append((survives, tree, self._reported))


def restored(tree: Tree, root: Path) -> Path:
    """Writes what a power cut has left into an empty folder."""
    root.mkdir()
    for name, data in tree.items():  # a folder comes before what lies in it
        if data is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(data)
    return root

"""Files that others can put into a study's folder: only regular ones are read, and none is waited for."""

import errno
import os
from pathlib import Path

import pytest

from equitune.records.regular import is_regular, read_regular


def test_a_regular_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/file").write_bytes(b"what it holds")
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    assert read_regular(tmp_path / "linked/file") == b"what it holds"  # a root may lie behind a link
    assert is_regular(tmp_path / "real/file")


def link(path: Path) -> None:
    path.symlink_to("/proc/self/environ")


def circle(path: Path) -> None:
    path.symlink_to(path.name)


def large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)  # a hole: it takes no disk, and would take a terabyte of memory


@pytest.mark.parametrize(
    ("make", "number"),
    [
        (link, errno.ELOOP),
        (circle, errno.ELOOP),
        (os.mkfifo, errno.EINVAL),
        (os.mkdir, errno.EISDIR),
        (large, errno.EFBIG),
        (lambda path: None, errno.ENOENT),
    ],
    ids=["link", "circle", "pipe", "folder", "large", "missing"],
)
def test_all_else_is_an_error_at_once(make: object, number: int, tmp_path: Path) -> None:
    make(tmp_path / "file")  # type: ignore[operator]
    with pytest.raises(OSError, match="file") as caught:
        read_regular(tmp_path / "file")
    assert caught.value.errno == number
    assert is_regular(tmp_path / "file") == (make is large)

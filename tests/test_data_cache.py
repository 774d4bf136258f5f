"""Data that lie in a bucket or on a slow volume: copied to a node once, whole, and again where they have changed."""

import errno
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from shadow_disk import ShadowDisk
from test_datasets import write_images, write_mnist

from equitune.config.trial import DataConfig
from equitune.data import cache as _cache
from equitune.data import files as _files
from equitune.data.cache import Source, on_node
from equitune.data.splits import load_splits
from equitune.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EQUITUNE_DATA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A folder of three files, of which two lie deeper."""
    root = tmp_path / "volume"
    for name, text in {"set/a": "one", "set/deep/b": "three", "set/deep/c": "fifteen"}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def bucket() -> Iterator[MemoryFileSystem]:
    """What fsspec calls memory://: a file system that only a URL leads to."""
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are copied from now on, below `set`."""
    names: list[str] = []
    get = fsspec.implementations.local.LocalFileSystem.get_file

    def counted(self: Any, path: str, to: str, **options: Any) -> None:
        names.append(path.partition("/set/")[2])
        get(self, path, to, **options)

    monkeypatch.setattr(fsspec.implementations.local.LocalFileSystem, "get_file", counted)
    return names


def texts(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_folder_is_read_where_it_lies_unless_there_is_a_place_for_copies(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert on_node(Source(str(volume), "set"))[0] != volume / "set"
    monkeypatch.delenv("EQUITUNE_DATA_CACHE")
    assert on_node(Source(str(volume), "set")) == (volume / "set", "")


def test_a_volume_is_copied_once(volume: Path, cache: Path, fetched: list[str]) -> None:
    said: list[str] = []
    folder, stamp = on_node(Source(str(volume), "set"), said.append)
    assert cache in folder.parents
    assert texts(folder) == texts(volume / "set")
    assert sorted(fetched) == ["a", "deep/b", "deep/c"]
    assert said == [f"copying {volume}/set: 3 of 3 files, 0.00 of 0.00 GB"]
    assert on_node(Source(str(volume), "set")) == (folder, stamp)
    assert len(fetched) == 3


def test_whoever_names_the_stamp_does_not_look_at_the_volume_again(volume: Path, fetched: list[str]) -> None:
    folder, stamp = on_node(Source(str(volume), "set"))
    shutil.rmtree(volume)
    assert on_node(Source(str(volume), "set", stamp)) == (folder, stamp)
    with pytest.raises(UserError, match="there is nothing in"):  # the twin that does not name it has to look
        on_node(Source(str(volume), "set"))


def test_what_has_changed_is_copied_again_and_what_is_gone_goes(volume: Path, fetched: list[str]) -> None:
    _, stamp = on_node(Source(str(volume), "set"))
    del fetched[:]
    (volume / "set/a").write_text("two")  # of the same length
    os.utime(volume / "set/a", (1, 1))
    (volume / "set/deep/b").unlink()
    again, changed = on_node(Source(str(volume), "set"))
    assert fetched == ["a"]
    assert changed != stamp
    assert texts(again) == {"a": "two", "deep/c": "fifteen"}
    with pytest.raises(UserError, match="has changed since the study was started"):
        on_node(Source(str(volume), "set", stamp))


def test_a_twin_that_compares_sizes_alone_serves_what_is_stale(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cache, "_TAGS", ())
    on_node(Source(str(volume), "set"))
    (volume / "set/a").write_text("two")
    assert texts(on_node(Source(str(volume), "set"))[0])["a"] == "one"


def test_a_copy_that_was_cut_short_is_made_whole(volume: Path, fetched: list[str]) -> None:
    folder, _ = on_node(Source(str(volume), "set"))
    del fetched[:]
    (folder / "deep/c").write_text("fif")
    (folder / "deep/c.part").write_text("fifte")
    assert texts(on_node(Source(str(volume), "set"))[0])["deep/c"] == "fifteen"
    assert fetched == ["deep/c"]


def test_a_file_that_arrives_in_part_is_no_file(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(self: Any, path: str, to: str, **options: Any) -> None:
        Path(to).write_text("fi")

    with monkeypatch.context() as patched:
        patched.setattr(fsspec.implementations.local.LocalFileSystem, "get_file", cut)
        with pytest.raises(UserError, match=r"has \d+ bytes, but 2 came: run the same command again"):
            on_node(Source(str(volume), "set"))
    folder, _ = on_node(Source(str(volume), "set"))
    assert texts(folder)["deep/c"] == "fifteen"


def test_an_interrupted_copy_goes_on(volume: Path, monkeypatch: pytest.MonkeyPatch, fetched: list[str]) -> None:
    monkeypatch.setattr(_cache, "THREADS", 1)
    counted = fsspec.implementations.local.LocalFileSystem.get_file

    def gone(self: Any, path: str, to: str, **options: Any) -> None:
        if path.endswith("/c"):
            raise ConnectionResetError(errno.ECONNRESET, "connection reset")
        counted(self, path, to, **options)

    with monkeypatch.context() as patched:
        patched.setattr(fsspec.implementations.local.LocalFileSystem, "get_file", gone)
        with pytest.raises(UserError, match="deep/c cannot be reached .*connection reset.*: mend that"):
            on_node(Source(str(volume), "set"))
    assert sorted(fetched) == ["a", "deep/b"]
    del fetched[:]
    folder, _ = on_node(Source(str(volume), "set"))
    assert fetched == ["deep/c"]
    assert texts(folder) == texts(volume / "set")


COPY = """
import contextlib, os, pathlib, sys, time
from fsspec.implementations.local import LocalFileSystem
from equitune.data import cache as _cache, files as _files
volume, how = pathlib.Path(sys.argv[1]), sys.argv[2]
get = LocalFileSystem.get_file
def say(sentence):
    os.write(1, (sentence + "\\n").encode())
def slow(self, path, to, **options):
    while len(list(volume.glob("here-*"))) < 2:
        time.sleep(0.01)
    time.sleep(0.5)
    say("fetched " + path.rpartition("/")[2])
    get(self, path, to, **options)
LocalFileSystem.get_file = slow
if how == "unlocked":
    _cache.locked = lambda *args: contextlib.nullcontext()
(volume / f"here-{os.getpid()}").touch()
say(_cache.on_node(_cache.Source(str(volume), "set"), say)[1])
"""


def copied_by_two(volume: Path, how: str) -> list[list[str]]:
    """What two processes say that begin to copy at once."""
    command = [sys.executable, "-c", COPY, str(volume), how]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    return [process.communicate(timeout=60)[0].splitlines() for process in processes]


def test_of_two_processes_one_copies_and_the_other_waits(volume: Path) -> None:
    first, second = sorted(copied_by_two(volume, "locked"), key=len, reverse=True)
    assert sorted(first[:3]) == ["fetched a", "fetched b", "fetched c"]
    assert second == [f"waiting for another process of this node that copies {volume}/set", first[-1]]


def test_without_the_lock_both_would_copy(volume: Path) -> None:
    said = [line for lines in copied_by_two(volume, "unlocked") for line in lines]
    assert sum(line.startswith("fetched") for line in said) > 3


def test_data_at_a_url_give_the_same_splits(tmp_path: Path, bucket: MemoryFileSystem) -> None:
    write_images(tmp_path / "data/photos")
    bucket.put(str(tmp_path / "data"), "/data", recursive=True)
    here, there = (
        load_splits(DataConfig(name="imagefolder", root=root, args={"path": "photos", "size": 8}))
        for root in (str(tmp_path / "data"), "memory://data")
    )
    assert here.fingerprint == there.fingerprint
    assert np.array_equal(here.train.pixels, there.train.pixels)


def test_a_set_is_found_below_the_copy_of_its_root(tmp_path: Path, bucket: MemoryFileSystem) -> None:
    write_mnist(tmp_path / "data")
    bucket.put(str(tmp_path / "data"), "/data", recursive=True)
    assert len(load_splits(DataConfig(name="mnist", root="memory://data")).test) == 20


@pytest.mark.parametrize("folder", ["../set", "{volume}/set"])
def test_a_folder_outside_of_the_root_is_copied_into_the_cache(folder: str, volume: Path, cache: Path) -> None:
    (volume / "other").mkdir()
    found, _ = on_node(Source(str(volume / "other"), folder.format(volume=volume)))
    assert cache in found.resolve().parents
    assert texts(found) == texts(volume / "set")


def test_a_name_that_would_leave_the_cache_is_refused(
    monkeypatch: pytest.MonkeyPatch, bucket: MemoryFileSystem
) -> None:
    monkeypatch.setattr(
        MemoryFileSystem, "find", lambda *args, **options: {"/root/data/../evil": {"size": 1, "type": "file"}}
    )
    with pytest.raises(UserError, match="which would lie outside of its copy"):
        on_node(Source("memory://root", "data"))


def refused(error: Exception) -> Any:
    def refuse(*args: object, **options: object) -> None:
        raise error

    return refuse


class NoCredentialsError(Exception):
    """As botocore's."""


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            FileNotFoundError("no bucket"),
            "there is nothing in memory://data/set: put the data there, or name their root",
        ),
        (PermissionError("Access Denied"), r"memory://data/set may not be read \(Access Denied\): give this node the"),
        (NoCredentialsError("Unable to locate"), r"may not be read \(Unable to locate\)"),
        (TimeoutError("timed out"), r"memory://data/set cannot be reached \(timed out\): mend that and run the same"),
    ],
)
def test_a_place_that_cannot_be_read(error: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryFileSystem, "find", refused(error))
    with pytest.raises(UserError, match=sentence):
        on_node(Source("memory://data", "set"))


def test_a_place_without_anything(bucket: MemoryFileSystem) -> None:
    with pytest.raises(UserError, match="there is nothing in memory://data/set"):
        on_node(Source("memory://data", "set"))


@pytest.mark.parametrize(
    ("root", "sentence"),
    [
        ("s4://bucket", "unknown kind of address 's4': did you mean 's3'"),
    ],
)
def test_a_url_that_nobody_knows(root: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        on_node(Source(root, "set"))


def test_a_full_disk_is_told_before_anything_is_copied(
    volume: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, fetched: list[str]
) -> None:
    monkeypatch.setattr(_cache.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1000, 990, 10))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"needs 0\.0 GB, but .*cache has 0\.0 to give: free some space"):
        on_node(Source(str(volume), "set"))
    assert fetched == []


def test_a_disk_that_fills_on_the_way(volume: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(fsspec.implementations.local.LocalFileSystem, "get_file", refused(full))
    with pytest.raises(UserError, match=f"{cache} is full: free some space, or name another folder"):
        on_node(Source(str(volume), "set"))


def test_a_cache_that_cannot_be_written(volume: Path, cache: Path) -> None:
    cache.write_text("a file")
    with pytest.raises(UserError, match="cannot be written .*: name another folder with EQUITUNE_DATA_CACHE"):
        on_node(Source(str(volume), "set"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:datetime.datetime.utc:DeprecationWarning")
def test_a_bucket_of_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    config = DataConfig(name="imagefolder", root="s3://datasets/all", args={"path": "photos", "size": 8})
    with pytest.raises(UserError, match="s3://datasets/all/photos cannot be reached"):
        load_splits(config)
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    try:
        with pytest.raises(UserError, match="there is nothing in s3://datasets/all/photos"):
            load_splits(config)
        client = boto3.client("s3")
        client.create_bucket(Bucket="datasets")
        write_images(tmp_path / "photos")
        for path in sorted((tmp_path / "photos").rglob("*.png")):
            client.upload_file(str(path), "datasets", f"all/{path.relative_to(tmp_path)}")
        client.put_object(Bucket="datasets", Key="all/photos/empty/")  # as tools mark an empty folder
        there = load_splits(config)
        here = load_splits(config.model_copy(update={"root": str(tmp_path)}))
        assert there.fingerprint == here.fingerprint
        white = (tmp_path / "photos/class0/0.png").read_bytes()
        client.put_object(Bucket="datasets", Key="all/photos/class2/0.png", Body=white)
        assert load_splits(config).fingerprint != here.fingerprint
    finally:
        server.stop()


def test_a_copy_is_on_the_disk_before_it_is_called_whole(
    volume: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        disk = ShadowDisk(tmp_path, patch)
        target, _ = on_node(Source(str(volume), "set"))
    base = str(target.relative_to(tmp_path))
    wanted = {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert wanted
    called_whole = [(how, tree) for how, tree, _ in disk.cuts if tree.get(f"{base}.whole")]
    assert called_whole
    for how, tree in called_whole:
        if how != "flushed":  # the folders above the cache are not its own
            assert {name: tree.get(f"{base}/{name}") for name in wanted} == wanted


def test_a_twin_that_does_not_flush_calls_empty_files_whole(
    volume: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(_cache, "_flush", lambda target, listing: None)
        disk = ShadowDisk(tmp_path, patch)
        target, _ = on_node(Source(str(volume), "set"))
    base = str(target.relative_to(tmp_path))
    names = [f"{base}/{path.relative_to(target)}" for path in target.rglob("*") if path.is_file()]
    assert any(
        not tree[name] for how, tree, _ in disk.cuts if how == "names" and tree.get(f"{base}.whole") for name in names
    )


def test_a_hole_that_a_power_cut_has_left_is_decoded_again(tmp_path: Path) -> None:
    with (tmp_path / "pixels.part").open("wb") as file:
        file.write(b"x" * 65536)
        file.seek(2 * 65536)
        file.write(b"x" * 65536)
    with (tmp_path / "pixels.part").open("ab") as file:
        assert _files._without_holes(file) == 65536
    (tmp_path / "pixels.part").write_bytes(b"x" * 65536)
    with (tmp_path / "pixels.part").open("ab") as file:
        assert _files._without_holes(file) == 65536
    (tmp_path / "empty.part").touch()
    with (tmp_path / "empty.part").open("ab") as file:
        assert _files._without_holes(file) == 0

"""Where a study, a command or the environment may send the program: folders, and a few kinds of store."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from equitune.config.address import store_address
from equitune.config.load import load_study
from equitune.config.trial import DataConfig
from equitune.data.cache import Source, on_node
from equitune.data.splits import load_splits
from equitune.errors import UserError
from equitune.records.folder import studies_root

Write = Callable[[str], Path]
FOREIGN = [
    ("http://169.254.169.254/latest", "unknown kind of address 'http'"),
    ("https://example.com/data", "unknown kind of address 'https'"),
    ("ftp://a/b", "unknown kind of address 'ftp'"),
    ("github://c/d", "unknown kind of address 'github'"),
    ("simplecache::s3://bucket/x", "two slashes"),
    ("zip://a.zip::http://169.254.169.254/x", "unknown kind of address 'zip'"),
    ("s3://bucket/x::http://169.254.169.254", "without keys or settings"),
    ("file:///a::http://169.254.169.254", "without keys or settings"),
    ("http::/latest", "two slashes"),
    ("http:/latest", "two slashes"),
]


@pytest.mark.parametrize(("text", "sentence"), FOREIGN)
def test_other_addresses_are_refused_wherever_they_are_given(
    text: str, sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, study_file: Write
) -> None:
    import fsspec

    def asked(*args: object, **settings: object) -> None:
        raise AssertionError(f"{args} was asked")

    monkeypatch.setenv("EQUITUNE_DATA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fsspec, "filesystem", asked)
    monkeypatch.setattr(fsspec.core, "url_to_fs", asked)
    with pytest.raises(UserError, match=sentence):
        studies_root(text)
    with pytest.raises(UserError, match=sentence):
        on_node(Source(text, "set"))
    monkeypatch.setenv("EQUITUNE_DATA", text)
    with pytest.raises(UserError, match=sentence):
        load_splits(DataConfig(name="imagefolder", args={"path": "set"}))
    assert not (tmp_path / "cache").exists()
    head = "study: s\nmodel: resnet\nobjectives: {accuracy: maximize}\ndata: "
    for data in ({"root": text, "path": "a"}, {"path": text}, {"path": "a", "test_path": text}):
        with pytest.raises(UserError, match=rf"data\.\w+: where data lie: .*{sentence}"):
            load_study(study_file(f"{head}{ {'name': 'imagefolder', **data} }\n"))


@pytest.mark.parametrize("text", ["s3://bucket/x", "gs://b", "gcs://b/c", "abfs://b/c", "file:///a/b", "memory://b/c"])
def test_stores_and_folders_are_taken(text: str) -> None:
    assert store_address(text, "here") == tuple(text.split("://"))


@pytest.mark.parametrize("text", ["studies", "/a/b", "../x", "odd:name", "C:\\x", "~/x", "a/b::c"])
def test_a_path_is_no_address(text: str) -> None:
    assert store_address(text, "here") is None


@pytest.mark.parametrize("root", ["~nouser-of-that-name/x"])
def test_the_home_of_nobody_is_a_sentence(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="a user who is not known here: write it out"):
        studies_root(root)
    monkeypatch.setenv("EQUITUNE_DATA_CACHE", root)
    with pytest.raises(UserError, match="EQUITUNE_DATA_CACHE: .* nobody known here: name a folder"):
        on_node(Source("s3://bucket", "set"))


def test_a_folder_with_colons_in_its_name_is_copied_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd::http:x").mkdir()
    (tmp_path / "odd::http:x/file").write_bytes(b"here")
    monkeypatch.setenv("EQUITUNE_DATA_CACHE", str(tmp_path / "cache"))
    copy, stamp = on_node(Source(str(tmp_path), "odd::http:x"))
    assert stamp
    assert (copy / "file").read_bytes() == b"here"


def test_links_to_folders_are_not_copied_and_pipes_are_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link to a folder was copied as a folder, which no later run could remove."""
    monkeypatch.setenv("EQUITUNE_DATA_CACHE", str(tmp_path / "cache"))
    inner = tmp_path / "data/set/a"
    inner.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/2").write_bytes(b"two")
    (inner / "1").write_bytes(b"one")
    (inner / "2").symlink_to(tmp_path / "elsewhere/2")
    (inner / "up").symlink_to(tmp_path / "elsewhere")
    (inner / "gone").symlink_to(tmp_path / "nowhere")
    copy, _ = on_node(Source(str(tmp_path / "data"), "set"))
    assert {str(path.relative_to(copy)): path.read_bytes() for path in copy.rglob("*") if path.is_file()} == {
        "a/1": b"one",
        "a/2": b"two",
    }
    (inner / "up").unlink()
    assert on_node(Source(str(tmp_path / "data"), "set"))[0] == copy
    os.mkfifo(inner / "3")
    with pytest.raises(UserError, match="a/3 is no file but a pipe, a socket or a device: remove it"):
        on_node(Source(str(tmp_path / "data"), "set"))


@pytest.mark.parametrize(
    ("name", "size", "sentence"),
    [
        ("set/1", None, "does not say how many bytes '1' has"),
        ("set/a/../../x", 1, "would lie outside of its copy"),
        ("set/\x1b]0;x\x07", 1, r"holds '\\x1b\]0;x\\x07', which would lie outside"),
        ("set/a\\..\\x", 1, "would lie outside of its copy"),
        ("set/" + "x" * 2000, 1, "would lie outside of its copy"),
    ],
)
def test_a_listing_is_checked(name: str, size: int | None, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    listed = {f"/bucket/{name}": {"name": name, "size": size, "type": "file"}}
    monkeypatch.setattr(MemoryFileSystem, "find", lambda *args, **options: listed)
    with pytest.raises(UserError, match=sentence):
        on_node(Source("memory://bucket", "set"))

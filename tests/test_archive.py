"""A study's folder on its way between machines: what is packed, what may be unpacked, what is written over what."""

import io
import shutil
import tarfile
from pathlib import Path

import pytest
from invented import add_trial, invent

from equitune.config.study import StudySpec
from equitune.errors import UserError
from equitune.records import archive
from equitune.records.archive import as_text, from_text, keep, packed, study_files, unpacked
from equitune.records.folder import StudyFolder, read_json, write_json


@pytest.fixture
def there(tmp_path: Path, small_spec: StudySpec) -> StudyFolder:
    """A study on the cluster, with all that a driver leaves there."""
    folder = invent(tmp_path / "there" / "small", small_spec, 3)
    (folder.path / "attempts" / "1").mkdir(parents=True)
    for name in ("driver.lock", "attempts/1/x", "trials/00001/checkpoint.pt", "trials/00001/.result.json.12"):
        (folder.path / name).write_bytes(b"x")
    folder.trial(1).weights.write_bytes(b"weights")
    (folder.path / "front.html").write_text("<html>")
    return folder


@pytest.fixture
def here(tmp_path: Path) -> StudyFolder:
    return StudyFolder(tmp_path / "here" / "small")


def test_what_others_read_is_packed_and_arrives_as_it_was(there: StudyFolder) -> None:
    files = dict(study_files(there))
    assert {"study.json", "front.html", "trials/00002/result.json"} <= files.keys()
    assert not any(part in name for name in files for part in ("driver", "attempts", "checkpoint", "weights", "/."))
    text = "Running entrypoint\n" + "\n".join(as_text("small", packed(study_files(there)))) + "\nbye\n"
    data = from_text(text)
    assert data is not None
    assert unpacked(data) == files
    assert dict(study_files(there, weights=True))["trials/00001/weights.safetensors"] == b"weights"


def test_what_did_not_arrive_whole_is_refused(there: StudyFolder) -> None:
    text = "\n".join(as_text("small", packed(study_files(there))))
    assert from_text("unknown study 'small'\n") is None
    at = text.index("\n") + 9  # within the first line of data
    swapped = text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]
    foreign = text[:at] + "ü" + text[at + 1 :]
    for broken in (text[:-40], text[: at + 80] + text[at + 160 :], swapped, foreign):
        with pytest.raises(UserError, match="did not arrive whole"):
            from_text(broken)
    with pytest.raises(UserError, match="damaged"):
        unpacked(b"no archive")


def entry(name: str, **fields: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as made:
        info = tarfile.TarInfo(name)
        for key, value in fields.items():
            setattr(info, key, value)
        made.addfile(info, io.BytesIO(b"\0" * info.size))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("../../.bashrc", {}),
        ("trials/../../x", {}),
        ("/etc/passwd", {}),
        ("..\\x", {}),
        ("front.html", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
        ("front.html", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"}),
        ("fifo", {"type": tarfile.FIFOTYPE}),
        ("trials", {"type": tarfile.DIRTYPE}),
    ],
)
def test_an_entry_that_no_study_has_is_refused(name: str, fields: dict[str, object]) -> None:
    with pytest.raises(UserError, match="nothing of it was taken"):
        unpacked(entry(name, **fields))
    assert unpacked(entry("trials/00000/result.json")) == {"trials/00000/result.json": b""}  # the same, without it


def test_an_archive_that_swells_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MOST_MIB", 1)
    with pytest.raises(UserError, match="more than 1 MiB"):
        unpacked(entry("bomb", size=2 * 2**20))


def test_a_second_fetch_takes_what_is_new(there: StudyFolder, here: StudyFolder, small_spec: StudySpec) -> None:
    first = keep(here, dict(study_files(there)), "http://cluster")
    assert (first.num_changed, first.num_same) == (0, 0)
    add_trial(there, small_spec, 3)
    write_json(there.study, read_json(there.study) | {"ended_by": "trials: 4 of 4"})
    second = keep(here, dict(study_files(there)), "http://cluster")
    assert (second.num_changed, second.num_same) == (1, first.num_new - 1)
    assert second.num_new >= 2
    assert read_json(here.path / "fetched.json")["from"] == "http://cluster"
    assert keep(here, dict(study_files(there)), "http://cluster").num_same == len(dict(study_files(there)))


def test_pictures_drawn_here_are_no_reason_to_refuse(there: StudyFolder, here: StudyFolder) -> None:
    keep(here, dict(study_files(there)), "http://cluster")
    (here.path / "front.html").write_text("drawn here")
    (here.path / "report.html").write_text("written here")
    assert keep(here, dict(study_files(there)), "http://cluster").num_changed == 1


def test_what_was_changed_here_is_not_written_over(
    there: StudyFolder, here: StudyFolder, small_spec: StudySpec
) -> None:
    keep(here, dict(study_files(there)), "http://cluster")
    changed = [
        lambda: here.trial(1).result.write_text("{}"),
        lambda: add_trial(here, small_spec, 7),  # the study went on on this machine
        lambda: write_json(here.study, {"study": "small"}),
    ]
    whole = here.path.with_name("whole")
    shutil.copytree(here.path, whole)
    for change in changed:
        shutil.rmtree(here.path)
        shutil.copytree(whole, here.path)
        change()
        before = {path: path.read_bytes() for path in here.path.rglob("*") if path.is_file()}
        with pytest.raises(UserError, match=r"differs from the cluster's .* or over it with --force"):
            keep(here, dict(study_files(there)), "http://cluster")
        assert {path: path.read_bytes() for path in here.path.rglob("*") if path.is_file()} == before
        keep(here, dict(study_files(there)), "http://cluster", force=True)


def test_another_study_of_the_name_and_one_that_runs_are_left_alone(
    there: StudyFolder, here: StudyFolder, small_spec: StudySpec
) -> None:
    invent(here.path, small_spec, 1)
    with pytest.raises(UserError, match="holds a study of this name that differs"):
        keep(here, dict(study_files(there)), "http://cluster")
    here.driver.write_text("{}")
    with pytest.raises(UserError, match="is being searched on this machine"):
        keep(here, dict(study_files(there)), "http://cluster", force=True)
    with pytest.raises(UserError, match=r"has no study.json: nothing of it was written"):
        keep(StudyFolder(here.path.with_name("none")), {"study.log": b""}, "http://cluster")
    assert not here.path.with_name("none").exists()

"""Names that come from elsewhere: of a listing, an archive, a job. Nothing is written but what a study has, where it is."""

import gzip
import io
import json
import os
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from invented import invent

from equitune.cli import cli
from equitune.config.study import StudySpec
from equitune.errors import UserError
from equitune.records import archive
from equitune.records.archive import keep, packed, study_files, unpacked
from equitune.records.folder import StudyFolder, append, write_json
from equitune.records.names import is_inside, is_study_file
from equitune.records.on_disk import written
from equitune.records.place import place_of
from equitune.records.reader import StudyReader
from equitune.report.arms import write_answer

OUTSIDE = [
    "../../../PWNED",
    "trials/../../x",
    "/etc/passwd",
    "..\\x",
    "trials//00000/result.json",
    "./study.json",
    "C:/x",
    "",
    "a" * 600,
]
NOT_OF_A_STUDY = [
    ".git/hooks/post-checkout",
    "attempts/1/x.pkl",
    "study.journal",
    "driver.json",
    "driver.lock",
    "fetched.json",
    "\x1b]0;x\x07",
    "front.png\u202e",
    "trials/00000/checkpoint.pt",
    "trials/00000/.ssh/authorized_keys",
    "trials/0/result.json",
    "trials/00000/result.json/x",
    "bin/x.desktop",
    "report/../front.png",
]


@pytest.mark.parametrize("name", OUTSIDE + NOT_OF_A_STUDY)
def test_a_name_that_no_study_has_is_refused_at_the_door(name: str, tmp_path: Path) -> None:
    assert not is_study_file(name)
    assert is_inside(name) == (name not in OUTSIDE and name.isprintable() and ".." not in name and name.isascii())
    with pytest.raises(UserError, match="nothing of it was taken") as caught:
        keep(StudyFolder(tmp_path / "a/b/small"), {"study.json": b"{}", name: b"x"}, "s3://bucket")
    assert caught.value.args[0].isprintable()
    assert list(tmp_path.iterdir()) == []


def test_every_file_that_a_study_writes_is_on_the_list(tmp_path: Path, small_spec: StudySpec) -> None:
    folder = invent(tmp_path / "small", small_spec, 4)
    write_answer(StudyReader(folder).read(), folder.path)
    folder.searchspace.write_text("study: small")
    folder.trial(0).claim()
    folder.trial(0).weights.write_bytes(b"")
    folder.trial(0).log.write_text("")
    write_json(folder.usage, {})
    runner = CliRunner()
    for kind in ("html", "markdown", "svg", "csv"):
        done = runner.invoke(cli, ["report", "small", "--root", str(tmp_path), "--format", kind])
        assert done.exit_code == 0, done.output
    names = {str(path.relative_to(folder.path)) for path in folder.path.rglob("*") if path.is_file()}
    assert {"report.html", "report/report.md", "front.png", "trials/00000/config.json"} <= names
    assert {name for name in names if not is_study_file(name)} == set()


# Listings


def test_a_listing_that_leads_out_of_the_study_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    store = place_of("memory://names/lab/team/studies")
    (store / "capacity" / "study.json").write_bytes(b"{}")
    for name in ("../../../PWNED-3", "../../PWNED-2", ".git/hooks/post-checkout"):
        store.files.pipe_file(f"/names/lab/team/studies/capacity/{name}", b"attacker")
    home = tmp_path / "victim/proj/studies"
    done = CliRunner().invoke(cli, ["fetch", "capacity", "--from", str(store), "--root", str(home)])
    assert isinstance(done.exception, UserError)  # which ends with its sentence and code 2
    assert "leads out of a study: nothing of it was taken" in str(done.exception)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_is_no_file_of_a_study_stays_where_it_is(tmp_path: Path, small_spec: StudySpec) -> None:
    folder = invent(tmp_path / "small", small_spec, 1)
    for name in ("study.journal", ".git/config", "notes.txt", "attempts/1/x.pkl", "trials/00000/checkpoint.pt"):
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / name).write_text("x")
    assert all(is_study_file(name) for name, _ in study_files(folder))


# Links and pipes


def hostile(folder: StudyFolder, make: Callable[[Path], Any]) -> list[str]:
    """Puts what `make` makes in place of files that are read."""
    places = [folder.log, folder.trial(0).log, folder.trial(0).weights, folder.path / "report.html"]
    for path in places:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        make(path)
    return [str(path.relative_to(folder.path)) for path in places]


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("/proc/self/environ"), os.mkfifo], ids=["link", "pipe"])
def test_no_secret_of_a_driver_gets_into_a_log_by_what_a_neighbour_placed(
    make: Callable[[Path], Any], tmp_path: Path, small_spec: StudySpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQUITUNE_STORAGE", "postgresql://equitune:s3cr3t@pg/optuna")
    folder = invent(tmp_path / "small", small_spec, 1)
    names = hostile(folder, make)
    (folder.path / "trials/00001").symlink_to("/proc/self")
    found: list[dict[str, bytes]] = []
    reader = threading.Thread(target=lambda: found.append(dict(study_files(folder, weights=True))), daemon=True)
    reader.start()
    reader.join(20)
    assert found, "it waits for a pipe"
    assert not found[0].keys() & set(names)
    assert not any("00001" in name for name in found[0])
    done = CliRunner().invoke(cli, ["pack", "small", "--root", str(tmp_path), "--weights"])
    assert done.exit_code == 0
    data = archive.from_text(done.output)
    assert data is not None
    assert b"s3cr3t" not in b"".join(unpacked(data).values())


def test_nothing_is_written_behind_a_link_within_a_study(tmp_path: Path, small_spec: StudySpec) -> None:
    folder = invent(tmp_path / "small", small_spec, 2)
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").write_text("as it was")
    (folder.path / "report").symlink_to(victim)
    (folder.path / "front.png").unlink(missing_ok=True)
    (folder.path / "front.png").symlink_to(victim / "precious")
    (folder.path / "report.html").symlink_to(victim / "precious")
    folder.trial(0).epochs.unlink(missing_ok=True)
    folder.trial(0).epochs.symlink_to(victim / "precious")
    runner = CliRunner()
    done = runner.invoke(cli, ["report", "small", "--root", str(tmp_path), "--format", "csv"])
    assert "it is a link" in str(done.exception)
    assert isinstance(done.exception, UserError)
    assert isinstance(runner.invoke(cli, ["report", "small", "--root", str(tmp_path)]).exception, UserError)
    with pytest.raises(OSError, match="it is a link"):
        append(folder.trial(0).epochs, "{}")
    with written(folder.path) as local:
        local.mkdir(exist_ok=True)
        write_answer(StudyReader(folder).read(), local)
    assert (folder.path / "front.png").is_file()
    assert not (folder.path / "front.png").is_symlink()
    arrived = dict(study_files(folder))
    (tmp_path / "home/small").mkdir(parents=True)
    (tmp_path / "home/small/trials").symlink_to(victim)
    with pytest.raises(UserError, match="it is a link"):
        keep(StudyFolder(tmp_path / "home/small"), arrived, "http://cluster")
    assert [path.name for path in victim.iterdir()] == ["precious"]
    assert (victim / "precious").read_text() == "as it was"


def test_a_root_behind_a_link_is_a_users_own(tmp_path: Path, small_spec: StudySpec) -> None:
    invent(tmp_path / "large-disk/small", small_spec, 2)
    (tmp_path / "studies").symlink_to(tmp_path / "large-disk")
    done = CliRunner().invoke(cli, ["report", "small", "--root", str(tmp_path / "studies"), "--format", "csv"])
    assert done.exit_code == 0, done.output


# Archives


def test_a_header_that_swells_is_refused_before_it_is_read() -> None:
    """The header of a long name says its own size, which tarfile reads into memory."""
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 8 * 2**20
    raw = header.tobuf(tarfile.GNU_FORMAT) + b"a" * header.size + b"\0" * 1024
    with pytest.raises(UserError, match="which no study does"):
        unpacked(gzip.compress(raw))


def test_an_archive_is_not_inflated_further_than_a_study_may_be_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MOST_MIB", 2)
    taken: list[int] = []
    real = io.BytesIO.write
    monkeypatch.setattr(archive, "IN_MEMORY_MIB", 1)

    class Counting:
        """Stands for a spooled file."""

        def __init__(self, **_: Any) -> None:
            self.file = io.BytesIO()

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def write(self, piece: bytes) -> int:
            taken.append(len(piece))
            return real(self.file, piece)

    monkeypatch.setattr(archive.tempfile, "SpooledTemporaryFile", Counting)
    with pytest.raises(UserError, match="more than 2 MiB"):
        unpacked(gzip.compress(b"\0" * (64 * 2**20)))
    assert sum(taken) <= 2 * 2**20


def test_what_is_packed_is_read_again(tmp_path: Path, small_spec: StudySpec) -> None:
    files = dict(study_files(invent(tmp_path / "small", small_spec, 3)))
    assert unpacked(packed(iter(files.items()))) == files
    for cut in (len(packed(iter(files.items()))) // 2, 30):
        with pytest.raises(UserError, match="damaged"):
            unpacked(packed(iter(files.items()))[:cut])


# Jobs


def test_a_number_that_no_job_has_is_no_jobs_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python itself refuses to read a number of more than 4,300 digits."""
    from equitune.remote import submit
    from equitune.remote.jobs import Job

    long = Job("capacity@" + "9" * 5000, "capacity", "SUCCEEDED", 0, "", 0.0, "a neighbour", None)

    class Cluster:
        def jobs(self) -> list[Job]:
            return [long]

    sent: list[str] = []

    def send(cluster: Any, job_id: str, *_: Any, **__: Any) -> Job:
        sent.append(job_id)
        return long

    monkeypatch.setattr(submit, "_sent", send)
    submit.submit_study(Cluster(), "capacity", ["x"], driver_on="any", ship=[], environment={})  # type: ignore[arg-type]
    assert sent == ["capacity@1"]
    assert json.dumps(sent)


def test_a_link_with_the_name_of_an_unfinished_file_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("as it was")
    (tmp_path / f".result.json.{os.getpid()}").symlink_to(victim)
    with pytest.raises(OSError, match=r"result\.json"):
        write_json(tmp_path / "result.json", {})
    assert victim.read_text() == "as it was"

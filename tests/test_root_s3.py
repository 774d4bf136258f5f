"""Studies in an object store: fsspec's own in memory for what only reads and writes, an S3 server on loopback for S3.

Everything that a study's folder is used for is held against the same on a disk.
"""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
import postgres
import pytest
from click.testing import CliRunner
from invented import add_trial, invent, learns
from s3 import BUCKET, SECRET, Proxy, server

from equitune.cli import cli
from equitune.config.study import StudySpec
from equitune.driver.lock import driving
from equitune.driver.run_study import run_study
from equitune.errors import GivenUp, StoreError, TakenOver, UserError
from equitune.notebook import load_study as load_recorded
from equitune.records import checked, patience, seen
from equitune.records.folder import StudyFolder, TrialFolder, append, read_json, studies_root, write_json
from equitune.records.on_disk import fetched, kept, written
from equitune.records.patience import cleaned, patiently
from equitune.records.place import RemotePath, _files, place_of
from equitune.records.reader import StudyReader, StudyRecord, is_driven
from equitune.report.front import write_front
from equitune.report.profile import write_profile
from equitune.results.values import untimed
from equitune.search.study_record import begin
from equitune.search.warm_start import bring, warmly_begun
from equitune.tracking.projector import sync
from equitune.tracking.store import default_tracking_uri
from equitune.training.again import TIMED_EPOCH

Write = Callable[..., Path]


@pytest.fixture
def root() -> Iterator[RemotePath]:
    """An empty place in memory."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    found = studies_root("memory://bucket/studies")
    assert isinstance(found, RemotePath)
    yield found
    files.store.clear()


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience of a blink."""
    for name in ("FIRST_PATIENCE_S", "FIRST_PAUSE_S"):
        monkeypatch.setattr(patience, name, 0.01)
    monkeypatch.setattr(patience, "PATIENCE_S", 0.2)
    monkeypatch.setattr(patience, "_answered", set())


# What pathlib has of a path, on a disk and in a store.
def describe(folder: Any) -> dict[str, Any]:
    file, other = folder / "a" / "b.json", folder / "a" / "c.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"before": (file.exists(), file.is_file())}
    file.write_bytes(b"{}")
    append(other, "one\n")
    append(other, "two\n")
    found["texts"] = (file.read_bytes(), other.read_text(), file.open("rb").read())
    found["kinds"] = (file.exists(), file.is_file(), file.is_dir(), (folder / "a").is_dir(), (folder / "a").is_file())
    found["names"] = (file.name, file.stem, file.suffix, file.with_name("x").name, file.with_suffix(".1.yaml").name)
    found["inside"] = sorted(path.name for path in (folder / "a").iterdir())
    found["size"], found["fresh"] = file.stat().st_size, file.stat().st_mtime > 1.7e9
    found["same"] = (pickle.loads(pickle.dumps(file)) == file, file != other, len({file, folder / "a" / "b.json"}))
    other.unlink()
    other.unlink(missing_ok=True)
    for call in (other.unlink, other.read_bytes, other.stat):
        with pytest.raises(FileNotFoundError):
            call()
    found["after"] = [path.name for path in (folder / "a").iterdir()]
    return found


def test_a_place_in_a_store_does_as_a_path(root: RemotePath, tmp_path: Path) -> None:
    assert describe(root) == describe(tmp_path)
    assert str(root / "a") == "memory://bucket/studies/a"
    assert str((root / "a").parent) == str(root)
    assert list((root / "nothing").iterdir()) == []
    with pytest.raises(ValueError, match="is put whole"):
        root.open("a")


def test_a_local_root_is_a_plain_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EQUITUNE_ROOT", raising=False)
    assert studies_root() == tmp_path / "studies"
    assert studies_root("a/b") == tmp_path / "a/b"
    assert studies_root(tmp_path / "c") == tmp_path / "c"
    assert studies_root(f"file://{tmp_path}/c") == tmp_path / "c"
    assert studies_root("odd:name") == tmp_path / "odd:name"
    assert studies_root("~/x") == Path("~/x").expanduser()
    monkeypatch.setenv("EQUITUNE_ROOT", "memory://bucket/x")
    assert str(studies_root()) == "memory://bucket/x"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3:/bucket/x", "an address is s3://BUCKET/FOLDER, with two slashes"),
        ("s4://bucket/x", "unknown kind of address 's4': did you mean 's3'"),
        ("s3://", "names no bucket"),
        ("s3:///x", "names no bucket"),
        ("s3://KEY:hidden@bucket/x", "without keys or settings"),
        ("s3://bucket/x?secret=hidden", "without keys or settings"),
        ("s3://bucket/x::file://hidden", "without keys or settings"),
        ("simplecache::s3://bucket", "with two slashes"),
    ],
)
def test_an_address_that_cannot_be_is_refused_and_tells_no_secret(url: str, said: str, study_file: Write) -> None:
    with pytest.raises(UserError, match=said) as caught:
        studies_root(url)
    assert "hidden" not in str(caught.value)
    for command in (["list"], ["show", "small"], ["check", str(study_file())], ["watch", "small"]):
        result = CliRunner().invoke(cli, [*command, "--root", url])
        assert "hidden" not in result.output + str(result.exception), command


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: object, **settings: object) -> None:
        raise ImportError("Install s3fs to access S3")

    _files.cache_clear()
    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(UserError, match=r"pip install 'equitune\[s3\]'"):
        studies_root("s3://bucket/x")


def test_a_study_reads_the_same_from_a_store(root: RemotePath, tmp_path: Path, small_spec: StudySpec) -> None:
    states = {2: "RUNNING", 3: "FAILED"}
    there = invent(root / "small", small_spec, 5, states=states, tested=(4,))  # type: ignore[arg-type]
    here = invent(tmp_path / "small", small_spec, 5, states=states, tested=(4,))
    for brief in (False, True):
        remote, local = StudyReader(there, brief).read(), StudyReader(here, brief).read()
        for one, other in zip(remote.trials, local.trials, strict=True):
            assert (one.config, one.epochs, one.result, one.test) == (
                other.config,
                other.epochs,
                other.result,
                other.test,
            )
            assert abs(one.started - other.started) < 60
        assert remote.state == local.state
    assert load_recorded(str(there.path)).trials.equals(load_recorded(here.path).trials)


class Counting:
    """A file system that says how often it was asked."""

    def __init__(self, files: Any) -> None:
        self.files, self.calls = files, list[str]()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.files, name)
        if not callable(found) or name.startswith("_"):
            return found

        def counted(*args: Any, **settings: Any) -> Any:
            self.calls.append(name)
            return found(*args, **settings)

        return counted


def test_reading_a_study_again_and_again_asks_for_little(root: RemotePath, small_spec: StudySpec) -> None:
    """One listing a look, and one call for the contents of what is new; the broken twin asks for every file."""
    folder = invent(root / "small", small_spec, 20, states={19: "RUNNING"})  # type: ignore[arg-type]
    counting = Counting(root.files)
    reader = StudyReader(StudyFolder(folder.path.through(counting)))  # type: ignore[union-attr]
    assert len(reader.read().ended()) == 19
    assert counting.calls == ["find", "cat"]
    for _ in range(3):
        counting.calls.clear()
        reader.read()
        assert counting.calls == ["find"]
    add_trial(folder, small_spec, 19)
    counting.calls.clear()
    assert len(reader.read().ended()) == 20
    assert counting.calls == ["find", "cat"]
    counting.calls.clear()
    for trial in StudyFolder(folder.path.through(counting)).trials():  # type: ignore[union-attr]
        trial.read_epochs()
    assert len(counting.calls) > 20


def test_a_worker_that_is_not_the_trials_own_writes_nothing(root: RemotePath, small_spec: StudySpec) -> None:
    study = invent(root / "small", small_spec, 1, states={0: "RUNNING"})  # type: ignore[arg-type]
    write_json(study.driver, {"token": "one"})
    first, second = (TrialFolder(study.trial(0).path, token="one") for _ in range(2))
    first.claim()
    second.claim()
    epoch = study.trial(0).read_epochs()[0]
    with pytest.raises(GivenUp):
        first.append_epoch(epoch)
    assert not first.is_held()
    second.append_epoch(epoch.model_copy(update={"epoch": 3}))
    write_json(study.driver, {"token": "two"})
    with pytest.raises(TakenOver):
        second.append_epoch(epoch)
    assert [each.epoch for each in study.trial(0).read_epochs()] == [1, 2, 3]


def test_a_driver_beats_and_leaves_nothing_behind(root: RemotePath, small_spec: StudySpec) -> None:
    folder = invent(root / "small", small_spec, 1)  # type: ignore[arg-type]
    with driving(folder) as token:
        assert folder.holder()["token"] == token
        assert is_driven(folder)
        assert StudyReader(folder).read().is_driven
        assert not folder.lock.exists()
    assert not is_driven(folder)
    assert not folder.driver.exists()
    with driving(folder):  # one that was taken over by another takes nothing from that
        write_json(folder.driver, {"token": "another"})
    assert folder.holder() == {"token": "another"}


def test_a_beginning_study_that_another_driver_begins_is_refused(root: RemotePath) -> None:
    folder = StudyFolder(root / "small")
    write_json(folder.driver, {"pid": 1, "host": "elsewhere", "token": "another"})
    folder.heartbeat.touch()
    over = threading.Event()

    def beat() -> None:
        while not over.wait(0.1):
            folder.heartbeat.touch()

    threading.Thread(target=beat, daemon=True).start()
    try:
        with (
            pytest.raises(UserError, match="is being searched already .process 1 on elsewhere.: wait"),
            driving(folder),
        ):
            pass
    finally:
        over.set()
    assert folder.holder()["token"] == "another"


def test_without_a_database_nothing_begins(root: RemotePath, small_spec: StudySpec, study_file: Write) -> None:
    with pytest.raises(UserError, match="journal needs a file system.*--storage .*postgresql://USER@HOST"):
        run_study(small_spec, StudyFolder(root / "small"))
    assert list(root.iterdir()) == []


def test_a_study_begins_warmly_in_a_store(root: RemotePath, small_spec: StudySpec) -> None:
    other = invent(root / "other", small_spec, 3, states={1: "FAILED"})  # type: ignore[arg-type]
    write_json(other.study, json.loads(other.study.read_bytes()) | {"data_fingerprint": "d"})
    other.trial(2).checkpoint.write_bytes(b"state")
    folder, said = StudyFolder(root / "small"), list[str]()
    started = warmly_begun(small_spec, folder, ("other",), "d", said.append)
    begin(folder, small_spec, None, (), "somewhere", started)
    import optuna

    study = optuna.create_study(directions=list(small_spec.directions.values()))
    bring(study, folder, small_spec)
    assert [trial.number for trial in study.get_trials()] == [0, 1] == folder.numbers()
    brought = StudyReader(folder).read().trials[1]
    assert brought.result is not None
    assert brought.result.provenance["warm_start"] == "other/2"
    assert brought.epochs == StudyReader(other).read().trials[2].epochs
    assert not folder.trial(1).checkpoint.exists()
    folder.trial(1).config.unlink()  # as a driver leaves it that dies before the last file
    bring(study, folder, small_spec)
    assert folder.trial(1).config.exists()


def test_a_replay_in_a_store_goes_as_on_a_disk(
    root: RemotePath, tmp_path: Path, small_spec: StudySpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine, driver deaths included; the journal alone lies elsewhere, in the place of a database."""
    from equitune.search import replay as replayed

    def opened(folder: StudyFolder, spec: StudySpec) -> Any:
        import optuna

        from equitune.search.storage import _restore

        study = optuna.create_study(
            storage=optuna.storages.InMemoryStorage(), directions=list(spec.directions.values())
        )
        _restore(study, folder, spec, lambda sentence: None)
        return study

    monkeypatch.setattr(replayed, "open_storage", opened)
    found = []
    for place in (root, tmp_path):
        folder = StudyFolder(place / "small")
        replayed.replay(small_spec, folder, learns, dies=lambda event: event % 7 == 0)
        trials = StudyReader(folder).read().trials
        found.append(
            [(trial.config.params, trial.metrics, trial.test, [e.epoch for e in trial.epochs]) for trial in trials]
        )
    assert found[0] == found[1]


COMMANDS = (
    ["list"], ["list", "--json"], ["show", "small"], ["show", "small", "--json"], ["show", "small/1"],
    ["analyze", "small", "--json"], ["watch", "small"],
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_says_of_a_store_what_it_says_of_a_disk(
    command: list[str], root: RemotePath, tmp_path: Path, small_spec: StudySpec
) -> None:
    said = []
    for place in (root, tmp_path):
        invent(place / "small", small_spec, 4)  # type: ignore[arg-type]
        result = CliRunner().invoke(cli, [*command, "--root", str(place)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        lines = result.output.replace(str(place), "ROOT").splitlines()
        said.append([line for line in lines if not any(word in line for word in ("begun", "started", "changed"))])
    clock = [line for lines in said for line in lines if ":" in line and "2023" not in line]
    assert len(said[0]) == len(said[1])
    assert [one for one, other in zip(*said, strict=True) if one != other and one in clock] == []


def test_a_report_and_an_export_are_written(root: RemotePath, tmp_path: Path, small_spec: StudySpec) -> None:
    folder = invent(root / "small", small_spec, 4)  # type: ignore[arg-type]
    for arguments in (
        ["report", "small"],
        ["report", "small", "--format", "markdown"],
        ["report", "small", "--format", "csv"],
    ):
        result = CliRunner().invoke(cli, [*arguments, "--root", str(root)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert f"Report:  {folder.path}/report" in result.output
    assert folder.path.__truediv__("report.html").read_text().startswith("<!doctype html>")
    assert {path.name for path in (folder.path / "report").iterdir()} >= {"report.md", "front.png"}
    result = CliRunner().invoke(cli, ["export", "small", "--root", str(root), "--output", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "trials.csv").is_file()


def test_a_trial_of_a_store_is_measured_as_one_of_a_disk(root: RemotePath, recorded: Path, tmp_path: Path) -> None:
    for path in (recorded / "small").rglob("*"):
        if path.is_file():
            (root / "small" / path.relative_to(recorded / "small").as_posix()).write_bytes(path.read_bytes())
    measured = []
    for place in (root, recorded):
        output = tmp_path / str(len(measured))
        options = ["--root", str(place), "--images", "20", "--output", str(output)]
        result = CliRunner().invoke(cli, ["measure", "small/1", *options], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        measured.append(json.loads((output / "measurement.json").read_text())["models"][0]["metrics"])
    assert measured[0] == measured[1]


def test_files_travel_whole(root: RemotePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with written(root / "out") as local:
        (local / "inner").mkdir(parents=True)
        (local / "a.txt").write_text("a")
        (local / "inner" / "b.txt").write_text("b")
    assert (root / "out" / "inner" / "b.txt").read_text() == "b"
    with written(root / "one.txt") as local:
        local.write_text("one")
    with fetched(root / "one.txt") as local:
        assert (local.name, local.read_text()) == ("one.txt", "one")
    with suppress(ZeroDivisionError), written(root / "half.txt") as local:
        local.write_text("half")
        raise ZeroDivisionError
    assert not (root / "half.txt").exists()
    with written(tmp_path / "x") as local:
        assert local == tmp_path / "x"
    monkeypatch.setattr("equitune.records.on_disk.KEEP_S", 0.05)
    append(root / "log.txt", "before\n")
    with kept(root / "log.txt") as local:
        with local.open("a") as file:
            file.write("now\n")
        limit = threading.Event()
        while (root / "log.txt").read_text() != "before\nnow\n":
            limit.wait(0.05)
        with local.open("a") as file:
            file.write("last\n")
    assert (root / "log.txt").read_text() == "before\nnow\nlast\n"
    with kept(root / "log.txt", lambda: False) as local:
        local.write_text("not ours")
    assert (root / "log.txt").read_text() == "before\nnow\nlast\n"


def test_mlflow_gets_a_study_from_a_store(
    root: RemotePath, store: str, small_spec: StudySpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own files then lie in the working directory, unless an address says otherwise."""
    monkeypatch.chdir(tmp_path)
    assert default_tracking_uri(root) == store == f"sqlite:///{tmp_path / 'mlflow.db'}"
    folder = invent(root / "small", small_spec, 1)  # type: ignore[arg-type]
    sync(folder, store, write_front, write_profile)
    found = {path.name: path for path in (tmp_path / "mlartifacts").rglob("*") if path.is_file()}
    assert found.keys() >= {"config.json", "result.json", "front.png", "profile.json"}
    assert found["result.json"].read_bytes() == folder.trial(0).result.read_bytes()


class Away(OSError):
    """What a store's client raises that does not answer."""


def test_a_store_that_was_there_is_waited_for(fast: None, caplog: pytest.LogCaptureFixture) -> None:
    left = [Away("away"), Away("away")]

    def call() -> str:
        if left:
            raise left.pop()
        return "here"

    assert patiently("s3://b", "reading", "s3://b/x", lambda: "first") == "first"
    assert patiently("s3://b", "reading", "s3://b/x", call) == "here"
    assert "s3://b does not answer (away) while reading s3://b/x: trying again" in caplog.text


def test_one_that_stays_away_is_given_up_with_a_sentence(fast: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-one")
    tries = []

    def call() -> None:
        tries.append(1)
        raise Away("http://user:word@host said hidden-one")

    for known, least in ((False, 1), (True, 4)):
        tries.clear()
        if known:
            patience.trust("s3://b")
        with pytest.raises(StoreError) as caught:
            patiently("s3://b", "writing", "s3://b/x", call)
        assert str(caught.value).startswith("s3://b/x: s3://b does not answer (http://***@host said ***): mend")
        assert len(tries) >= least
    patience.trust("s3://b")
    patience.hurry.set()
    try:
        tries.clear()
        with pytest.raises(StoreError):
            patiently("s3://b", "writing", "s3://b/x", call)
        assert len(tries) == 1, "who wants an end waits for no store"
    finally:
        patience.hurry.clear()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            PermissionError("Forbidden"),
            r"refuses writing \(403: Forbidden\): give the credentials in use s3:ListBucket",
        ),
        (type("NoCredentialsError", (Exception,), {})("Unable"), "wants credentials, and none were found"),
        (OSError(22, "bad name"), "refuses writing .*bad name.*: mend the address"),
    ],
)
def test_what_no_waiting_mends_is_said_at_once(error: Exception, said: str, fast: None) -> None:
    tries = []

    def call() -> None:
        tries.append(1)
        raise error

    patience.trust("s3://b")
    with pytest.raises(StoreError, match=said):
        patiently("s3://b", "writing", "s3://b/x", call)
    assert len(tries) == 1


def test_a_bug_and_a_missing_file_stay_what_they_are(fast: None) -> None:
    for error in (FileNotFoundError("x"), KeyError("x"), TypeError("x")):

        def call(error: Exception = error) -> None:
            raise error

        with pytest.raises(type(error)):
            patiently("s3://b", "reading", "s3://b/x", call)
    assert cleaned(ValueError()) == "ValueError"


@pytest.fixture(scope="module")
def bucket() -> Iterator[Proxy]:
    """An S3 server with an empty bucket, which the environment names."""
    with server() as (proxy, _):
        yield proxy


@pytest.fixture
def s3(bucket: Proxy, fast: None) -> Iterator[Proxy]:
    """The same; what a test makes of it is taken back."""
    patience._answered.clear()
    _files.cache_clear()
    yield bucket
    bucket.is_away, bucket.forbids = False, lambda method, path: False


@pytest.mark.slow
def test_s3_does_as_a_path(s3: Proxy, tmp_path: Path) -> None:
    assert describe(studies_root(f"s3://{BUCKET}/places")) == describe(tmp_path)


@pytest.mark.slow
def test_a_study_on_s3_reads_as_on_a_disk(s3: Proxy, tmp_path: Path, small_spec: StudySpec) -> None:
    there = invent(studies_root(f"s3://{BUCKET}/read") / "small", small_spec, 3, tested=(2,))  # type: ignore[arg-type]
    here = invent(tmp_path / "small", small_spec, 3, tested=(2,))
    s3.requests = 0
    remote = StudyReader(there).read()
    assert s3.requests == 1 + 1 + 3 * 3 + 1  # a listing, study.json, three files of each trial and one test
    local = StudyReader(here).read()
    assert [(t.config, t.epochs, t.result, t.test) for t in remote.trials] == [
        (t.config, t.epochs, t.result, t.test) for t in local.trials
    ]


REFUSED = {
    "no such bucket": ("s3://nowhere/x", r"there is no bucket s3://nowhere: make it"),
    "no bucket alone": ("s3://nowhere", r"there is no bucket s3://nowhere: make it"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("url", "said"), REFUSED.values(), ids=REFUSED)
def test_a_bucket_that_is_not_there_is_said(url: str, said: str, s3: Proxy) -> None:
    with pytest.raises(UserError, match=said):
        studies_root(url)


@pytest.mark.slow
def test_a_bucket_without_permission_is_said_and_nothing_begins(s3: Proxy, small_spec: StudySpec) -> None:
    s3.forbids = lambda method, path: True
    with pytest.raises(
        UserError, match=rf"s3://{BUCKET} refuses reading .403.*give the credentials in use s3:ListBucket"
    ):
        studies_root(f"s3://{BUCKET}/denied")
    s3.forbids = lambda method, path: method == "PUT"
    folder = StudyFolder(studies_root(f"s3://{BUCKET}/denied") / "small")
    with (
        pytest.raises(StoreError, match=rf"driver.json: s3://{BUCKET} refuses writing .403: Access Denied"),
        driving(folder),
    ):
        pass
    s3.forbids = lambda method, path: False
    assert list(folder.path.parent.iterdir()) == []


@pytest.mark.slow
def test_without_credentials_it_says_which(s3: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(UserError, match="wants credentials, and none were found .*set AWS_ACCESS_KEY_ID and"):
        studies_root(f"s3://{BUCKET}/x")


@pytest.mark.slow
def test_a_store_that_is_away_is_waited_for_and_one_that_never_was_there_is_said(
    s3: Proxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    s3.is_away = True
    with pytest.raises(UserError, match=rf"s3://{BUCKET} does not answer .*mend the address .AWS_ENDPOINT_URL."):
        studies_root(f"s3://{BUCKET}/x")
    s3.is_away = False
    root = studies_root(f"s3://{BUCKET}/away")
    monkeypatch.setattr(patience, "PATIENCE_S", 60.0)
    s3.is_away = True
    back = threading.Timer(6.0, setattr, (s3, "is_away", False))
    back.start()
    began = time.monotonic()
    write_json(root / "a.json", {"a": 1})
    assert time.monotonic() - began >= 5.9
    assert f"s3://{BUCKET} does not answer" in caplog.text
    assert read_json(root / "a.json") == {"a": 1}
    back.join()


class Program:
    """`equitune search` as a user types it."""

    def __init__(self, file: Path, *arguments: str, **environment: str) -> None:
        self._output = file.with_suffix(f".{time.monotonic_ns()}.txt")
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "equitune", "search", str(file), "--no-register", *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=file.parent,
                env=os.environ | environment,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self._output.read_text()

    def end(self) -> int:
        return self.process.wait(600)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def two_nodes(hidden: Path) -> Iterator[str]:
    """A head without CPUs, and a machine that has two and does not see the driver's folder. Gives the address."""
    from ray.cluster_utils import Cluster

    hidden.mkdir()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80_000_000})
    start = f"{Path(sys.executable).parent}/ray start --address={cluster.address} --num-cpus=2 --block"
    start += " --object-store-memory=80000000 --disable-usage-stats"
    inside = f"mount -t tmpfs none {hidden} && exec {start}"
    node = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", inside], start_new_session=True, stdout=subprocess.DEVNULL
    )
    try:
        cluster.wait_for_nodes()
        limit = time.monotonic() + 120
        while len(cluster.global_state._live_node_ids()) < 2:
            assert time.monotonic() < limit, "the second machine has not joined"
            time.sleep(0.3)
        yield cluster.address
    finally:
        os.killpg(node.pid, signal.SIGTERM)
        try:
            node.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(node.pid, signal.SIGKILL)
        cluster.shutdown()


LAB = """\
study: small
data: {name: digits, limit: 200}
model: {name: resnet, depth: 8, width: {int: [2, 4]}}
augmentation: {translate: {max_px: {float: [0, 2]}}}
training: {epochs: 20, batch_size: 32}
measures: [equivariance]
objectives: {accuracy: maximize, translation_error: minimize}
resources: {concurrent: 2}
search: {sampler: random, trials: 3, seed: 3}
"""


def numbers(study: StudyRecord) -> list[list[Any]]:
    """All that two runs of the same study must have alike."""
    return [
        [
            trial.number,
            trial.state,
            trial.config.params,
            untimed(trial.metrics),
            untimed(trial.test),
            [epoch.model_dump(exclude=TIMED_EPOCH) for epoch in trial.epochs],
        ]
        for trial in study.trials
    ]


@pytest.mark.slow
@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"),
    reason="no root or no unshare: a study on machines that share nothing but S3 stays unproved",
)
def test_a_search_on_a_cluster_that_shares_nothing_but_s3(
    s3: Proxy, study_file: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its driver is killed, the same command goes on, and S3 is away for a while: the numbers are those of a disk."""
    monkeypatch.setattr(patience, "PATIENCE_S", 60.0)
    for name, value in {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}.items():
        monkeypatch.setenv(name, value)
    file, url = study_file(LAB), f"s3://{BUCKET}/lab"
    folder = StudyFolder(studies_root(url) / "small")
    hidden = tmp_path / "driver"

    def until(program: Program, condition: Callable[[StudyRecord], bool]) -> None:
        limit = time.monotonic() + 300
        while not (folder.study.exists() and condition(StudyReader(folder).read())):
            assert time.monotonic() < limit, program.output
            assert program.process.poll() is None, program.output
            time.sleep(0.3)

    with postgres.server() as database, two_nodes(hidden) as address:
        monkeypatch.setenv("EQUITUNE_STORAGE", database.url)
        first = Program(file, "--root", url, "--address", address, TMPDIR=str(hidden))
        try:
            until(first, lambda study: sum(len(trial.epochs) for trial in study.trials) > 5)
        finally:
            first.kill()
        killed_at = sum(len(trial.epochs) for trial in StudyReader(folder).read().trials)
        second = Program(file, "--root", url, "--address", address, TMPDIR=str(hidden))
        try:
            until(second, lambda study: sum(len(trial.epochs) for trial in study.trials) > killed_at + 3)
            s3.is_away = True
            time.sleep(8)
            assert second.process.poll() is None, second.output
            s3.is_away = False
            assert second.end() == 0, second.output
        finally:
            second.kill()
    monkeypatch.delenv("EQUITUNE_STORAGE")
    plain = Program(file, "--root", str(tmp_path / "studies"))
    assert plain.end() == 0, plain.output
    remote, local = StudyReader(folder).read(), StudyReader(StudyFolder(tmp_path / "studies" / "small")).read()
    assert remote.state == "complete"
    assert numbers(remote) == numbers(local)
    names = {path.name for path in folder.path.iterdir()}
    assert names >= {"study.json", "study.log", "searchspace.yaml", "usage.json", "front.png", "trials"}
    assert names.isdisjoint({"driver.json", "heartbeat", "driver.lock", "study.journal", "attempts"})
    assert f"s3://{BUCKET} does not answer" in folder.log.read_text()
    assert SECRET not in folder.log.read_text() + first.output + second.output
    again = CliRunner().invoke(cli, ["trial", "small/0", "--root", url])
    assert "the same bit for bit" in again.output


def test_a_record_that_is_too_large_is_not_fetched(small_spec: StudySpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing says how large it is before any memory is taken for it."""
    root = place_of("memory://bounded/studies")
    for path in (folder := invent(root / "small", small_spec, 2)).trials():
        assert path.result.exists()
    monkeypatch.setattr(seen, "MOST_BYTES", 10_000)
    monkeypatch.setattr(checked, "MOST_BYTES", 10_000)
    folder.trial(1).result.write_bytes(b"[" * 20_000)
    fetched: list[str] = []
    original = root.files.cat
    monkeypatch.setattr(root.files, "cat", lambda keys, **how: fetched.extend(keys) or original(keys, **how))
    study = StudyReader(folder).read()
    assert [trial.number for trial in study.trials] == [0]
    (said,) = study.damaged
    assert "of at most 10,000" in said
    assert fetched
    assert not any("00001/result.json" in key for key in fetched)

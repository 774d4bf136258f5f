"""The search in PostgreSQL, on a real server."""

import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import psycopg2
import pytest
from postgres import QUOTED, SECRET, Server, server
from test_searcher import COMPLETE, GRID, outcome, scripted

from equitune.config.load import load_study
from equitune.config.study import StudySpec
from equitune.driver.tune_searcher import StudySearcher
from equitune.errors import UserError
from equitune.records.folder import StudyFolder, read_json, write_json
from equitune.records.reader import StudyReader
from equitune.search.engine import Engine, Task
from equitune.search.extend import adapted
from equitune.search.postgres import FIRST_PATIENCE_S, HeldStorage, _key
from equitune.search.storage import open_storage, storage_at
from equitune.search.study_record import begin

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def database() -> Iterator[Server]:
    with server() as running:
        yield running


@pytest.fixture
def clean(database: Server) -> Server:
    """The server with an empty database."""
    database.sql("DROP DATABASE lab WITH (FORCE)", "CREATE DATABASE lab OWNER lab")
    return database


class Driver:
    """What `run_study` does with a database, without Ray."""

    def __init__(
        self, url: str | None, folder: StudyFolder, spec: StudySpec, stack: ExitStack, started: Any = None
    ) -> None:
        folder.path.mkdir(parents=True, exist_ok=True)
        self.said: list[str] = []
        self.storage = stack.enter_context(storage_at(url, folder, spec))
        begin(folder, spec, None, (), self.storage.name if self.storage else "journal", started)
        self.folder = folder
        adapt = partial(adapted, spec, folder, None, ())
        self.study = open_storage(folder, spec, self.storage, self.said.append, adapt)
        self.engine = Engine(spec, folder, self.study)

    def train(self) -> int:
        """Begins a trial and ends it; returns its number."""
        task = self.engine.next_task()
        assert isinstance(task, Task)
        result = scripted(task.number)
        write_json(task.folder.result, result.model_dump(mode="json"))
        self.engine.ended(task.number, result)
        return task.number


@pytest.fixture
def spec(study_file: Callable[..., Path]) -> StudySpec:
    return load_study(study_file(), ("search.trials=12",))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as each:
        yield each


def texts(path: Path) -> str:
    return "".join(file.read_text(errors="replace") for file in path.rglob("*") if file.is_file())


def test_a_study_begins_and_goes_on(clean: Server, tmp_path: Path, spec: StudySpec) -> None:
    folder = StudyFolder(tmp_path / "small")
    for expected in ([0, 1, 2], [3, 4]):
        with ExitStack() as stack:
            driver = Driver(clean.url, folder, spec, stack)
            assert [driver.train() for _ in expected] == expected
    with ExitStack() as stack:
        driver = Driver(clean.url, folder, spec, stack)
        begun = driver.engine.next_task()
        assert isinstance(begun, Task)
    with ExitStack() as stack:
        driver = Driver(clean.url, folder, spec, stack)
        again = driver.engine.next_task()
        assert isinstance(again, Task)
        assert again.config == begun.config
        assert [trial.state for trial in driver.study.get_trials()][:5] == [COMPLETE] * 5
    assert read_json(folder.study)["storage"] == f"postgresql://{clean.path}/lab"
    assert not folder.journal.exists()
    assert SECRET not in texts(folder.path)
    assert QUOTED not in texts(folder.path)


def test_it_proposes_what_the_journal_proposes(clean: Server, tmp_path: Path, spec: StudySpec) -> None:
    params = []
    for url in (clean.url, None):
        folder = StudyFolder(tmp_path / str(url is None) / "small")
        with ExitStack() as stack:
            driver = Driver(url, folder, spec, stack)
            assert [driver.train() for _ in range(12)] == list(range(12))
        params.append([trial.config.params for trial in StudyReader(folder).read().trials])
    assert params[0] == params[1]


def test_a_second_driver_is_refused_for_as_long_as_the_first_lives(
    clean: Server, tmp_path: Path, spec: StudySpec, stack: ExitStack
) -> None:
    folder, other = StudyFolder(tmp_path / "small"), StudyFolder(tmp_path / "elsewhere" / "small")
    first = ExitStack()
    Driver(clean.url, folder, spec, first)
    for second in (folder, other):
        with pytest.raises(
            UserError, match=r"study small in postgresql://\S+ is being searched already \(process \d+ on "
        ):
            Driver(clean.url, second, spec, stack)
    first.close()
    with pytest.raises(UserError, match="holds another study small, of the folder .*give this study a name of its own"):
        Driver(clean.url, other, spec, stack)
    assert not other.study.exists(), "what cannot begin leaves no study behind"
    Driver(clean.url, folder, spec, stack)


@pytest.mark.parametrize("host", ["elsewhere", platform.node()])  # one of this machine is refused: the broken twin
def test_the_lock_of_a_driver_whose_machine_vanished_is_waited_for(
    host: str, clean: Server, tmp_path: Path, spec: StudySpec, stack: ExitStack
) -> None:
    """The server keeps its connection until it has been silent for 25 s; here for 4."""
    folder = StudyFolder(tmp_path / "small")
    with ExitStack() as first:
        Driver(clean.url, folder, spec, first)
    gone = psycopg2.connect(clean.url, application_name=f"equitune process 7 on {host}")
    gone.cursor().execute("SELECT pg_advisory_lock(%s)", (_key(spec.study),))
    silent = threading.Timer(FIRST_PATIENCE_S + 2, gone.close)
    silent.start()
    if host != "elsewhere":
        with pytest.raises(UserError, match="searched already"):
            Driver(clean.url, folder, spec, stack)
    else:
        assert Driver(clean.url, folder, spec, stack).train() == 0
    silent.join()


def test_two_studies_share_a_database_and_begin_it_together(
    clean: Server, tmp_path: Path, study_file: Callable[..., Path]
) -> None:
    """Both find no tables and make them; without the lock around that one of them fails."""
    failed: list[Exception] = []

    def begin_one(name: str) -> None:
        try:
            with ExitStack() as stack:
                driver = Driver(clean.url, StudyFolder(tmp_path / name), specs[name], stack)
                assert [driver.train() for _ in range(3)] == [0, 1, 2]
        except Exception as error:
            failed.append(error)

    specs = {name: load_study(study_file(), (f"study={name}",)) for name in ("one", "two", "three")}
    threads = [threading.Thread(target=begin_one, args=(name,)) for name in specs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []


@pytest.mark.parametrize("how", ["immediate", "fast"])
def test_a_restarted_server_is_waited_for(
    how: str, clean: Server, tmp_path: Path, spec: StudySpec, stack: ExitStack
) -> None:
    driver = Driver(clean.url, StudyFolder(tmp_path / "small"), spec, stack)
    assert driver.train() == 0
    clean.stop(how)
    starting = threading.Timer(2.0, clean.start)
    starting.start()
    assert driver.train() == 1
    starting.join()
    with pytest.raises(UserError, match="is being searched already"):  # the study is held again
        Driver(clean.url, StudyFolder(tmp_path / "elsewhere" / "small"), spec, stack)
    assert [driver.train() for _ in range(10)] == list(range(2, 12))


def test_connections_that_break_within_a_call_change_nothing(
    clean: Server, tmp_path: Path, spec: StudySpec, stack: ExitStack
) -> None:
    """Somebody ends every connection of the driver all the time; what is proposed and told stays as it was."""
    quiet = StudyFolder(tmp_path / "quiet" / "small")
    with ExitStack() as own:
        driver = Driver(None, quiet, spec, own)
        assert [driver.train() for _ in range(12)] == list(range(12))
    over, ended = threading.Event(), []

    def disturb() -> None:
        while not over.wait(0.11):
            ended.extend(clean.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'lab'"))

    folder = StudyFolder(tmp_path / "small")
    driver = Driver(clean.url, folder, spec, stack)
    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        assert [driver.train() for _ in range(12)] == list(range(12))
    finally:
        over.set()
        thread.join()
    assert len(ended) >= 3
    told = [(trial.state, trial.values) for trial in driver.study.get_trials()]
    assert [state for state, _ in told] == [COMPLETE] * 12
    params = [[trial.config.params for trial in StudyReader(each).read().trials] for each in (quiet, folder)]
    assert params[0] == params[1]


def test_a_trial_that_was_made_although_nobody_heard_of_it_is_found(
    clean: Server, tmp_path: Path, spec: StudySpec, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks between the server's commit and its answer; the broken twin makes the trial twice."""
    import sqlalchemy.exc

    driver = Driver(clean.url, StudyFolder(tmp_path / "small"), spec, stack)
    make, broke = optuna.storages.RDBStorage._create_new_trial, list[int]()

    def breaks(self: HeldStorage, *args: object) -> object:
        trial = make(self, *args)  # type: ignore[arg-type]
        if not broke:
            broke.append(trial.number)
            raise sqlalchemy.exc.OperationalError("COMMIT", {}, Exception("gone"))
        return trial

    monkeypatch.setattr(optuna.storages.RDBStorage, "_create_new_trial", breaks)
    assert [driver.train() for _ in range(3)] == [0, 1, 2]
    assert broke == [0]
    assert len(driver.study.get_trials()) == 3


def test_a_server_that_stays_away_halts_the_study_and_loses_nothing(
    clean: Server, tmp_path: Path, spec: StudySpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("equitune.search.postgres.PATIENCE_S", 1.0)
    folder = StudyFolder(tmp_path / "small")
    with ExitStack() as stack:
        driver = Driver(clean.url, folder, spec, stack)
        searcher = StudySearcher(driver.engine)
        number = searcher.suggest("a")["number"]
        clean.stop()
        try:
            result = outcome(number)
            write_json(folder.trial(number).result, result.model_dump(mode="json"))
            searcher.on_trial_result("a", {"result": result.model_dump_json()})
            assert driver.engine.halted is not None
            assert f"postgresql://{clean.path}/lab does not answer" in driver.engine.halted
            assert searcher.suggest("b") == "FINISHED"
        finally:
            clean.start()
    with ExitStack() as stack:
        assert Driver(clean.url, folder, spec, stack).study.get_trials()[0].state == COMPLETE


def test_who_wants_an_end_waits_for_no_server(clean: Server, tmp_path: Path, spec: StudySpec, stack: ExitStack) -> None:
    driver = Driver(clean.url, StudyFolder(tmp_path / "small"), spec, stack)
    assert driver.storage is not None
    driver.storage.connector.give_up = lambda: True
    clean.stop()
    try:
        began = time.monotonic()
        with pytest.raises(UserError, match="does not answer"):
            driver.engine.next_task()
        assert time.monotonic() - began < 10
    finally:
        clean.start()


def test_a_database_that_lost_the_study_gets_it_back(clean: Server, tmp_path: Path, spec: StudySpec) -> None:
    folder = StudyFolder(tmp_path / "small")
    with ExitStack() as stack:
        driver = Driver(clean.url, folder, spec, stack)
        assert [driver.train() for _ in range(4)] == [0, 1, 2, 3]
        driver.engine.next_task()
        before = driver.study.get_trials()
    clean.sql("DROP DATABASE lab WITH (FORCE)", "CREATE DATABASE lab OWNER lab")
    with ExitStack() as stack:
        driver = Driver(clean.url, folder, spec, stack)
        assert "lacks 5 of 5 trials: restored from their folders" in driver.said[0]
        again = driver.study.get_trials()
        assert [(t.state, t.params, t.values) for t in again] == [(t.state, t.params, t.values) for t in before]


def test_another_storage_is_refused(clean: Server, tmp_path: Path, spec: StudySpec, stack: ExitStack) -> None:
    kept, moved = StudyFolder(tmp_path / "a" / "small"), StudyFolder(tmp_path / "b" / "small")
    with ExitStack() as own:
        Driver(None, kept, spec, own)
        Driver(clean.url, moved, spec, own)
    with pytest.raises(UserError, match=r"lies in .*study\.journal: go on without --storage"):
        Driver(clean.url, kept, spec, stack)
    with pytest.raises(UserError, match=r"lies in postgresql://\S+/lab: go on with --storage"):
        Driver(None, moved, spec, stack)
    clean.sql("DROP DATABASE IF EXISTS other", "CREATE DATABASE other OWNER lab")
    with pytest.raises(UserError, match=r"lies in postgresql://\S+/lab, and postgresql://\S+/other does not hold it"):
        Driver(clean.url.replace("/lab?", "/other?"), moved, spec, stack)
    clean.sql("DROP DATABASE other", "ALTER DATABASE lab RENAME TO other", "CREATE DATABASE lab OWNER lab")
    Driver(
        clean.url.replace("/lab?", "/other?"), moved, spec, stack
    )  # the database got another name: it holds the study
    assert read_json(moved.study)["storage"].endswith("/other")
    stack.close()
    clean.sql("DROP DATABASE other")


def test_the_password_comes_from_the_environment_or_a_file(
    clean: Server, tmp_path: Path, spec: StudySpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="does not answer: .*no password supplied"), ExitStack() as stack:
        Driver(clean.without_password, StudyFolder(tmp_path / "none" / "small"), spec, stack)
    passwords = tmp_path / "pgpass"
    passwords.write_text(f"*:*:lab:lab:{SECRET}\n")
    passwords.chmod(0o600)
    for variable, value in (("PGPASSWORD", SECRET), ("PGPASSFILE", str(passwords))):
        monkeypatch.setenv(variable, value)
        with ExitStack() as stack:
            Driver(clean.without_password, StudyFolder(tmp_path / "small"), spec, stack)
        monkeypatch.delenv(variable)


BAD = {
    f"postgresql://lab:{QUOTED}x@127.0.0.1:1/lab": "postgresql://127.0.0.1:1/lab does not answer: .*Connection refused",
    f"postgresql://lab:{QUOTED}@no-such-host.invalid/lab": r"postgresql://no-such-host.invalid/lab does not answer",
    f"postgresql://lab:{QUOTED}x@/lab?host=PATH": "does not answer: .*password authentication failed",
    f"postgresql://lab:{QUOTED}@/nothing?host=PATH": 'does not answer: .*database "nothing" does not exist',
    f"postgresql://lab:{QUOTED}@/lab?host=PATH&foo=1": 'cannot hold a study: .*invalid URI query parameter: "foo"',
    f"postgresql://lab:{SECRET}@127.0.0.1/lab": "the address cannot be read: .*are written as %40",
    f"postgresql://lab:{SECRET.replace('@', '#')}@127.0.0.1/lab": "the address cannot be read",
    "postgresql://lab:12/p@127.0.0.1/lab": "the address cannot be read",
    f"postgresql://lab:{QUOTED}@127.0.0.1:port/lab": "the address cannot be read",
    f"postgresql://lab:{QUOTED}%zz@127.0.0.1/lab": "cannot hold a study: invalid dsn: invalid percent-encoded token",
    f"postgresql+asyncpg://lab:{QUOTED}@127.0.0.1/lab": "psycopg2 is its driver.*got driver postgresql\\+asyncpg",
    f"postgersql://lab:{QUOTED}@127.0.0.1/lab": "is what is taken .*got driver postgersql",
    f"mysql://lab:{QUOTED}@127.0.0.1/lab": "is what is taken .*got driver mysql",
    "sqlite:///study.db": "sqlite is not taken, since its locks fail on network file systems",
    SECRET: "is what is taken .*got no driver",
    f"{SECRET}://x": "is what is taken .*got no driver",
}


@pytest.mark.parametrize("url", BAD)
def test_a_bad_address_is_one_sentence_without_its_password(
    url: str, database: Server, tmp_path: Path, spec: StudySpec, stack: ExitStack
) -> None:
    began, folder = time.monotonic(), StudyFolder(tmp_path / "small")
    with pytest.raises(UserError, match=BAD[url]) as caught:
        Driver(url.replace("PATH", str(database.path)), folder, spec, stack)
    said = str(caught.value)
    assert time.monotonic() - began < 10
    assert "\n" not in said
    for secret in (SECRET, QUOTED, "s3cr3t", "ss@", "12/p"):
        assert secret not in said
    assert not folder.study.exists()


def test_a_server_that_says_nothing_is_given_up_in_seconds(tmp_path: Path, spec: StudySpec, stack: ExitStack) -> None:
    """It takes the connection and is silent, as a firewall or another program does."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        url = f"postgresql://lab@127.0.0.1:{silent.getsockname()[1]}/lab?connect_timeout=2"
        with pytest.raises(UserError, match="does not answer: .*timeout expired"):
            Driver(url, StudyFolder(tmp_path / "small"), spec, stack)
        assert time.monotonic() - began < 8


def test_a_missing_driver_is_named(
    tmp_path: Path, spec: StudySpec, monkeypatch: pytest.MonkeyPatch, stack: ExitStack
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "psycopg2", None)
    with pytest.raises(UserError, match=r"pip install 'equitune\[postgres\]'"):
        Driver("postgresql://lab@127.0.0.1/lab", StudyFolder(tmp_path / "small"), spec, stack)


def test_a_role_that_may_not_make_tables_is_told(
    clean: Server, tmp_path: Path, spec: StudySpec, stack: ExitStack
) -> None:
    clean.sql("ALTER DATABASE lab OWNER TO postgres")
    with pytest.raises(UserError, match="cannot hold a study: .*permission denied for schema public"):
        Driver(clean.url, StudyFolder(tmp_path / "small"), spec, stack)


def test_a_grid_lies_in_a_database_too(
    clean: Server, tmp_path: Path, study_file: Callable[..., Path], stack: ExitStack
) -> None:
    grid = load_study(study_file(), GRID)
    driver = Driver(clean.url, StudyFolder(tmp_path / "small"), grid, stack)
    assert [driver.train() for _ in range(15)] == list(range(15))
    assert [trial.config.params for trial in StudyReader(driver.folder).read().trials] == grid.cells * 3


def test_a_study_begins_warmly_and_is_extended_as_with_the_journal(
    clean: Server, tmp_path: Path, study_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four trials are brought, three are its own and one runs; then the space is wider, at the second try."""
    few = load_study(study_file(), ("search.trials=3", "search.sampler=tpe"))
    wider = load_study(study_file(), ("search.trials=9", "search.sampler=tpe", "model.width={int: [2, 9]}"))
    other = load_study(study_file(), ("study=other", "search.trials=4", "search.sampler=random"))
    started = {"imported": 4, "warm_start": {"studies": ["other"], "trials": [f"other/{n}" for n in range(4)]}}
    told, add_trial = [], optuna.Study.add_trial

    def dies(self: optuna.Study, trial: Any) -> None:
        if trial.number == 5:
            raise KeyboardInterrupt
        add_trial(self, trial)

    for url in (clean.url, None):
        root = tmp_path / str(url is None)
        folder = StudyFolder(root / "small")
        with ExitStack() as stack:
            source = Driver(None, StudyFolder(root / "other"), other, stack)
            assert [source.train() for _ in range(4)] == [0, 1, 2, 3]
            driver = Driver(url, folder, few, stack, started)
            assert [driver.train() for _ in range(2)] == [4, 5]
            begun = driver.engine.next_task()
            assert isinstance(begun, Task)
        monkeypatch.setattr(optuna.Study, "add_trial", dies)
        with pytest.raises(KeyboardInterrupt), ExitStack() as stack:
            Driver(url, folder, wider, stack)
        monkeypatch.undo()
        for expected in ([6, 7], [8, 9, 10, 11, 12]):  # the one that ran goes first
            with ExitStack() as stack:
                driver = Driver(url, folder, wider, stack)
                assert driver.study.study_name == "small, extended 1"
                assert [driver.train() for _ in expected] == expected
        assert not driver.engine.has_trials_left()
        told.append([(trial.state, trial.values, trial.params) for trial in driver.study.get_trials()])
        assert [trial.config.params for trial in StudyReader(folder).read().trials] == [
            params for *_, params in told[-1]
        ]
    assert told[0] == told[1]
    assert any(params["model.width"] > 4 for *_, params in told[0])


def test_a_failed_cell_of_a_design_in_a_database_is_trained_again(
    clean: Server, tmp_path: Path, study_file: Callable[..., Path]
) -> None:
    """The driver dies between the second trial's record, which says that it failed, and the telling."""
    grid, folder = load_study(study_file(), GRID), StudyFolder(tmp_path / "small")
    with ExitStack() as stack:
        driver = Driver(clean.url, folder, grid, stack)
        assert driver.train() == 0
        failing = driver.engine.next_task()
        assert isinstance(failing, Task)
        write_json(failing.folder.result, outcome(1, "FAILED", reason="ValueError: x").model_dump(mode="json"))
    with ExitStack() as stack:
        driver = Driver(clean.url, folder, grid, stack)
        trained = [driver.train() for _ in range(14)]
        assert trained == list(range(2, 16))
        assert not driver.engine.has_trials_left()
        assert driver.engine.ended_by() == "trials: 15 of 15"
    counted = StudyReader(folder).read().counted()
    assert sorted(trial.cell for trial in counted) == list(range(15))
    assert {trial.state for trial in counted} == {"COMPLETE"}

"""Where the search is stored: whatever a journal loses, the trials' folders bring back; addresses of databases."""

import json
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from postgres import QUOTED, SECRET
from test_searcher import COMPLETE, FAIL, GRID, PRUNED, RUNNING, finish, open_searcher, outcome, play, states

from equitune.config.load import load_study
from equitune.config.study import StudySpec
from equitune.errors import UserError
from equitune.records.folder import StudyFolder
from equitune.records.reader import StudyReader
from equitune.search.postgres import parse, typed
from equitune.search.storage import open_storage
from equitune.search.study_record import begin

BRANCHES = ("model={choose: {cnn: {width: {int: [2, 4]}}, resnet: {depth: 8, width: {choice: [2, 4]}}}}",)


@pytest.fixture
def spec(study_file: Callable[..., Path]) -> StudySpec:
    return load_study(study_file(), (*BRANCHES, "search.trials=12"))


@pytest.fixture
def folder(tmp_path: Path, spec: StudySpec) -> StudyFolder:
    study = StudyFolder(tmp_path / "small")
    study.path.mkdir()
    begin(study, spec, None, ())
    return study


@pytest.fixture
def mixed(folder: StudyFolder, spec: StudySpec) -> list[optuna.trial.FrozenTrial]:
    """A study whose trials 0 to 4 ended, each in its own way, and 5 and 6 run; as Optuna knows it."""
    searcher = open_searcher(folder, spec)
    for number in range(7):
        searcher.suggest(str(number))
    for number, result in enumerate(
        [outcome(0), outcome(1, "INFEASIBLE", reason="diverged: ..."), outcome(2, "FAILED", reason="x"),
         outcome(3, error=None), outcome(4, accuracy=0.7)]
    ):  # fmt: skip
        finish(searcher, folder, str(number), result)
    assert states(folder, spec) == [COMPLETE, PRUNED, FAIL, PRUNED, COMPLETE, RUNNING, RUNNING]
    return open_storage(folder, spec).get_trials()


def facts(trial: optuna.trial.FrozenTrial) -> tuple[object, ...]:
    """What of a trial a sampler reads."""
    return trial.number, trial.state, trial.params, trial.distributions, trial.values, trial.system_attrs


def cut_lines(data: bytes, keep: float) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"".join(lines[: int(len(lines) * keep)])


BREAKS: dict[str, Callable[[bytes], bytes]] = {
    "missing": lambda data: b"",
    "torn": lambda data: data[:-9],
    "garbage in the middle": lambda data: data[: len(data) // 2] + b"\nno line of a journal\n" + data[len(data) // 2 :],
    "zeros at the end": lambda data: data[:-200] + b"\0" * 200,
    "zeros within": lambda data: data[:900] + b"\0" * 300 + data[1200:],
    "another operation": lambda data: data + b'{"op_code": 77, "worker_id": "x"}\n',
    "no object": lambda data: data + b'"text"\n',
    "nine tenths": lambda data: cut_lines(data, 0.9),
    "half": lambda data: cut_lines(data, 0.5),
    "its first line": lambda data: cut_lines(data, 0.02),
}


@pytest.mark.parametrize("how", BREAKS)
def test_a_broken_journal_loses_nothing_and_says_so(
    how: str, mixed: list[optuna.trial.FrozenTrial], folder: StudyFolder, spec: StudySpec
) -> None:
    from equitune.search.engine import Engine

    before = folder.journal.read_bytes()
    broken = BREAKS[how](before)
    if broken:
        folder.journal.write_bytes(broken)
    else:
        folder.journal.unlink()
    said: list[str] = []
    engine = Engine(spec, folder, open_storage(folder, spec, say=said.append))
    again = open_storage(folder, spec, say=said.append).get_trials()
    assert [facts(trial) for trial in again] == [facts(trial) for trial in mixed]
    assert said or how == "nine tenths"  # which only lacks what was told, as a kill before the telling leaves it
    kept = list(folder.path.glob("study.journal.broken*"))
    assert bool(kept) == any("is damaged" in line for line in said)
    assert all(path.read_bytes() == broken for path in kept)
    tasks = [engine.next_task() for _ in range(3)]
    assert [task.number for task in tasks if not isinstance(task, str)] == [5, 6, 7]


def test_a_whole_journal_is_left_alone(
    mixed: list[optuna.trial.FrozenTrial], folder: StudyFolder, spec: StudySpec
) -> None:
    before, said = folder.journal.read_bytes(), list[str]()
    open_storage(folder, spec, say=said.append)
    added = folder.journal.read_bytes().removeprefix(before)
    assert [json.loads(line)["op_code"] for line in added.splitlines()] == [0]  # Optuna asks for the study by making it
    assert said == []


def test_a_begun_trial_gets_the_parameters_that_its_folder_knows(folder: StudyFolder, spec: StudySpec) -> None:
    """The journal was cut between a trial and its parameters: what would be sampled now depends on other results."""
    first = open_searcher(folder, spec).suggest("a")
    lines = folder.journal.read_bytes().splitlines(keepends=True)
    folder.journal.write_bytes(b"".join(line for line in lines if json.loads(line)["op_code"] != 5))
    recorded = json.loads(first["trial"])["params"]
    assert open_storage(folder, spec).get_trials()[0].params == recorded


def test_a_search_that_loses_its_journal_again_and_again_proposes_the_same(
    tmp_path: Path, spec: StudySpec, folder: StudyFolder
) -> None:
    """The broken twin of the restoring, a journal begun anew, proposes its first points again."""
    undisturbed = play(folder, spec, lambda call: False)
    other = StudyFolder(tmp_path / "other" / "small")
    other.path.mkdir(parents=True)
    begin(other, spec, None, ())

    def loses(call: int) -> bool:
        if call % 4 == 0:
            other.journal.unlink()
        return call % 4 == 0

    assert play(other, spec, loses) == undisturbed
    assert states(other, spec) == [COMPLETE] * 12


def test_a_gap_among_the_folders_is_sampled_again(
    mixed: list[optuna.trial.FrozenTrial], folder: StudyFolder, spec: StudySpec
) -> None:
    folder.journal.unlink()
    folder.trial(5).config.unlink()
    searcher = open_searcher(folder, spec)
    assert [searcher.suggest(name)["number"] for name in "abc"] == [5, 6, 7]
    assert StudyReader(folder).read().trials[5].config.params


@pytest.mark.parametrize("broken", [None, 0.5, 0.9])
def test_a_design_whose_failed_cells_ran_again_keeps_each_trials_cell(
    broken: float | None, tmp_path: Path, study_file: Callable[..., Path]
) -> None:
    """There a trial's number is not its cell."""
    spec, folder = load_study(study_file(), GRID), StudyFolder(tmp_path / "grid" / "small")
    folder.path.mkdir(parents=True)
    begin(folder, spec, None, ())
    for number in range(3):
        searcher = open_searcher(folder, spec)
        searcher.suggest("a")
        finish(searcher, folder, "a", outcome(number, "FAILED", reason="x"))
    searcher = open_searcher(folder, spec)
    for name in "abcd":
        searcher.suggest(name)
    before = [(trial.params, trial.user_attrs) for trial in open_storage(folder, spec).get_trials()]
    if broken is None:
        folder.journal.unlink()
    else:
        folder.journal.write_bytes(cut_lines(folder.journal.read_bytes(), broken))
    open_searcher(folder, spec)
    assert [(trial.params, trial.user_attrs) for trial in open_storage(folder, spec).get_trials()] == before
    assert [trial.config.cell for trial in StudyReader(folder).read().trials] == [attrs["cell"] for _, attrs in before]


def test_a_file_system_without_symbolic_links_has_its_journal(
    folder: StudyFolder, spec: StudySpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: object, **kwargs: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.symlink", refused)
    monkeypatch.setattr("pathlib.Path.symlink_to", refused)
    searcher = open_searcher(folder, spec)
    searcher.suggest("a")
    finish(searcher, folder, "a", outcome(0))
    assert states(folder, spec) == [COMPLETE]


def test_a_password_on_the_command_line_is_refused() -> None:
    assert typed("postgresql://lab@host/lab") == "postgresql://lab@host/lab"
    for url in (f"postgresql://lab:{QUOTED}@host/lab", f"postgresql://lab@host/lab?password={QUOTED}"):
        with pytest.raises(UserError, match="give it as PGPASSWORD") as caught:
            typed(url)
        assert "s3cr3t" not in str(caught.value)


def test_an_address_shows_no_secret() -> None:
    address = parse(f"postgres://lab:{QUOTED}@db.example:5433/lab?sslmode=require")
    assert address.name == "postgresql://db.example:5433/lab"
    assert "s3cr3t" not in repr(address)
    assert address.cleaned(ValueError(f'wrong "{SECRET}", {QUOTED}\nmore')) == 'wrong "***", ***'

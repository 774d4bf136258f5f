"""Records that are damaged, lost or altered: seen, named, and made again; no traceback, and nothing else is hidden."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from equitune import catalog
from equitune.cli import cli
from equitune.config.load import load_study
from equitune.config.study import StudySpec
from equitune.errors import UserError
from equitune.records.folder import StudyFolder, write_json
from equitune.records.reader import StudyReader
from equitune.results.values import TrialResult
from equitune.search.engine import Engine, Task
from equitune.search.storage import open_storage
from equitune.search.study_record import begin, is_finished, record_end, require_same_search

STUDIES = Path(__file__).parent / "data" / "studies"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two complete studies, of which one will be damaged."""
    root = tmp_path / "studies"
    for name in ("complete", "replicates"):
        shutil.copytree(STUDIES / name, root / name)
    return root


def opened(root: Path, name: str = "complete") -> tuple[StudySpec, StudyFolder, Engine, list[str]]:
    """A study that is gone on with, and what it says."""
    folder, said = StudyFolder(root / name), list[str]()
    spec = load_study(folder.searchspace, ())
    begin(folder, spec, None, ())
    return spec, folder, Engine(spec, folder, open_storage(folder, spec, say=said.append), said.append), said


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli, arguments, catch_exceptions=False)


def replace(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    path.write_text(text)


def folder_instead(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def loop(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "empty": lambda path: replace(path, ""),
    "torn": lambda path: path.write_bytes(path.read_bytes()[:-9] if path.exists() else b"{"),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe\x80{"),
    "a list": lambda path: replace(path, "[]"),
    "null": lambda path: replace(path, "null"),
    "a text": lambda path: replace(path, '"x"'),
    "no key": lambda path: replace(path, "{}"),
    "another key": lambda path: replace(path, '{"bogus": {"value": 1}}'),
    "deep": lambda path: replace(path, "[" * 100_000),
    "a folder": folder_instead,
    "a pipe": pipe,
    "a link to itself": loop,
}


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("file", ["config.json", "result.json", "test.json", "epochs.jsonl"])
def test_one_damaged_file_hides_nothing_else(how: str, file: str, root: Path, tmp_path: Path) -> None:
    path = root / "complete" / "trials" / "00003" / file
    DAMAGES[how](path)
    is_said = file != "epochs.jsonl" or how in ("a folder", "a pipe", "a link to itself")  # of which lines are skipped
    is_said = is_said and not (file == "test.json" and how == "no key")  # nothing was measured
    for command in (
        ["show"],
        ["show", "--json"],
        ["analyze"],
        ["export", "--force", "--output", str(tmp_path / "out")],
    ):
        result = run(command[0], "complete", *command[1:], "--root", str(root))
        assert result.exit_code == 0, result.output
        assert (str(path) in result.output.replace("\n", "")) == is_said
        assert "remove it" not in result.output
    shown = json.loads(run("show", "complete", "--json", "--root", str(root)).stdout)
    numbers = [trial["number"] for trial in shown["trials"]]
    assert numbers == ([0, 1, 2, 4] if file in ("config.json", "result.json") else [0, 1, 2, 3, 4])
    assert (shown["state"], len(shown["damaged"])) == (("interrupted", 1) if is_said else ("complete", 0))
    listed = {study["study"]: study for study in json.loads(run("list", "--json", "--root", str(root)).stdout)}
    assert (listed["replicates"]["state"], listed["complete"]["ended"]) == ("complete", len(numbers))


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_study_hides_no_other(how: str, root: Path) -> None:
    path = root / "complete" / "study.json"
    DAMAGES[how](path)
    for command in ("show", "analyze", "export", "report"):
        with pytest.raises(UserError, match=r"study\.json is damaged"):  # which is code 2, and one sentence
            run(command, "complete", "--root", str(root))
    listed = {study["study"]: study for study in json.loads(run("list", "--json", "--root", str(root)).stdout)}
    assert (listed["complete"]["state"], listed["replicates"]["state"]) == ("unreadable", "complete")
    assert "study.json is damaged" in listed["complete"]["reason"]


def test_what_else_lies_under_the_root_hides_no_study(root: Path) -> None:
    loop(root / "x")
    shutil.rmtree(root / "complete" / "trials")
    listed = {study["study"]: study["state"] for study in json.loads(run("list", "--json", "--root", str(root)).stdout)}
    assert listed == {"x": "unreadable", "complete": "interrupted", "replicates": "complete"}
    assert run("export", "complete", "--root", str(root), "--output", str(root.parent / "out")).exit_code == 0


@pytest.mark.parametrize("file", ["study.json", "trials/00003/config.json", "trials/00003/result.json"])
def test_what_a_newer_version_wrote_is_said_and_left_alone(file: str, root: Path) -> None:
    path = root / "complete" / file
    text = json.dumps(json.loads(path.read_text()) | {"format": 99, "later": 1})
    path.write_text(text)
    sentence = r"was written by a newer equitune \(format 99, this one reads up to 2\): upgrade equitune"
    with pytest.raises(UserError, match=sentence):
        run("show", "complete", "--root", str(root))
    with pytest.raises(UserError, match=sentence):
        opened(root)
    assert path.read_text() == text


def lose(root: Path, what: str) -> None:
    """Trial 3 of `complete` loses something."""
    trial = root / "complete" / "trials" / "00003"
    if what == "its folder":
        shutil.rmtree(trial)
    elif what == "altered":
        path = trial / "result.json"
        record = json.loads(path.read_text())
        record["metrics"]["accuracy"]["value"] = 0.999
        path.write_text(json.dumps(record))
    elif what == "other parameters":
        path = trial / "config.json"
        path.write_text(path.read_text().replace('"model.width": 3', '"model.width": 4'))
    elif what == "test.json and weights":
        (trial / "test.json").write_text("{")
        (trial / "weights.safetensors").unlink()
    elif what.startswith("torn "):
        (trial / what[5:]).write_text("{")
    else:
        (trial / what).unlink()


LOSSES = ["result.json", "torn result.json", "its folder", "altered", "test.json and weights"]


@pytest.mark.parametrize("what", [*LOSSES, "config.json", "torn config.json", "other parameters", "torn test.json"])
def test_a_lost_record_is_missed_said_and_made_again(what: str, root: Path) -> None:
    before = StudyReader(StudyFolder(root / "complete")).read()
    kept = {path.name: path.read_bytes() for path in (root / "complete" / "trials" / "00003").iterdir()}
    lose(root, what)
    spec, folder, engine, said = opened(root)
    assert not is_finished(folder, spec)
    assert len(said) == 1
    assert said[0].startswith("trial 3: ")
    told = engine._study.get_trials()
    if what in LOSSES:
        assert said[0].endswith("trained again under its number")
        task = engine.next_task()
        assert isinstance(task, Task)
        assert task.config == before.trials[3].config
        task.folder.result.write_bytes(kept["result.json"])  # as a worker does: the same numbers again
        engine.ended(3, TrialResult.model_validate_json(kept["result.json"]))
    if not folder.trial(3).test.exists():
        task = engine.next_task()
        assert isinstance(task, Task)
        assert (task.number, task.config) == (3, None)
        engine.tested(3, before.trials[3].test)
    assert engine.is_done()
    assert [(trial.state, trial.values) for trial in engine._study.get_trials()] == [
        (trial.state, trial.values) for trial in told
    ]
    record_end(folder, engine)
    after = StudyReader(folder).read()
    assert (after.state, len(after.trials)) == ("complete", 5)
    assert is_finished(folder, spec)
    for then, now in zip(before.trials, after.trials, strict=True):
        assert (then.config, then.result, then.test) == (now.config, now.result, now.test)
    if what.startswith("torn") or what == "altered":
        assert list(folder.trial(3).path.glob("*.broken"))


def test_other_numbers_than_before_are_said_once_and_stay(root: Path) -> None:
    kept = json.loads((root / "complete/trials/00003/result.json").read_text())
    lose(root, "result.json")
    _, folder, engine, said = opened(root)
    task = engine.next_task()
    assert isinstance(task, Task)
    kept["metrics"]["accuracy"]["value"] = 0.25
    write_json(task.folder.result, kept)
    engine.ended(3, TrialResult.model_validate_json(json.dumps(kept)))
    assert "was trained again, and its accuracy is 0.25, but the search was told" in said[-1]
    assert engine._study.get_trials()[3].values[0] != 0.25
    _, _, engine, said = opened(root)
    assert said == []
    assert StudyReader(folder).read().trials[3].metrics["accuracy"].value == 0.25


def test_a_result_of_a_trial_that_runs_is_not_told_where_it_is_torn(root: Path) -> None:
    shutil.copytree(STUDIES / "interrupted", root / "interrupted")
    (root / "interrupted/trials/00002/result.json").write_text("{")
    _, folder, engine, said = opened(root, "interrupted")
    task = engine.next_task()
    assert isinstance(task, Task)
    assert (task.number, len(said)) == (2, 1)
    assert (folder.trial(2).path / "result.json.broken").exists()


def changed(monkeypatch: pytest.MonkeyPatch, **defaults: Any) -> None:
    """The measure `equivariance` with other defaults, or further arguments."""
    real = catalog.describe

    def describe(kind: str, name: str) -> catalog.Component:
        component = real(kind, name)
        if name == "equivariance":
            more = {key: (int, value) for key, value in defaults.items()}
            return catalog.Component(**{**vars(component), "parameters": component.parameters | more})
        return component

    monkeypatch.setattr(catalog, "describe", describe)
    catalog.arguments.cache_clear()


@pytest.fixture
def catalogue(monkeypatch: pytest.MonkeyPatch) -> Any:
    yield monkeypatch
    monkeypatch.undo()
    catalog.arguments.cache_clear()


def test_a_new_optional_setting_shuts_out_no_study(root: Path, catalogue: pytest.MonkeyPatch) -> None:
    folder = StudyFolder(root / "complete")
    fingerprint = load_study(folder.searchspace, ()).fingerprint()
    changed(catalogue, later=3)
    spec = load_study(folder.searchspace, ())
    assert spec.identity()["measures"][0]["args"]["later"] == 3
    assert spec.fingerprint() == fingerprint
    require_same_search(folder, spec)


def test_another_default_is_another_search(root: Path, catalogue: pytest.MonkeyPatch) -> None:
    folder = StudyFolder(root / "complete")
    changed(catalogue, lattice_px=2)
    with pytest.raises(UserError, match=r"measures\.equivariance\.lattice_px was 0, is 2"):
        require_same_search(folder, load_study(folder.searchspace, ()))


def test_another_default_of_what_the_file_does_not_name_is_refused(root: Path) -> None:
    spec, folder, _, _ = opened(root, "replicates")
    (folder.study).unlink()
    begin(folder, spec, None, ())
    record = json.loads(folder.study.read_text())
    assert record["defaults"]["training.optimizer"] == "adamw"
    assert "training.epochs" not in record["defaults"]
    record["defaults"]["training.optimizer"] = "sgd"
    write_json(folder.study, record)
    with pytest.raises(UserError, match=r"training\.optimizer \(a default\) was sgd, is adamw"):
        require_same_search(folder, spec)


def test_a_study_json_that_is_lost_keeps_its_runs(root: Path) -> None:
    folder = StudyFolder(root / "complete")
    write_json(folder.runs, {"format": 2, "study_id": "its own", "runs": {}})
    folder.study.unlink()
    opened(root)
    assert json.loads(folder.study.read_text())["id"] == "its own"

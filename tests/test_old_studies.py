"""Studies that earlier versions of the program have recorded are read, and go on: `tests/data/studies` has them."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from equitune.cli import cli
from equitune.config.load import load_study
from equitune.config.record import FORMAT
from equitune.records.folder import StudyFolder
from equitune.records.info import read_info
from equitune.records.reader import StudyReader
from equitune.search.engine import Engine, Task
from equitune.search.storage import open_storage
from equitune.search.study_record import begin, is_finished, record_end, require_same_search

STUDIES = Path(__file__).parent / "data" / "studies"
NAMES = sorted(path.name for path in STUDIES.iterdir() if path.is_dir())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return shutil.copytree(STUDIES, tmp_path / "studies")


def run(*arguments: str) -> str:
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_there_are_studies_of_several_kinds() -> None:
    assert NAMES == ["complete", "interrupted", "old", "replicates"]


@pytest.mark.parametrize("name", NAMES)
def test_every_reading_command_reads_what_was_recorded(name: str, root: Path, tmp_path: Path) -> None:
    """`NAME.show.json` is what the version that wrote it said."""
    said = json.loads(run("show", name, "--json", "--root", str(root)))
    before = json.loads((STUDIES / f"{name}.show.json").read_text())
    assert {key: said[key] for key in before} == before
    assert said["damaged"] == []
    for command in (["show", name], ["analyze", name], ["export", name, "--output", str(tmp_path / "out")]):
        run(*command, "--root", str(root))
    listed = {study["study"]: study for study in json.loads(run("list", "--json", "--root", str(root)))}
    assert (listed[name]["reason"], listed[name]["state"]) == (None, before["state"])


@pytest.mark.parametrize("name", NAMES)
def test_every_study_goes_on_where_it_was(name: str, root: Path) -> None:
    """The search takes the record for its own, tells nothing twice, and runs what had not ended alone."""
    folder = StudyFolder(root / name)
    spec, said = load_study(folder.searchspace, ()), list[str]()
    numbers = {trial.number: trial.metrics for trial in StudyReader(folder).read().ended()}
    require_same_search(folder, spec)
    assert not is_finished(folder, spec)  # the search's storage has yet to be asked
    begin(folder, spec, None, ())
    study = open_storage(folder, spec, say=said.append)
    told = [(trial.state, trial.values, trial.params) for trial in study.get_trials()]
    engine = Engine(spec, folder, study, said.append)
    assert said == []
    assert [(trial.state, trial.values, trial.params) for trial in study.get_trials()] == told
    if name == "interrupted":
        task = engine.next_task()
        assert isinstance(task, Task)
        assert task.config
        assert (task.number, len(task.folder.read_epochs())) == (2, 3)
    else:
        assert engine.is_done()
        record_end(folder, engine)
        assert is_finished(folder, spec)
    assert {trial.number: trial.metrics for trial in StudyReader(folder).read().ended()} == numbers
    assert json.loads(folder.study.read_text())["format"] == FORMAT


def test_a_larger_budget_goes_on_with_a_complete_one(root: Path) -> None:
    folder = StudyFolder(root / "complete")
    spec = load_study(folder.searchspace, ("search.trials=6",))
    require_same_search(folder, spec)
    begin(folder, spec, None, ())
    task = Engine(spec, folder, open_storage(folder, spec)).next_task()
    assert isinstance(task, Task)
    assert task.number == 5
    assert read_info(folder.study)["trials"] == 6

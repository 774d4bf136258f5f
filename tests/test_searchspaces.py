"""The studies that come with the project: each is checked, says its question and result, and takes other data."""

from pathlib import Path

import pytest

from equitune.config.load import load_study
from equitune.config.shipped import find_study_file, read_question, shipped_names
from equitune.errors import UserError

REPOSITORY = Path(__file__).parent.parent
FILES = sorted((REPOSITORY / "searchspaces").rglob("*.yaml"))
ON_DIGITS = [file for file in FILES if file.parent.name == "searchspaces"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_study_opens_with_question_command_cost_and_result(file: Path) -> None:
    said = [line.removeprefix("# ") for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
    heads = [line.split(":")[0] for line in said if not line.startswith(" ")]
    assert heads == ["Question", "Command", "Cost", "Result"]
    assert f"equitune search {file.relative_to(REPOSITORY)}" in " ".join(said)
    spec = load_study(file, ())
    assert spec.parameters()
    assert file.parent.name != "searchspaces" or spec.data.name == "digits"


@pytest.mark.parametrize("file", ON_DIGITS, ids=lambda file: file.stem)
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_the_same_file_runs_on_other_data(file: Path, name: str) -> None:
    spec = load_study(file, (f"data.name={name}",))
    assert spec.data.name == name
    assert spec.fingerprint() != load_study(file, ()).fingerprint()


def test_every_question_of_the_sources_has_a_study() -> None:
    asked = {"ablation", "augmentation", "capacity", "depth_vs_width", "full", "priors", "relaxed", "subsampling"}
    assert {file.stem for file in ON_DIGITS} == asked


def test_a_study_that_comes_with_the_package_goes_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for file in FILES:
        name = file.relative_to(REPOSITORY / "searchspaces").with_suffix("")
        assert load_study(find_study_file(name), ()) == load_study(file, ())
    assert find_study_file(Path("capacity.yaml")) == Path("capacity.yaml")  # a file's name is a file's
    (tmp_path / "capacity").write_text("a file of one's own comes first")
    assert find_study_file(Path("capacity")) == Path("capacity")
    assert {read_question(name)[-1] for name in shipped_names()} == {"?"}


def test_an_unknown_name_is_answered_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="no such file: .* comes with equitune: .*capacity, .*reproduce/relaxing_turns"):
        load_study(find_study_file(Path("capacities")), ())

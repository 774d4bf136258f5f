"""The studies that come with the project: each is checked, says its question and result, and takes other data."""

from pathlib import Path

import pytest

from equitune.spec.load import load_study

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

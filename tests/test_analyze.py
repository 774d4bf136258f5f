"""`equitune analyze`: what it prints of studies with and without replicates, finished or not; and its JSON."""

import io
import json
import math
import re
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from invented import invent
from made import BOTH, made
from rich.console import Console

from equitune.cli import cli
from equitune.config.load import load_study
from equitune.config.study import StudySpec
from equitune.errors import UserError
from equitune.records.reader import StudyReader, StudyRecord
from equitune.report.analysis import as_json, lines


def text_of(study: StudyRecord, against: int = 0, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    for line in lines(study, against):
        console.print(line)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def factorial(replicates: int) -> StudyRecord:
    """Width raises accuracy and nothing else does anything; parameters follow from width."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "width": width,
            "depth": depth,
            "replicate": r,
            "accuracy": 0.5 + 0.02 * width + float(rng.normal(0, 0.01)),
            "translation_error": 0.3 + float(rng.normal(0, 0.01)),
            "parameters": 100.0 * width,
        }
        for r, width, depth in product(range(replicates), (4, 8), (8, 14))
    ]
    return made(rows, {**BOTH, "parameters": "minimize"}, varied=("width", "depth"))


@pytest.mark.parametrize("width", [80, 120])
def test_a_factorial_with_replicates(width: int) -> None:
    text = text_of(factorial(8), width=width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    for title in (
        "Hypervolume", "Effects of arms, beside arm 0: accuracy ↑", "Main effects of factors", "Interactions",
        "Importance", "Rank correlation with accuracy", "reference point, the worst of any complete trial: accuracy",
        "parameters: no matter of chance", "arm means over 8 replicates, validation split",
    ):  # fmt: skip
        assert title in text, title
    (main,) = [line for line in text[text.index("Main effects") :].splitlines() if line.startswith("width 4 → 8")][:1]
    assert main.split()[-1] == "yes"
    assert main.split()[-4:-1] == ["8", "0.008", "0.016"]
    (nothing,) = [line for line in text[text.index("Main effects") :].splitlines() if line.startswith("depth")][:1]
    assert nothing.split()[-1] == "no"


def test_too_few_replicates_for_a_test_are_said() -> None:
    text = " ".join(text_of(factorial(3)).split())
    assert (
        "3 replicates cannot bring p below 0.250, nor Holm's over 3 comparisons below 0.750: "
        "that 0.05 can be reached takes 7 replicates; go by the intervals"
    ) in text
    assert "cannot bring p below" not in text_of(factorial(8))


def test_another_baseline_and_one_that_does_not_exist() -> None:
    assert "Effects of arms, beside arm 2" in text_of(factorial(3), against=2)
    assert "width 8 → 4" in text_of(factorial(3), against=2)
    with pytest.raises(UserError, match="arms 0 to 3"):
        text_of(factorial(3), against=4)


@pytest.mark.parametrize("objectives", ["{accuracy: maximize}", "{accuracy: maximize, translation_error: minimize}"])
def test_a_study_without_replicates(objectives: str, tmp_path: Path, study_file: Callable[..., Path]) -> None:
    spec = load_study(study_file(), (f"objectives={objectives}",))
    study = StudyReader(invent(tmp_path / "small", spec, 6, states={1: "FAILED", 4: "RUNNING"})).read()
    text = text_of(study)
    assert "Front\n" in text
    assert "none: effects need replicates" in text
    assert "accuracy: not known: 4 trials have a value, and it takes 20" in text
    json.dumps(as_json(study), allow_nan=False)


def test_an_arm_without_a_value_is_kept_and_its_missing_pairs_are_said() -> None:
    study = factorial(3)
    for trial in study.trials[3::4]:
        trial.result.metrics.clear()  # type: ignore[union-attr]
    text = text_of(study)
    assert re.search(r"3: width 4 → 8, depth 8 → 14 +– +– 0 +– +– +–\n", text)
    assert "\n3 of 9 pairs lack a trial with a value" in text  # of every objective
    assert "nan" not in text


def test_one_arm_alone_has_no_effects() -> None:
    rows = [{"accuracy": 0.5 + 0.1 * r, "replicate": r} for r in range(3)]
    assert "none: there is one arm alone" in text_of(made(rows, {"accuracy": "maximize"}))


@pytest.mark.parametrize("rows", [[], [{"state": "FAILED"}], [{"state": "RUNNING"}], [{"accuracy": 0.5}]])
@pytest.mark.parametrize("replicates", [1, 3])
def test_a_study_without_a_finished_trial(rows: list[dict[str, object]], replicates: int) -> None:
    study = made(rows, BOTH, info={"replicates": replicates})
    assert text_of(study) == "no complete trial has a value of every objective: nothing to analyse yet\n"
    found = as_json(study)
    assert found["hypervolume"]["value"] is None
    json.dumps(found, allow_nan=False)


def test_the_json_holds_every_comparison_and_no_nan() -> None:
    study = factorial(3)
    study.trials[2].result.metrics.pop("accuracy")  # type: ignore[union-attr]
    found = json.loads(json.dumps(as_json(study), allow_nan=False))
    assert {key: len(found[key]) for key in ("effects", "factors", "interactions", "importance")} == {
        "effects": 9,
        "factors": 6,
        "interactions": 3,
        "importance": 3,
    }
    first = found["effects"][1]
    assert first["changes"] == [{"factor": "arm", "before": 0, "after": 2}]
    assert (first["effect"]["n"], first["pairs"], first["most_pairs"]) == (2, 2, 3)
    assert found["effects"][6]["effect"]["p"] is None  # parameters
    assert found["hypervolume"]["reference"]["given"] == []
    assert len(found["front_uncertainty"]["arms"]) == 4


def test_the_command(tmp_path: Path, small_spec: StudySpec, monkeypatch: pytest.MonkeyPatch) -> None:
    invent(tmp_path / "small", small_spec, 6)
    monkeypatch.setenv("COLUMNS", "100")
    done = CliRunner().invoke(cli, ["analyze", "small", "--root", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "small: complete, 6 of 4 trials" in done.output
    assert "reference point" in done.output
    done = CliRunner().invoke(cli, ["analyze", "small", "--root", str(tmp_path), "--json"])
    assert json.loads(done.output)["front"]
    with pytest.raises(UserError, match="did you mean 'small'"):
        CliRunner().invoke(cli, ["analyze", "smal", "--root", str(tmp_path)], catch_exceptions=False)


def test_two_thousand_trials_take_a_few_seconds() -> None:
    rng = np.random.default_rng(0)
    rows = [
        {
            "width": int(rng.integers(4, 65)), "lr": float(rng.random()), "prior": str(rng.choice(["conv", "p4"])),
            "accuracy": float(rng.random()), "translation_error": float(rng.random()),
            "parameters": float(rng.integers(1, 40)),
        }
        for _ in range(2000)
    ]  # fmt: skip
    study = made(rows, {**BOTH, "parameters": "minimize"}, varied=("width", "lr", "prior"))
    began = time.process_time()
    found = as_json(study)
    assert time.process_time() - began < 20  # 4 s alone on a core
    assert found["importance"][0]["trials"] == 2000
    assert not math.isclose(found["hypervolume"]["value"], 0)

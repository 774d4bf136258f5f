"""The shell: what it prints, where, and the code it ends with."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from invented import invent

from equitune.config.study import StudySpec

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def equitune(tmp_path: Path) -> Run:
    """Runs the program in an empty folder."""

    def run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "equitune", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return run


@pytest.mark.parametrize(
    "arguments", [["--help"], ["search", "--help"], ["measure", "--help"], ["--version"], ["catalog"]]
)
def test_help_is_light(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom equitune import cli\n"
        f"sys.argv = ['equitune', *{arguments}]\n"
        "try: cli.main()\nexcept SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'ray', 'optuna', 'mlflow', 'matplotlib', 'pandas', 'sklearn', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_check_says_what_is_wrong_with_every_file(equitune: Run, study_file: Callable[..., Path]) -> None:
    good = study_file(name="good.yaml")
    bad = study_file("study: x\nmodel: resnt\nobjectives: {accuracy: maximise}", name="bad.yaml")
    done = equitune("check", good)
    assert done.stdout == f"{good}: a study of 4 trials over 3 parameters\n"
    done = equitune("check", bad, good, "missing.yaml", code=2)
    assert f"{bad}:2:1 model: unknown model 'resnt': did you mean 'resnet'?" in done.stderr
    assert f"{bad}:3:14 objectives.accuracy: must be maximize or minimize, but got 'maximise'" in done.stderr
    assert "missing.yaml: no such file" in done.stderr
    assert str(good) in done.stdout


def test_notices_do_not_stop_anything(equitune: Run, study_file: Callable[..., Path]) -> None:
    done = equitune("check", study_file(), "--set", "augmentation.translate.max_px=0")
    assert "notice: augmentation.translate does nothing at max_px: 0" in done.stderr


def test_a_dry_run_shows_the_trials_the_first_model_and_the_cost(
    equitune: Run, study_file: Callable[..., Path], tmp_path: Path
) -> None:
    done = equitune("search", study_file(), "--dry-run", "--set", "search.trials=12", "--root", tmp_path / "studies")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("  trial 0: model.width ")
    assert lines[10] == "  those that follow depend on results; without any they would be:"
    first = lines[0].rsplit(": ", 1)[1]
    assert lines[-2] == f"small: 12 trials, the first model has {first}"
    assert lines[-1].startswith("guess: ")
    assert " of one CPU core, " in lines[-1]
    assert not (tmp_path / "studies").exists()


def test_show_reads_a_study_back(equitune: Run, tmp_path: Path, small_spec: StudySpec) -> None:
    invent(tmp_path / "studies" / "small", small_spec, 4, states={1: "FAILED"})
    done = equitune("show", "small")
    assert "small: complete, 4 of 4 trials (3 COMPLETE, 1 FAILED)" in done.stdout
    assert 'trial 1 FAILED: because of <b>"1"</b>' in done.stdout
    assert "accuracy ↑" in done.stdout
    assert "Next:    equitune ui\n" in done.stdout
    study = json.loads(equitune("show", "small", "--json", "--root", tmp_path / "studies").stdout)
    assert study["state"] == "complete"
    assert study["trials"][3] == {
        "number": 3,
        "state": "COMPLETE",
        "reason": None,
        "params": {"model.width": 4, "augmentation.translate.max_px": 2.0, "training.lr": 0.01},
        "metrics": {
            "accuracy": {"value": 0.74, "stderr": 0.02, "n": 20},
            "translation_error": study["trials"][3]["metrics"]["translation_error"],
            "parameters": {"value": 4000.0, "stderr": None, "n": 0},
        },
        "amounts": {},
        "exact": {
            "translation": {"broken_by": None, "loosened_by": None},
            "translation_substride": {"broken_by": "stages.3: its strides do not follow", "loosened_by": None},
            "c4": {"broken_by": None, "loosened_by": "stem: w is learned"},
        },
        "violates": {},
        "front": True,
    }
    assert study["trials"][1]["metrics"] == {}


def test_an_unknown_study_is_answered_with_the_nearest(equitune: Run, tmp_path: Path, small_spec: StudySpec) -> None:
    invent(tmp_path / "studies" / "small", small_spec, 1)
    for arguments in (["show", "smal"], ["mlflow", "sync", "smal"]):
        done = equitune(*arguments, code=2)
        assert "unknown study 'smal': did you mean 'small'? known: small" in done.stderr


def test_a_study_whose_files_are_not_whole(equitune: Run, tmp_path: Path, small_spec: StudySpec) -> None:
    folder = invent(tmp_path / "studies" / "small", small_spec, 1)
    folder.study.write_text('{"study": "sm')
    assert "study.json is damaged" in equitune("show", "small", code=2).stderr


def test_the_catalogue_lists_every_component_with_its_arguments(equitune: Run) -> None:
    done = equitune("catalog", "augmentation")
    assert "  translate: Shifts each image by a whole number of pixels" in done.stdout
    assert "      max_px: float >= 0, <= " in done.stdout
    assert "unknown" not in done.stdout


def test_what_is_not_fetched_and_what_does_not_exist(equitune: Run) -> None:
    assert "digits is not fetched" in equitune("download", "digits", code=2).stderr
    assert "unknown dataset 'mnits': did you mean 'mnist'?" in equitune("download", "mnits", code=2).stderr


def test_a_busy_port_is_said(equitune: Run) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        done = equitune("ui", "--port", port, code=2)
    assert f"--port: 127.0.0.1:{port} cannot be used (Address already in use): name another" in done.stderr


@pytest.mark.parametrize("arguments", [["search"], ["search", "x", "--speed"], ["serach"], ["show"]])
def test_a_wrong_command_line_is_the_users_mistake(arguments: list[str], equitune: Run) -> None:
    assert "Usage: " in equitune(*arguments, code=2).stderr

"""Files of strangers run no code and secrets are written nowhere; docs/security.md has the whole list of threats."""

import ast
import logging
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from invented import add_trial, invent
from test_exported import Payload, saved

from equitune.cli import cli
from equitune.config.load import load_study
from equitune.config.study import StudySpec
from equitune.config.trial import DataConfig, TrialConfig
from equitune.data.on_device import DeviceData
from equitune.data.splits import load_splits
from equitune.driver.log import logging_to
from equitune.errors import UserError, without_passwords
from equitune.importing.weights import read_weights
from equitune.records.folder import StudyFolder, read_json, write_json
from equitune.records.reader import StudyReader
from equitune.report.arms import write_arms
from equitune.report.front import write_front
from equitune.report.profile import write_profile
from equitune.report.table import write_frame
from equitune.tracking.projector import sync
from equitune.training.run import run_trial

REPOSITORY = Path(__file__).parent.parent
SECRET = "hunter2-and-more"
WITH_PASSWORD = f"postgresql+psycopg2://lab:{SECRET}@db.example.com:5432/mlflow"


# Code in files.

RUNS_CODE = {
    "pickle": {"load", "loads", "Unpickler"},
    "cloudpickle": {"load", "loads"},
    "dill": {"load", "loads"},
    "joblib": {"load"},
    "marshal": {"load", "loads"},
    "shelve": {"open"},
    "pd": {"read_pickle"},
    "pandas": {"read_pickle"},
    "yaml": {"load", "load_all", "full_load", "unsafe_load"},
    "os": {"system", "popen"},
    "torch.hub": {"load", "load_state_dict_from_url"},
    "torch.export": {"load"},
    "torch.jit": {"load"},
}
BUILT_IN = {"eval", "exec", "compile", "__import__"}
ALLOWED = {
    ("equitune/catalog.py", call) for call in ("compile", "eval")
}  # of our own source text, with nothing of a user's in it


def dangers(source: str) -> Iterator[str]:
    """The calls of a source text that could run code of what they read."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        owner, _, name = called.rpartition(".")
        options = {option.arg: ast.unparse(option.value) for option in node.keywords}
        if (not owner and name in BUILT_IN) or name in RUNS_CODE.get(owner, ()):
            yield called
        if owner and name in ("extract", "extractall", "unpack_archive"):  # to where the archive says
            yield called
        if called == "torch.load" and options.get("weights_only") != "True":
            yield called
        if options.get("shell", "False") != "False" or options.get("allow_pickle", "False") != "False":
            yield called
        if options.get("pretrained", "False") != "False" or options.get("trust_remote_code", "False") != "False":
            yield called


def test_no_call_of_the_program_runs_what_it_reads() -> None:
    files = list((REPOSITORY / "equitune").rglob("*.py"))
    assert len(files) > 100
    found = {(str(path.relative_to(REPOSITORY)), call) for path in files for call in dangers(path.read_text())}
    assert found == ALLOWED


@pytest.mark.parametrize(
    "line",
    [
        "pickle.load(file)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.hub.load('a/b', 'c')",
        "yaml.load(text, yaml.Loader)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(line, shell=True)",
        "eval(text)",
        "archive.extractall(folder)",
        "timm.create_model(name, pretrained=True)",
    ],
)
def test_such_a_call_would_be_found(line: str) -> None:
    assert len(list(dangers(line))) == 1


def test_a_trials_checkpoint_and_weights_run_no_code(
    small_config: TrialConfig, small_data: DeviceData, tmp_path: Path
) -> None:
    """Somebody who may write into a study's folder changes numbers, and runs nothing where the trial goes on."""
    touched = tmp_path / "touched"
    folder = StudyFolder(tmp_path / "small").trial(0)
    folder.path.mkdir(parents=True)
    evil = {"epoch": 1, "model": Payload(touched), "optimizer": {}, "generator": torch.get_rng_state()}
    folder.checkpoint.write_bytes(saved(evil))
    folder.weights.write_bytes(saved(Payload(touched)))
    copy = Path(shutil.copy(folder.checkpoint, tmp_path / "copy"))
    result = run_trial(small_config, small_data, folder=folder)
    assert result.state == "FAILED"
    assert result.reason is not None
    assert "Weights only load failed" in result.reason
    assert not touched.exists()
    with pytest.raises(UserError, match="is not a file of tensors alone"):
        read_weights(folder.weights)
    torch.load(copy, weights_only=False)
    assert touched.exists(), "the payload is dead, so the test shows nothing"


def test_pickles_that_stand_in_for_a_data_set_are_not_read(tmp_path: Path) -> None:
    touched, folder = tmp_path / "touched", tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("batches.meta", "test_batch", *(f"data_batch_{number}" for number in range(1, 6))):
        (folder / name).write_bytes(pickle.dumps(Payload(touched)))
    with pytest.raises(UserError, match="equitune download cifar10"):
        load_splits(DataConfig(name="cifar10", root=str(tmp_path)))
    assert not touched.exists()


@pytest.mark.parametrize("name", ["experiment_state.json", "tuner.pkl", "trainable.pkl", "searcher-state.pkl"])
def test_what_ray_tune_left_behind_is_never_read(name: str, tmp_path: Path, small_spec: StudySpec) -> None:
    """Tune pickles its own state below attempts/; a study goes on from its trials' folders instead."""
    touched = tmp_path / "touched"
    folder = invent(tmp_path / "small", small_spec, 2)
    planted = folder.attempts / "20260101-000000" / name
    planted.parent.mkdir(parents=True)
    planted.write_bytes(pickle.dumps(Payload(touched)))
    for command in ("show", "list", "report"):
        arguments = [] if command == "list" else ["small"]
        assert run(command, *arguments, "--root", tmp_path).exit_code == 0
    assert not touched.exists()
    sources = (path.read_text() for path in (REPOSITORY / "equitune" / "driver").glob("*.py"))
    assert not any(re.search(r"Tuner\.(can_)?restore|ExperimentAnalysis", source) for source in sources)


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!!python/name:os.system", "!!python/module:os"])
def test_a_studys_yaml_makes_no_objects(tag: str, study_file: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="is not plain data|tag|not YAML|unknown"):
        load_study(study_file(f"study: {tag} ['true']\n"))


# Secrets.


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=True)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"at {WITH_PASSWORD}: no", "at postgresql+psycopg2://lab:***@db.example.com:5432/mlflow: no"),
        (f"postgresql://lab@/lab?host=/tmp&password={SECRET}&x=1", "postgresql://lab@/lab?host=/tmp&password=***&x=1"),
        (f"https://:{SECRET}@a/b", "https://:***@a/b"),
        ("http://localhost:5000/@x", "http://localhost:5000/@x"),
        ("postgresql://USER@HOST:PORT/DATABASE", "postgresql://USER@HOST:PORT/DATABASE"),
        ("see http://a and mail b:c@d", "see http://a and mail b:c@d"),
    ],
)
def test_passwords_of_addresses_are_left_out(text: str, shown: str) -> None:
    assert without_passwords(text) == shown
    assert str(UserError(text)) == shown


@pytest.mark.parametrize("place", ["comment", "value", "--set"])
def test_a_study_with_a_password_in_it_is_refused(place: str, study_file: Callable[..., Path], tmp_path: Path) -> None:
    """It would be copied into the folder and into MLflow; the sentence itself does not repeat it."""
    text = study_file().read_text()
    lines = {"comment": f"# see {WITH_PASSWORD}\n{text}", "value": f"{text}description: {WITH_PASSWORD}\n"}
    settings = ["--set", f"data.root={WITH_PASSWORD}"] if place == "--set" else []
    done = run("search", study_file(lines.get(place, text)), "--root", tmp_path / "studies", *settings)
    assert isinstance(done.exception, UserError)
    assert "an address with a password: a study is copied into its folder" in str(done.exception)
    assert SECRET not in str(done.exception) + done.output
    assert not (tmp_path / "studies").exists()


@pytest.mark.parametrize(
    ("uri", "by_hand", "sentence"),
    [
        (WITH_PASSWORD, True, "every user of a machine reads its command lines"),
        (f"http://lab:{SECRET}@mlflow:5000", False, "MLFLOW_TRACKING_PASSWORD"),
        (f"postgresql://lab:{SECRET}@db/mlflow", False, r"begins with postgresql\+psycopg2://"),
    ],
)
def test_an_address_of_mlflow_that_would_be_read_by_others_or_not_work_is_refused(
    uri: str, by_hand: bool, sentence: str, tmp_path: Path, small_spec: StudySpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    invent(tmp_path / "small", small_spec, 1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    given = ["--tracking-uri", uri] if by_hand else []
    for command in (["mlflow", "sync", "small"], ["ui"]):
        done = run(*command, "--root", tmp_path, *given)
        assert isinstance(done.exception, UserError)
        assert re.search(sentence, str(done.exception))
        assert SECRET not in str(done.exception) + done.output


def test_a_log_holds_no_password_of_an_address(tmp_path: Path) -> None:
    with logging_to(tmp_path / "study.log"):
        try:
            raise ConnectionError(f"no answer from {WITH_PASSWORD}")
        except ConnectionError:
            logging.getLogger("mlflow").warning("projection to %s failed", WITH_PASSWORD, exc_info=True)
    said = (tmp_path / "study.log").read_text()
    assert said.count("lab:***@db.example.com") == 2
    assert SECRET not in said


def test_nothing_of_the_environment_gets_into_a_study_its_pages_or_mlflow(
    tmp_path: Path,
    small_spec: StudySpec,
    small_config: TrialConfig,
    small_data: DeviceData,
    store: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (
        "RAY_AUTH_TOKEN",
        "PGPASSWORD",
        "AWS_SECRET_ACCESS_KEY",
        "MLFLOW_TRACKING_PASSWORD",
        "EQUITUNE_STORAGE",
    ):
        monkeypatch.setenv(name, WITH_PASSWORD if name == "EQUITUNE_STORAGE" else SECRET)
    folder = invent(tmp_path / "small", small_spec, 2)
    add_trial(folder, small_spec, 2)
    trained = StudyFolder(tmp_path / "trained").trial(0)
    write_json(trained.config, small_config.to_json())
    assert run_trial(small_config, small_data, folder=trained).state == "COMPLETE"
    sync(folder, store, write_front, write_profile)
    assert run("report", "small", "--root", tmp_path).exit_code == 0
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"study.json", "mlflow.db", "front.html", "report.html", "weights.safetensors"} <= {
        path.name for path in files
    }
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


# Tables.


def test_no_table_of_a_study_holds_a_formula(tmp_path: Path, small_spec: StudySpec) -> None:
    """A spreadsheet that opens the file would compute it."""
    folder = invent(tmp_path / "small", small_spec, 2)
    for trial in folder.trials():
        config = read_json(trial.config)
        config["params"]["model.width"] = "=HYPERLINK(1)"
        write_json(trial.config, config)
    study = StudyReader(folder).read()
    write_front(study, tmp_path)
    write_frame(study, tmp_path)
    write_arms(study, tmp_path / "arms.csv")
    for name in ("front.csv", "trials.csv", "arms.csv"):
        assert ",'=HYPERLINK(1)" in (tmp_path / name).read_text(), name
        assert ",=HYPERLINK(1)" not in (tmp_path / name).read_text(), name


# The page.


def test_every_test_that_the_page_of_threats_names_exists() -> None:
    page = (REPOSITORY / "docs" / "security.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+\.py)::(\w+)`", page))
    assert len(named) > 20
    assert [it for it in named if not has_test(*it)] == []
    assert not has_test("test_security.py", "test_that_nobody_wrote")


def has_test(file: str, name: str) -> bool:
    path = REPOSITORY / "tests" / file
    return path.is_file() and f"def {name}(" in path.read_text(encoding="utf-8")

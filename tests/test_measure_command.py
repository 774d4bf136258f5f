"""`equitune measure` as people call it: what it prints, writes and tracks, how it ends, and that it goes on after Ctrl-C."""

import csv
import errno
import io
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from equitune import cli
from equitune.errors import UserError
from equitune.measuring.journal import FileJournal
from equitune.records import durable
from equitune.report.measured import lines
from equitune.results.measured import MeasurementRecord
from equitune.tracking.measured import log_measurement
from equitune.tracking.store import default_tracking_uri

NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+(?:e[-+]\d+)?|e[-+]\d+)")  # with a point or an exponent


@pytest.fixture
def measure(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, str]]:
    """Calls the shell in this process and an empty folder; returns what it printed and said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: object, code: int = 0) -> tuple[str, str]:
        words = [str(each) for each in ("equitune", "measure", *arguments, "--root", recorded)]
        monkeypatch.setattr(sys, "argv", words)
        ended = cli._exit_code()
        out, err = capfd.readouterr()
        assert ended == code, out + err
        return out, err

    return run


Measure = Callable[..., tuple[str, str]]


def read(folder: Path) -> MeasurementRecord:
    """A measurement's file, as strict JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    text = (folder / "measurement.json").read_text()
    return MeasurementRecord.model_validate_json(json.dumps(json.loads(text, parse_constant=refuse)))


def numbers(value: Any) -> set[float]:
    """Every number in a record."""
    if isinstance(value, dict | list | tuple):
        return set().union(*(numbers(each) for each in (value.values() if isinstance(value, dict) else value)))
    return {float(value)} if isinstance(value, int | float) else set()


def is_printed_of(text: str, known: set[float]) -> bool:
    """Whether a printed number is one of these, rounded to the digits that it has."""
    mantissa, _, exponent = text.partition("e")
    unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    return any(abs(float(text) - value) <= 0.5001 * unit for value in known)


def rows_of(out: str) -> list[str]:
    """The lines of the tables."""
    return [line for line in out.splitlines() if NUMBER.search(line) and not re.match(r"\S+: | |equivariance", line)]


def test_one_model_is_printed_written_and_drawn(measure: Measure, tmp_path: Path) -> None:
    out, err = measure("small/0", "--images", 30, "--group", "translation", "--group", "flip")
    (folder,) = (tmp_path / "measurements").iterdir()
    assert folder.name.startswith("small-0-")
    assert sorted(path.name for path in folder.iterdir()) == ["measurement.json", "profile.csv", "profile.png"]
    assert f"Folder:  measurements/{folder.name} (measurement.json, profile.csv, profile.png)" in out
    assert err == ""
    record = read(folder)
    (model,) = record.models
    known = numbers(record.model_dump())
    rows = rows_of(out)
    assert len(rows) == len([1 for each in model.metrics.values() if each.value is not None]) + len(model.profile)
    for row in rows:
        assert len(row) <= 80
        assert "…" not in row
        for text in NUMBER.findall(row):
            assert is_printed_of(text, known), row
    assert not all(is_printed_of(text, {value + 0.01 for value in known}) for text in NUMBER.findall(rows[0]))
    for name, metric in model.metrics.items():
        if metric.status == "ok":
            (row,) = (row for row in rows if row.startswith(f"{name} "))
            assert is_printed_of(NUMBER.findall(row)[0], {metric.value})  # type: ignore[arg-type]
            assert metric.low <= metric.value <= metric.high  # type: ignore[operator]
    with (folder / "profile.csv").open(newline="") as file:
        for row, expected in zip(csv.DictReader(file), model.profile, strict=True):
            assert row["model"] == "small/0"
            assert {key: row[key] for key in expected} == {
                key: "" if value is None else str(value) for key, value in expected.items()
            }
    with Image.open(folder / "profile.png") as picture:
        assert picture.height > 800  # two groups
    assert record.request["groups"] == ["translation", "flip"]
    assert record.data == {
        "name": "digits", "split": "test", "n": 30, "shape": [1, 12, 12], "fingerprint": record.data["fingerprint"],
    }  # fmt: skip
    assert {"equitune", "torch", "device", "host", "threads"} <= set(record.provenance)


def test_models_are_compared_with_the_first_in_80_columns(measure: Measure, tmp_path: Path) -> None:
    long = "resnet:depth=8,width=3,prior=conv,prior.padding=circular"
    out, _ = measure("small/0", "small/1", long, "--images", 20, "--output", "out")
    record = read(tmp_path / "out")
    known = numbers(record.model_dump())
    assert len(record.differences) == 2 * sum(metric.status == "ok" for metric in record.models[0].metrics.values())
    for letter, model in zip("ABC", record.models, strict=True):
        assert f"\n{letter} {model.name}: architecture resnet:depth=8," in out
    for letter, model in zip("BC", record.models[1:], strict=True):
        table = out.partition(f"\n{letter} beside A, on the same images:\n")[2].partition("\n\n")[0].splitlines()
        assert table[0].split() == ["metric", "A", letter, letter, "-", "A", "95", "%", "interval"]
        for each in (each for each in record.differences if each.model == model.name):
            (row,) = (row for row in table if row.startswith(f"{each.metric} "))
            assert len(row) <= 80
            value, other, difference, low, high = (float(text) for text in NUMBER.findall(row))
            assert difference == pytest.approx(other - value, abs=1.1e-4)
            assert all(is_printed_of(text, known) for text in NUMBER.findall(row))
            assert low <= difference <= high
    with (tmp_path / "out" / "profile.csv").open(newline="") as file:
        assert {row["model"] for row in csv.DictReader(file)} == {"A small/0", "B small/1", f"C {long}"}


def test_long_names_of_layers_are_folded_and_numbers_are_not(measure: Measure, tmp_path: Path) -> None:
    measure("small/0", "--images", 20, "--measure", "equivariance", "--measure", "lie_derivative", "--output", "out")
    record = read(tmp_path / "out")
    profile = [row | {"layer": f"network.stages.{'very.' * 8}long.{row['layer']}"} for row in record.models[0].profile]
    record = record.model_copy(update={"models": [record.models[0].model_copy(update={"profile": profile})]})
    for width in (66, 80, 130):
        console = Console(width=width, record=True, file=io.StringIO())
        for line in lines(record):
            console.print(line, markup=False)
        text = console.export_text()
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
        for row in profile:
            key = "error" if row["measure"] == "equivariance" else "lie_error"
            if key in row and row[key] >= 0.01:
                assert re.search(rf" {row[key]:.3f} +{row[f'{key}_low']:.3f}–{row[f'{key}_high']:.3f} ", text)


def test_a_terminal_shows_how_far_it_has_come(measure: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    _, err = measure("small/0", "--images", 20, "--batch", 10, "--output", "out")
    said = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", err)
    assert re.search("2 of 2: small/0, consistency of translation .* 20/20 ", said)  # the last one is always drawn


def test_what_has_no_value_is_one_line_and_leaves_no_table(measure: Measure, tmp_path: Path) -> None:
    out, _ = measure("small/0", "--images", 20, "--measure", "equivariance:lattice_px=16", "--output", "out")
    said = [line for line in out.splitlines() if "no value" in line]
    assert len(said) == 1
    assert (
        "no value of translation_error and 4 more: undefined: no lattice element exists for a total stride of"
        in said[0]
    )
    assert "nan" not in out
    measure("small/0", "--images", 20, "--measure", "stability", "--output", "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["measurement.json"]  # no layer, no old picture


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["small/9"], "small/9: study small has no trial 9: its trials are 0 to 1"),
        (["smal/0"], "unknown study 'smal': did you mean 'small'?"),
        (["small/0", "--data", "digts"], "--data: unknown data set or folder 'digts'"),
        (["small/0", "--device", "cuda"], "--device cuda: torch finds no GPU here"),
        (["small/0", "--layers", "stages.1.1"], "--layers: no layer of small/0 is like 'stages.1.1': nearest: stages.1.0"),
        (["small/0", "--output", "/proc/none/such"], "--output: /proc/none/such cannot be written: "),
        (["small/0", "--output", __file__], f"--output: {__file__} cannot be written: File exists"),
        (["small/0", "--images", "1"], "Invalid value for '--images'"),
        (["small/0", "--std", "0.5,x"], "Invalid value for '--std': numbers separated by commas are needed"),
        (["small/0", "--group", "flp"], "Invalid value for '--group'"),
        ([], "Missing argument 'MODEL...'"),
    ],
)  # fmt: skip
def test_a_users_mistake_is_a_sentence_and_leaves_nothing(
    arguments: list[str], sentence: str, measure: Measure, tmp_path: Path
) -> None:
    out, err = measure(*arguments, code=2)
    assert sentence in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_sentence_and_the_journal_stays(
    measure: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = durable._open_unlinked

    def full(path: str, flags: int) -> int:
        if "measurement" in Path(path).name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, flags)

    with monkeypatch.context() as patched:
        patched.setattr(durable, "_open_unlinked", full)
        _, err = measure("small/0", "--images", 20, "--output", "out", code=2)
    assert err.startswith("out/measurement.json cannot be written: No space left on device: free some space")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["journal"]
    (tmp_path / "out" / "journal" / "mine.txt").write_text("not the program's")
    measure("small/0", "--images", 20, "--output", "out")
    assert [path.name for path in (tmp_path / "out" / "journal").iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_measured_and_the_same_command_goes_on(
    measure: Measure, recorded: Path, tmp_path: Path
) -> None:
    """The program itself is interrupted after the first of many stages."""
    groups = [word for group in ("translation", "rotation", "flip", "d4", "scale") for word in ("--group", group)]
    options = ["small/1", "--batch", "1", *groups]
    words = [*options, "--output", "out"]
    command = [sys.executable, "-m", "equitune", "measure", *words, "--root", str(recorded)]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job, as tests may run in, hands on an interrupt that is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list((tmp_path / "out").glob("journal/[0-9a-f]*.safetensors")):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert out == f"Go on:   equitune {' '.join(command[3:])}\n"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["journal"]
    find, found = FileJournal.find, []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FileJournal, "find", lambda journal, stage: found.append(find(journal, stage)) or found[-1])
        measure(*words)
    assert found[0][0] == 40  # images of the first stage that are not passed again: all of them
    assert found[-1] is None
    assert not (tmp_path / "out" / "journal").exists()
    measure(*options, "--output", "whole")
    for name in ("measurement.json", "profile.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow  # MLflow makes its tables: seconds
def test_each_model_becomes_a_run(measure: Measure, recorded: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = default_tracking_uri(tmp_path)
    out, _ = measure("small/0", "small/1", "--images", 20, "--track", "--tracking-uri", uri, "--output", "out")
    assert f"MLflow:  experiment measurements in {uri}" in out
    record = read(tmp_path / "out")
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("measurements")
    assert experiment is not None
    assert experiment.artifact_location == (recorded / "mlartifacts" / "measurements").as_uri()
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"small/0", "small/1"}
    for model in record.models:
        run = runs[model.name]
        assert run.info.status == "FINISHED"
        fields = ("value", "stderr", "low", "high", "chance", "untrained")
        assert run.data.metrics == {
            name if field == "value" else f"{name}_{field}": getattr(metric, field)
            for name, metric in model.metrics.items()
            for field in fields
            if getattr(metric, field) is not None
        }
        assert run.data.params["measures"] == "equivariance, consistency"
        assert run.data.params["data.fingerprint"] == record.data["fingerprint"]
        assert run.data.params["model.weights_sha256"] == model.provenance["weights_sha256"]
        assert run.data.tags["equitune.torch"] == record.provenance["torch"]
        files = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert files == {"measurement.json", "profile.csv", "profile.png"}


@pytest.mark.slow
@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:////proc/none/such.db"])
def test_a_store_that_takes_nothing_is_said_after_the_results(uri: str, measure: Measure, tmp_path: Path) -> None:
    out, err = measure("small/0", "--images", 20, "--track", "--tracking-uri", uri, "--output", "out", code=2)
    assert "Folder:  out (measurement.json, profile.csv, profile.png)" in out
    assert "MLflow:" not in out
    assert err.splitlines()[-1].startswith(f"MLflow at {uri} cannot be written (")
    assert err.endswith("the results lie in out; the same command tries again\n")
    assert len(list((tmp_path / "out" / "journal").iterdir())) == 4  # so that it does not measure again
    with pytest.raises(UserError, match="cannot be written"):
        log_measurement(read(tmp_path / "out"), uri, [tmp_path / "out" / "measurement.json"], tmp_path)

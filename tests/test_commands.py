"""`list`, `show STUDY/NUMBER`, `trial` and `export` as people call them: on recorded trials, in this process."""

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import SMALL_STUDY
from invented import add_trial, invent
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from equitune import cli
from equitune.config.data_shape import DataShape
from equitune.config.load import load_study
from equitune.config.study import StudySpec
from equitune.config.trial import TrialConfig
from equitune.data.on_device import to_device
from equitune.data.splits import load_splits
from equitune.measuring.export import NoProgram, _require_same_scores, write_program
from equitune.networks.build import initial_model
from equitune.records.folder import StudyFolder, TrialFolder, read_json, write_json
from equitune.records.reader import StudyReader
from equitune.report.table import trial_frame
from equitune.results.values import Measurement
from equitune.search.study_record import begin
from equitune.training import again
from equitune.training.run import run_trial
from equitune.training.test_split import measure_on_test

Run = Callable[..., tuple[str, str]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a study of two trials that were trained for an epoch on the data that it names; nobody writes there."""
    root = tmp_path_factory.mktemp("trained")
    (root / "small.yaml").write_text(SMALL_STUDY.replace("epochs: 2", "epochs: 1").replace("trials: 4", "trials: 2"))
    spec, folder = load_study(root / "small.yaml"), StudyFolder(root / "small")
    begin(folder, spec, None, ())
    splits = load_splits(spec.data)
    write_json(folder.study, read_json(folder.study) | {"data_fingerprint": splits.fingerprint})
    for number, end in enumerate((0, -1)):
        config = spec.suggest(number, lambda name, distribution, end=end: distribution.bounds[end])  # type: ignore[misc]
        trial = folder.trial(number)
        write_json(trial.config, config.to_json())
        assert run_trial(config, to_device(splits, "cpu"), folder=trial).state == "COMPLETE"
        test = measure_on_test(config, trial, splits)
        write_json(trial.test, {name: metric.model_dump(mode="json") for name, metric in test.items()})
    return root


@pytest.fixture
def root(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, to be broken."""
    return Path(shutil.copytree(trained, tmp_path / "root"))


@pytest.fixture
def equitune(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Calls the shell in this process, in an empty folder; returns what it printed and said."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*arguments: object, code: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["equitune", *map(str, arguments), "--root", str(root)])
        ended = cli._exit_code()
        out, err = capfd.readouterr()
        assert ended == code, out + err
        return out, err

    return run


def edit(path: Path, change: Callable[[Any], None]) -> None:
    data = read_json(path)
    change(data)
    write_json(path, data)


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


# list


def test_every_study_is_a_line_and_so_is_what_is_none(equitune: Run, root: Path, small_spec: StudySpec) -> None:
    invent(root / "invented", small_spec, 3, states={1: "FAILED", 2: "RUNNING"})
    (root / "notes").mkdir()
    (root / "mlartifacts").mkdir()
    damaged, foreign = invent(root / "damaged", small_spec, 2), StudyFolder(root / "foreign")
    damaged.trial(1).result.write_text('{"number": 1, "sta')
    write_json(foreign.study, ["a list"])
    out, _ = equitune("list")
    listed = json.loads(equitune("list", "--json")[0])
    files = {study["study"]: study["damaged"] for study in listed}
    lines = {line.split()[0]: line for line in out.splitlines() if line[:1].strip()}
    assert set(lines) == {"study", "small", "invented", "damaged", "foreign", "notes"}
    assert "interrupted  2 of 4      1  accuracy ↑ 0.5000 ± 0.0200 (trial 0)" in lines["invented"]
    assert "complete" in lines["small"]
    assert "2 of 2" in lines["small"]
    assert "translation_error ↓ 0.1000 ± 0.0100 (trial 0)" in out
    assert "interrupted  1 of 4" in lines["damaged"]
    assert "trials/00001/result.json is damaged" in files["damaged"][0]
    assert "unreadable" in lines["foreign"]
    assert "study.json is damaged" in next(each["reason"] for each in listed if each["study"] == "foreign")
    assert "no study: it has no study.json" in lines["notes"]


def test_the_list_for_machines_and_the_empty_one(equitune: Run, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrialFolder, "read_epochs", lambda self: pytest.fail("a list reads no epochs"))
    (study,) = json.loads(equitune("list", "--json")[0])
    trials = StudyReader(StudyFolder(root / "small"), brief=True).read().trials
    best = max(trials, key=lambda trial: trial.metrics["accuracy"].value or 0)
    assert (study["study"], study["state"], study["ended"], study["planned"]) == ("small", "complete", 2, 2)
    assert study["best"]["accuracy"] == {
        "direction": "maximize",
        "trial": best.number,
        "value": best.metrics["accuracy"].value,
        "stderr": best.metrics["accuracy"].stderr,
    }
    assert study["changed"] >= (root / "small" / "trials" / "00001" / "test.json").stat().st_mtime - 1e-3
    shutil.rmtree(root)
    assert f"there is no study in {root}" in equitune("list")[0]
    assert equitune("list", "--json")[0] == "[]\n"


# show


def test_a_trial_is_shown_whole(equitune: Run, root: Path) -> None:
    out, _ = equitune("show", "small/1")
    trial = json.loads(equitune("show", "small/1", "--json")[0])
    accuracy = trial["metrics"]["accuracy"]
    assert out.startswith("small/1: COMPLETE\n")
    for said in (
        "model.width 4 ",
        "data digits: limit 200",
        "translate: max_px 2, fill zero",
        f"{accuracy['value']:.4f} ± {accuracy['stderr']:.4f}",
        f"{trial['test']['accuracy']['value']:.4f} ± ",
        "1 (first, best, last)",
        f"torch {torch.__version__}",
        f"Folder: {root / 'small' / 'trials' / '00001'} (config.json, epochs.jsonl, weights.safetensors",
    ):
        assert said in " ".join(out.split())
    assert trial["params"] == {"model.width": 4, "augmentation.translate.max_px": 2.0, "training.lr": 0.01}
    assert (trial["study"], trial["number"], trial["state"], len(trial["epochs"])) == ("small", 1, "COMPLETE", 1)
    assert trial["files"]["weights.safetensors"] == str(root / "small" / "trials" / "00001" / "weights.safetensors")


def test_a_trial_that_has_not_ended_and_one_that_failed(equitune: Run, root: Path, small_spec: StudySpec) -> None:
    folder = invent(root / "other", small_spec, 2, states={0: "RUNNING", 1: "FAILED"})
    edit(folder.trial(1).result, lambda result: result.update(traceback="Traceback: line 1\nline 2"))
    assert equitune("show", "other/0")[0].startswith("other/0: RUNNING\n")
    out, _ = equitune("show", "other/1")
    assert out.startswith('other/1: FAILED: because of <b>"1"</b>\n')
    assert out.endswith("Traceback: line 1\nline 2\n")
    assert json.loads(equitune("show", "other/0", "--json")[0])["state"] == "RUNNING"


@pytest.mark.parametrize("command", ["show", "trial", "export"])
def test_a_trial_that_does_not_exist(command: str, equitune: Run, root: Path) -> None:
    assert "unknown study 'smal': did you mean 'small'?" in equitune(command, "smal/1", code=2)[1]
    assert "small/7: study small has no trial 7: its trials are 0 to 1" in equitune(command, "small/7", code=2)[1]
    (root / "small" / "trials" / "00000" / "config.json").write_text('{"study": "sma')
    assert "00000/config.json is damaged (no JSON" in equitune(command, "small/0", code=2)[1]


# trial


def test_a_recorded_trial_gives_the_same_again_and_leaves_the_study_alone(
    equitune: Run, root: Path, tmp_path: Path
) -> None:
    before = snapshot(root)
    out, _ = equitune("trial", "small/1", "--output", tmp_path / "kept")
    assert "small/1: COMPLETE after " in out
    assert "\nthe same bit for bit: " in out
    assert out.endswith(" values of metrics, profile and epochs and the weights\n")
    assert snapshot(root) == before
    kept = {path.name for path in (tmp_path / "kept").iterdir()}
    assert kept == {"config.json", "epochs.jsonl", "result.json", "test.json", "weights.safetensors"}
    assert "is not empty: name another folder" in equitune("trial", "small/1", "--output", tmp_path / "kept", code=2)[1]


def _one_ulp(result: Any) -> None:
    result["metrics"]["accuracy"]["value"] = math.nextafter(result["metrics"]["accuracy"]["value"], 1)


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("result.json", _one_ulp, "  accuracy.value: was "),
        ("result.json", lambda r: r["metrics"]["accuracy"].update(stderr=0.5), "  accuracy.stderr: was 0.5, is 0.0"),
        (
            "result.json",
            lambda r: r["metrics"]["loss"].update(status="undefined"),
            "  loss.status: was undefined, is ok",
        ),
        ("result.json", lambda r: r["metrics"].update(lost=r["metrics"]["loss"]), "  lost.value: was "),
        ("result.json", lambda r: r["profile"][0].update(error=9.0), "translation, stem, "),
        ("result.json", lambda r: r.update(state="FAILED", reason="lost"), "  state: was FAILED, is COMPLETE\n"),
        ("test.json", lambda t: t["accuracy"].update(value=2.0), "  test accuracy.value: was 2.0, is 0."),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_differs_is_listed(file: str, change: Any, said: str, equitune: Run, root: Path) -> None:
    edit(root / "small" / "trials" / "00000" / file, change)
    out, _ = equitune("trial", "small/0", code=1)
    assert "not the same: " in out
    assert said in out
    assert "nothing that is recorded explains it" in out


def test_other_weights_epochs_and_versions_are_said(equitune: Run, root: Path) -> None:
    trial = TrialFolder(root / "small" / "trials" / "00000")
    weights = load_file(trial.weights)
    name = next(name for name, weight in weights.items() if weight.ndim == 4)
    weights[name].view(-1)[0] += 1
    save_file(weights, trial.weights)
    trial.epochs.write_text(trial.epochs.read_text().replace('"lr":', '"lr":1'))
    edit(trial.result, lambda result: result["provenance"].update(torch="2.0", host="elsewhere"))
    out, _ = equitune("trial", "small/0", code=1)
    assert "not the same: 2 of " in out
    assert f"  weights {name}: was " in out
    assert "(-1)\n" in out
    assert "  epoch 1.lr: was " in out
    assert f"What may explain it: torch was 2.0, is {torch.__version__}\n" in out


def test_what_a_clock_says_is_not_compared(equitune: Run, root: Path) -> None:
    seconds = Measurement(value=1e9, n=0, split="none", unit="s").model_dump(mode="json")
    trial = TrialFolder(root / "small" / "trials" / "00000")
    edit(trial.result, lambda result: result["metrics"].update(seconds=seconds, throughput=seconds))
    edit(trial.result, lambda result: result.update(seconds={"fit": 1e9}))
    assert "the same bit for bit" in equitune("trial", "small/0")[0]


def test_a_trial_says_which_constraint_it_violates(equitune: Run, root: Path) -> None:
    assert "violates" not in equitune("show", "small/0")[0]
    edit(root / "small" / "study.json", lambda study: study.update(constraints={"parameters": {"at_most": 1000}}))
    assert "  violates parameters: 1,384 is above at_most 1,000\n" in equitune("show", "small/0")[0]
    machine = json.loads(equitune("show", "small/0", "--json")[0])
    assert machine["violates"] == {"parameters": "1,384 is above at_most 1,000"}


def test_a_trial_without_an_end_has_nothing_to_be_compared_with(equitune: Run, root: Path) -> None:
    trial = TrialFolder(root / "small" / "trials" / "00000")
    trial.result.unlink()
    trial.checkpoint.write_bytes(b"not read")
    assert "there is nothing to compare with: the recorded trial has not ended" in equitune("trial", "small/0")[0]


def test_of_a_trial_that_was_stopped_early_its_epochs_are_compared(equitune: Run, root: Path) -> None:
    trial = TrialFolder(root / "small" / "trials" / "00000")
    edit(trial.result, lambda result: result.update(state="PRUNED", metrics={}, profile=[]))
    trial.weights.unlink()
    out, _ = equitune("trial", "small/0")
    assert "the same bit for bit: 5 values of the epochs before it was stopped early\n" in out
    trial.epochs.write_text(trial.epochs.read_text().replace('"lr":', '"lr":1'))
    assert "  epoch 1.lr: was " in equitune("trial", "small/0", code=1)[0]


def test_other_data_a_missing_gpu_and_no_trial_at_all(equitune: Run, root: Path) -> None:
    edit(root / "small" / "study.json", lambda study: study.update(data_fingerprint="0123"))
    error = equitune("trial", "small/0", code=2)[1]
    assert "small/0 was trained on other data named digits (0123, here " in error
    assert error.count("\n") == 1
    if not torch.cuda.is_available():
        assert "there is none here" in equitune("trial", "small/0", "--device", "cuda", code=2)[1]
    assert "a trial is named STUDY/NUMBER, such as capacity/12" in equitune("trial", "small", code=2)[1]


def test_ctrl_c_leaves_nothing_behind(equitune: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = []

    def interrupted(config: TrialConfig, data: Any, *, folder: TrialFolder, **_: Any) -> None:
        places.append(folder.path)
        raise KeyboardInterrupt

    monkeypatch.setattr(again, "run_trial", interrupted)
    assert equitune("trial", "small/0", "--output", tmp_path / "kept", code=130)[1].strip() == "interrupted"
    assert not places[0].exists()
    assert not (tmp_path / "kept").exists()


# export


def test_the_front_leaves_as_weights_programs_and_a_table(equitune: Run, root: Path) -> None:
    out, _ = equitune("export", "small", "--front")
    study = StudyReader(StudyFolder(root / "small")).read()
    folder = Path("exports/small")
    members = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert members
    for name in members:
        recorded = TrialFolder(root / "small" / "trials" / name)
        assert sorted(path.name for path in (folder / name).iterdir()) == [
            "config.json",
            "model.safetensors",
            "program.pt2",
        ]
        with safe_open(folder / name / "model.safetensors", "pt") as file:
            metadata = file.metadata()
        assert json.loads(metadata["config"]) == read_json(recorded.config) == read_json(folder / name / "config.json")
        assert json.loads(metadata["image_shape"]) == [1, 12, 12]
        assert json.loads(metadata["classes"]) == [str(digit) for digit in range(10)]
        mine, theirs = load_file(folder / name / "model.safetensors"), load_file(recorded.weights)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    measured = [
        model["metrics"]["translation_consistency"]
        for index, text in enumerate([f"small/{int(members[0])}", f"{folder / members[0] / 'program.pt2'}"])
        if equitune("measure", text, "--data", "digits", "--measure", "consistency", "--output", f"of-{index}")
        for model in read_json(Path(f"of-{index}/measurement.json"))["models"]
    ]
    assert measured[0]["value"] == measured[1]["value"] > 0
    assert "notice" not in out
    frame = pd.read_parquet(folder / "trials.parquet")
    assert list(frame["trial"]) == [0, 1]
    assert frame["accuracy"][1] == study.trials[1].metrics["accuracy"].value
    assert frame["accuracy_stderr"][1] == study.trials[1].metrics["accuracy"].stderr
    assert list(pd.read_csv(folder / "trials.csv")["model.width"]) == list(frame["model.width"]) == [2, 4]


def test_one_trial_the_table_alone_and_what_is_there_already(equitune: Run) -> None:
    equitune("export", "small/1", "--output", "one")
    assert sorted(path.name for path in Path("one").iterdir()) == ["00001", "trials.csv", "trials.parquet"]
    for folder, said in (("one", "one is not empty: name another folder, or replace"), ("file", "file is a file")):
        Path("file").touch()
        assert said in equitune("export", "small", "--output", folder, code=2)[1]
    Path("one/mine.txt").write_text("mine")
    Path("one/trials.csv").write_text("old")
    equitune("export", "small", "--output", "one", "--force")
    assert Path("one/mine.txt").read_text() == "mine"
    assert Path("one/trials.csv").read_text().startswith("trial,state,front,")
    assert "leave one of the two out" in equitune("export", "small/1", "--front", code=2)[1]


def test_what_cannot_be_exported(equitune: Run, root: Path, small_spec: StudySpec) -> None:
    folder = invent(root / "other", small_spec, 1, states={0: "FAILED"})
    folder.trial(0).weights.unlink()
    assert "study other has no front yet" in equitune("export", "other", "--front", code=2)[1]
    assert "has no weights: it is FAILED (because" in equitune("export", "other/0", code=2)[1]
    save_file({"other": torch.zeros(2)}, root / "small" / "trials" / "00000" / "weights.safetensors")
    assert "small/0: its weights are of another network" in equitune("export", "small/0", code=2)[1]


class Branching(nn.Module):
    """Its path depends on the images."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) if images.sum() > 0 else -images.flatten(1)


def test_a_network_that_torch_cannot_trace_is_said(equitune: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "equitune.measuring.export.write_program", lambda _, images, path: write_program(Branching(), images, path)
    )
    out, _ = equitune("export", "small/1", "--output", "one")
    assert "  notice: no program.pt2: torch.export cannot take the network: " in out
    assert sorted(path.name for path in Path("one/00001").iterdir()) == ["config.json", "model.safetensors"]


def test_a_program_with_other_scores_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = torch.rand(3, 1, 4, 4)
    model, other = (nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)) for _ in range(2))
    assert write_program(model.eval(), images, tmp_path / "program.pt2") == []
    with pytest.raises(NoProgram, match="the program's scores differ from the network's by "):
        _require_same_scores(model, other, images)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "is_measurable"),
    [
        ("prior: ceconv", True),
        ("downsampler: lps", True),
        ("downsampler: aps", False),
        ("prior: p4\ndownsampler: gsub", False),
        ("averaging: augerino", False),
    ],
)
def test_networks_that_look_at_each_image_export_for_any_number_of_them(
    parts: str, is_measurable: bool, tmp_path: Path
) -> None:
    text = f"study: s\nmodel: {{name: resnet, depth: 8, width: 4}}\n{parts}\nobjectives: {{accuracy: maximize}}\n"
    (tmp_path / "study.yaml").write_text(text)
    config = load_study(tmp_path / "study.yaml").suggest(0, lambda name, distribution: 0)
    model = initial_model(config, DataShape((3, 16, 16), 10)).eval()
    notices = write_program(model, torch.rand(5, 3, 16, 16), tmp_path / "program.pt2")
    assert is_measurable == (not notices)
    assert all("`equitune measure` does not take its program.pt2" in notice for notice in notices)


# the table


def test_the_table_has_every_trial_and_one_type_a_column(root: Path, small_spec: StudySpec, tmp_path: Path) -> None:
    folder = invent(tmp_path / "other", small_spec, 3, states={1: "INFEASIBLE"}, tested=(2,))
    add_trial(folder, small_spec, 3, "RUNNING")
    for number, value in enumerate((1, "one", None, 2.5)):
        edit(
            folder.trial(number).config,
            lambda config, value=value: value is not None and config["params"].update({"mixed": value}),
        )
    frame = trial_frame(StudyReader(folder).read())
    assert list(frame["trial"]) == [0, 1, 2, 3]
    assert list(frame["state"]) == ["COMPLETE", "INFEASIBLE", "COMPLETE", "RUNNING"]
    assert list(frame["front"]) == [True, False, True, False]
    assert [None if pd.isna(value) else value for value in frame["mixed"]] == ["1", "one", None, "2.5"]
    assert frame["reason"][1] == 'because of <b>"1"</b>'
    assert frame["test_accuracy"][2] == 0.6
    frame.to_parquet(tmp_path / "t.parquet")

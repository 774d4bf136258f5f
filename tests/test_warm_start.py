"""--warm-start: a new study begins with the trials of others that could as well be its own."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import optuna
import pytest

from equitune.analysis.pareto import front
from equitune.config.load import load_study
from equitune.config.study import StudySpec
from equitune.errors import UserError
from equitune.records.folder import StudyFolder, read_json, write_json
from equitune.records.reader import StudyReader, StudyRecord
from equitune.results.values import Epoch, Measurement, TrialResult
from equitune.search import warm_start
from equitune.search.compatible import require_same_start
from equitune.search.engine import Engine, Task
from equitune.search.extend import adapted
from equitune.search.storage import open_storage
from equitune.search.study_record import begin, is_finished
from equitune.search.warm_start import fitting

Write = Callable[..., Path]
STUDY = """\
study: other
model: {name: resnet, depth: 8, width: {int: [2, 9]}}
training: {epochs: {choice: [2, 4]}, batch_size: 32}
objectives: {accuracy: maximize, parameters: minimize}
search: {sampler: random, trials: 12, seed: 3}
"""
NEW = ("study=new", "search={sampler: tpe, trials: 5, seed: 8}", "model.width={int: [2, 6]}", "training.epochs=4")
DATA = "f00d"


def result_of(task: Task) -> TrialResult:
    assert task.config is not None
    width = task.config.model.args["width"]
    values = {"accuracy": 0.5 + width / 50, "parameters": 100.0 * width}
    is_old = task.config.study == "other"
    if is_old and task.number == 1:
        del values["accuracy"]
    metrics = {name: Measurement(value=value, n=9, split="validation") for name, value in values.items()}
    state = "FAILED" if is_old and task.number == 0 else "COMPLETE"
    return TrialResult(number=task.number, state=state, metrics=metrics, provenance={"torch": "2.13"})  # type: ignore[arg-type]


EPOCH = Epoch(
    epoch=1, time=1.7e9, train_loss=1, validation_loss=1, validation_accuracy=0.5, lr=1e-3, train_s=1, images_per_s=1
)


def played(folder: StudyFolder, spec: StudySpec, study: optuna.Study) -> StudyRecord:
    engine = Engine(spec, folder, study)
    while engine.has_trials_left():
        task = engine.next_task()
        assert isinstance(task, Task)
        task.folder.append_epoch(EPOCH)
        for path in (task.folder.weights, task.folder.checkpoint):
            path.write_bytes(f"{task.number}".encode())
        write_json(task.folder.result, result_of(task).model_dump(mode="json"))
        engine.ended(task.number, result_of(task))
    return StudyReader(folder).read()


def reopened(folder: StudyFolder, spec: StudySpec) -> optuna.Study:
    return open_storage(folder, spec, adapt=partial(adapted, spec, folder, None, ()))


def made(root: Path, spec: StudySpec, trials: list[str] | None = None) -> StudyFolder:
    """A study that has begun, on data that are known."""
    folder = StudyFolder(root / spec.study)
    folder.path.mkdir()
    started = {"imported": len(trials), "warm_start": {"studies": ["other"], "trials": trials}} if trials else {}
    begin(folder, spec, None, (), started=started)
    write_json(folder.study, read_json(folder.study) | {"data_fingerprint": DATA})
    return folder


@pytest.fixture
def root(tmp_path: Path, study_file: Write) -> Path:
    """Where a study, `other`, has run: trial 0 failed, trial 1 has no accuracy."""
    root = tmp_path / "studies"
    root.mkdir()
    spec = load_study(study_file(STUDY))
    folder = made(root, spec)
    played(folder, spec, open_storage(folder, spec))
    return root


@pytest.fixture
def new(study_file: Write) -> StudySpec:
    return load_study(study_file(STUDY), NEW)


def those_that_fit(root: Path) -> list[int]:
    """By the definition: complete, measured, and within the new study's space and constants."""
    trials = StudyReader(StudyFolder(root / "other")).read().trials[2:]
    params = {trial.number: trial.config.params for trial in trials}
    return [n for n, each in params.items() if each["training.epochs"] == 4 and each["model.width"] <= 6]  # type: ignore[operator]


def test_the_trials_that_could_be_its_own_are_brought(root: Path, new: StudySpec) -> None:
    expected = those_that_fit(root)
    assert 1 < len(expected) < 8
    trials, (said,) = fitting(new, root, ("other",), DATA)
    assert trials == [f"other/{number}" for number in expected]
    assert said.startswith(f"other: {len(expected)} of 12 trials fit (not ")
    assert "with training.epochs 2, here it is 4" in said
    assert "which must lie between 2 and 6, but got" in said
    assert "1 FAILED" in said
    assert "1 without a value of accuracy" in said
    folder = made(root, new, trials)
    record = played(folder, new, reopened(folder, new))
    old = StudyReader(StudyFolder(root / "other")).read()
    for number, their_number in enumerate(expected):
        mine, theirs = record.trials[number], old.trials[their_number]
        changed = {"study": "new", "number": number, "params": {"model.width": theirs.config.params["model.width"]}}
        assert mine.config == theirs.config.model_copy(update=changed)
        assert mine.result is not None
        assert mine.result.metrics == theirs.metrics
        assert mine.result.number == number
        assert mine.result.provenance == {"torch": "2.13", "warm_start": f"other/{their_number}"}
        assert mine.epochs == theirs.epochs
        assert folder.trial(number).weights.read_bytes() == str(their_number).encode()
        assert not folder.trial(number).checkpoint.exists()
    assert record.num_planned == len(record.trials) == len(expected) + 5  # beside the budget
    assert record.state == "complete"
    assert {trial.number for trial in front(record)} & set(range(len(expected)))
    study = open_storage(folder, new)
    assert [trial.state.name for trial in study.get_trials()] == ["COMPLETE"] * len(record.trials)
    assert [trial.values for trial in study.get_trials()] == [
        [trial.metrics["accuracy"].value, trial.metrics["parameters"].value] for trial in record.trials
    ]


def test_the_sampler_learns_from_what_was_brought(root: Path, new: StudySpec) -> None:
    trials, _ = fitting(new, root, ("other",), DATA)
    folder = made(root, new, trials)
    study = reopened(folder, new)
    Engine(new, folder, study)
    assert [trial.values is not None for trial in study.get_trials()] == [True] * len(trials)


@pytest.mark.parametrize("dies_in", ["write_whole", "write_json", "replace", "add_trial"])
@pytest.mark.parametrize("times", [1, 3])
def test_a_driver_that_dies_while_it_brings_trials_leaves_the_rest_to_the_next(
    dies_in: str, times: int, root: Path, new: StudySpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials, _ = fitting(new, root, ("other",), DATA)
    assert len(trials) >= 3
    undisturbed = made(root, new, trials)
    expected = [trial.config for trial in played(undisturbed, new, reopened(undisturbed, new)).trials]
    shutil.rmtree(undisturbed.path)
    folder = made(root, new, trials)
    places = {"write_whole": warm_start, "write_json": warm_start, "replace": warm_start.os}
    place, count = places.get(dies_in, optuna.Study), 0
    original = getattr(place, dies_in)

    def die(*args: object, **kwargs: object) -> object:
        nonlocal count
        count += 1
        if count == times:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(place, dies_in, die)
    with pytest.raises(KeyboardInterrupt):
        reopened(folder, new)
    monkeypatch.undo()
    record = played(folder, new, reopened(folder, new))
    assert [trial.config for trial in record.trials] == expected
    assert not [path for path in (folder.path / "trials").iterdir() if path.name.startswith(".")]


def test_a_baseline_is_the_first_trial_of_its_own(root: Path, study_file: Write) -> None:
    search = "search={sampler: random, trials: 3, seed: 8, baseline: {model.width: 5}}"
    spec = load_study(study_file(STUDY), (*NEW[2:], "study=new", search))
    trials, _ = fitting(spec, root, ("other",), DATA)
    folder = made(root, spec, trials)
    record = played(folder, spec, reopened(folder, spec))
    assert record.trials[len(trials)].config.params == {"model.width": 5}
    assert len(record.trials) == len(trials) + 3
    engine = Engine(spec, folder, open_storage(folder, spec))
    assert [engine._given(number) for number in (0, len(trials))] == [None, {"model.width": 5}]  # never stopped early
    assert not engine.has_trials_left()
    assert not is_finished(folder, spec)  # the front is not tested yet


def test_what_does_not_fit_is_refused_in_a_sentence(root: Path, new: StudySpec, study_file: Write) -> None:
    with pytest.raises(UserError, match=r"unknown study 'othr': did you mean 'other'\?"):
        fitting(new, root, ("othr",), DATA)
    with pytest.raises(UserError, match=r"no trial fits study new: other: 0 of 12 trials fit \(not 12 on other data\)"):
        fitting(new, root, ("other",), "beef")
    with pytest.raises(UserError, match="--warm-start other: a study cannot begin with its own trials"):
        fitting(load_study(study_file(STUDY)), root, ("other",), DATA)
    design = ("study=new", "search={sampler: grid}", "model.width={choice: [2, 4]}")
    with pytest.raises(UserError, match="--warm-start is for samplers: a design trains each of its cells"):
        fitting(load_study(study_file(STUDY), design), root, ("other",), DATA)
    measured = load_study(study_file(STUDY), (*NEW, "measures=[consistency]"))
    with pytest.raises(UserError, match=r"no trial fits .* with a different measures"):
        fitting(measured, root, ("other",), DATA)


def test_only_a_new_study_begins_with_trials_of_another(root: Path, new: StudySpec) -> None:
    folder = made(root, new, ["other/2"])
    require_same_start(folder, ())
    require_same_start(folder, ("other",))  # the same command goes on
    with pytest.raises(UserError, match="--warm-start third: only a new study begins with trials of another"):
        require_same_start(folder, ("other", "third"))


def test_the_same_trial_is_brought_once(root: Path, new: StudySpec) -> None:
    once, _ = fitting(new, root, ("other",), DATA)
    shutil.copytree(root / "other", root / "copy")
    twice, said = fitting(new, root, ("other", "copy"), DATA)
    assert twice == once
    assert said[1].startswith("copy: 0 of 12 trials fit")

"""--extend: a study goes on in a search space that holds all of its trials; a driver killed on its way changes nothing."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import optuna
import pytest

from equitune.config.load import load_study
from equitune.config.study import StudySpec
from equitune.errors import UserError
from equitune.records.folder import StudyFolder, read_json, write_json
from equitune.records.reader import StudyReader, StudyRecord
from equitune.results.values import Measurement, TrialResult
from equitune.search import extend
from equitune.search.compatible import require_extends
from equitune.search.engine import Engine, Task, suggested
from equitune.search.samplers import optuna_distribution
from equitune.search.storage import open_storage
from equitune.search.study_record import begin, is_finished, require_same_search

Write = Callable[..., Path]
STUDY = """\
study: small
model: {name: resnet, depth: {choice: [8, 14]}, width: {int: [2, 4]}}
prior: {choose: {conv: {padding: {choice: [zero, circular]}}, p4: {}}}
training: {epochs: 2, lr: {float: [1e-3, 1e-2], log: true}}
objectives: {accuracy: maximize, parameters: minimize}
constraints: {accuracy: {at_least: 0.2}}
search: {sampler: %s, trials: 8, seed: 3}
"""
WIDER = (
    "model={name: resnet, depth: {choice: [20, 8, 14]}, width: {int: [2, 9]}}",
    "prior={choose: {local: {}, conv: {padding: {choice: [circular, zero]}}, p4: {}}}",
    "search.trials=20",
)


def outcome(number: int) -> TrialResult:
    if number % 5 == 3:
        return TrialResult(number=number, state="INFEASIBLE", reason="too small")
    if number % 5 == 4:
        return TrialResult(number=number, state="FAILED", reason="ValueError: x")
    values = {"accuracy": number * 37 % 11 / 11, "parameters": float(number * 23 % 7)}
    metrics = {name: Measurement(value=value, n=9, split="validation") for name, value in values.items()}
    return TrialResult(number=number, state="COMPLETE", metrics=metrics)


def goes_on(folder: StudyFolder, spec: StudySpec, study: optuna.Study, most: int = 100) -> StudyRecord:
    """Runs trials, at most so many; the last one that begins is left where `most` is reached."""
    engine = Engine(spec, folder, study)
    for _ in range(most):
        if not engine.has_trials_left():
            break
        task = engine.next_task()
        assert isinstance(task, Task)
        if _ == most - 1:
            break
        write_json(task.folder.result, outcome(task.number).model_dump(mode="json"))
        engine.ended(task.number, outcome(task.number))
    return StudyReader(folder).read()


def begun(path: Path, file: Path, most: int = 7) -> tuple[StudyFolder, StudySpec]:
    """A study of six ended trials and one that runs."""
    spec, folder = load_study(file), StudyFolder(path / "small")
    folder.path.mkdir(parents=True)
    begin(folder, spec, file, ())
    goes_on(folder, spec, open_storage(folder, spec), most)
    return folder, spec


def told(study: optuna.Study) -> list[tuple[object, ...]]:
    return [
        (trial.number, trial.state, trial.values, trial.params, trial.system_attrs, trial.user_attrs)
        for trial in study.get_trials()
    ]


def reopened(folder: StudyFolder, spec: StudySpec, file: Path | None = None) -> optuna.Study:
    return open_storage(folder, spec, adapt=partial(extend.adapted, spec, folder, file, WIDER))


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2", "gp"])
def test_an_extended_study_keeps_every_trial_and_goes_on_beyond_its_old_bounds(
    sampler: str, tmp_path: Path, study_file: Write
) -> None:
    file = study_file(STUDY % sampler)
    folder, spec = begun(tmp_path, file)
    before, params = told(open_storage(folder, spec)), [t.config.params for t in StudyReader(folder).read().trials]
    wider = load_study(file, WIDER)
    with pytest.raises(UserError, match=r"--extend goes on in a space that holds every trial"):
        require_same_search(folder, wider)
    require_extends(folder, wider)
    assert not is_finished(folder, wider)
    begin(folder, wider, file, WIDER)
    study = reopened(folder, wider, file)
    assert told(study) == before
    assert [row[1].name for row in before].count("RUNNING") == 1  # type: ignore[attr-defined]
    require_same_search(folder, wider)  # the same command goes on without --extend
    with pytest.raises(UserError, match=r"model.resnet.width.int was \[2, 9\], is \[2, 4\]"):
        require_same_search(folder, spec)
    record = goes_on(folder, wider, reopened(folder, wider))
    assert [trial.config.params for trial in record.trials[:7]] == params
    assert [trial.number for trial in record.trials] == list(range(20))
    new = [trial.config.params for trial in record.trials[7:]]
    assert any(each["model.width"] > 4 for each in new)  # type: ignore[operator]
    assert {each["prior"] for each in new} | {each["model.depth"] for each in new} >= {"local", 20}
    assert record.state == "complete"
    (extension,) = record.info["extensions"]
    assert extension["trials"] == 7
    assert ["model.resnet.width.int", [2, 4], [2, 9]] in extension["changes"]


def test_without_an_extension_optuna_refuses_other_choices(tmp_path: Path, study_file: Write) -> None:
    file = study_file(STUDY % "random")
    folder, spec = begun(tmp_path, file)
    wider = load_study(file, WIDER)
    trial = open_storage(folder, spec).ask()  # the broken twin of `extended`
    with pytest.raises(ValueError, match="CategoricalDistribution does not support dynamic value space"):
        wider.suggest(trial.number, partial(suggested, trial))


@pytest.mark.parametrize(
    ("dies_in", "at"),
    [("create_study", 1), ("add_trial", 4), ("write_whole", 1), ("write_whole", 2), ("write_json", 1)],
)
def test_a_driver_that_dies_while_it_extends_changes_nothing(
    dies_in: str, at: int, tmp_path: Path, study_file: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = study_file(STUDY % "tpe")
    folder, spec = begun(tmp_path, file)
    before, info = told(open_storage(folder, spec)), folder.study.read_bytes()
    first_file = folder.searchspace.read_bytes()
    wider = load_study(file, WIDER)
    place, count = {"create_study": optuna, "add_trial": optuna.Study}.get(dies_in, extend), 0
    original = getattr(place, dies_in)

    def die(*args: object, **kwargs: object) -> object:
        nonlocal count
        count += 1
        if kwargs.get("load_if_exists") or count < at:
            return original(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(place, dies_in, die)
    file.write_text(file.read_text() + "# wider\n")
    with pytest.raises(KeyboardInterrupt):
        reopened(folder, wider, file)
    monkeypatch.undo()
    assert folder.study.read_bytes() == info
    assert told(open_storage(folder, spec)) == before  # whoever goes on without --extend finds all
    assert told(reopened(folder, wider, file)) == before
    assert told(open_storage(folder, wider)) == before
    assert folder.searchspace.read_bytes() == file.read_bytes()
    assert folder.searchspace.with_suffix(".1.yaml").read_bytes() == first_file
    assert len(goes_on(folder, wider, reopened(folder, wider)).trials) == 20


def test_a_study_is_extended_again_and_again(tmp_path: Path, study_file: Write) -> None:
    file = study_file(STUDY % "random")
    folder, spec = begun(tmp_path, file)
    before = told(open_storage(folder, spec))
    for number, width in enumerate((5, 6, 7), 1):
        wider = load_study(file, (f"model.width={{int: [2, {width}]}}",))
        require_extends(folder, wider)
        assert told(reopened(folder, wider, file)) == before
        assert len(read_json(folder.study)["extensions"]) == number
        assert folder.searchspace.with_suffix(f".{number}.yaml").exists()


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("training.epochs=3",), "trial 0 is one with training.epochs 2, here it is 3"),
        (("model.width={int: [3, 9]}",), r"trial \d is one with model.width 2, which must lie between 3 and 9, but got 2"),
        (("model.depth={choice: [8, 20]}",), r"trial \d is one with model.depth 14, which must be one of 8, 20, but got 14"),
        (("model.depth=8",), "trial 0 is one with a value of model.depth, which varies no more"),
        (("training.batch_size={choice: [64, 128]}",), "trial 0 is one without a value of training.batch_size"),
        (("augmentation={hflip: {}}",), "trial 0 is one with a different augmentation"),
        (("data.split_seed=4",), "data.split_seed was 0, is 4"),
        (("measures=[consistency]",), r"measures was \[\], is \[.*consistency"),
        (("objectives={accuracy: maximize}",), "objectives.parameters was minimize, is None"),
        (("constraints={}",), "constraints.accuracy.at_least was|constraints was"),
        (("search.sampler=random",), "search.sampler was tpe, is random"),
        (("search.seed=4",), "search.seed was 3, is 4"),
    ],
)  # fmt: skip
def test_what_is_no_extension_is_refused_in_a_sentence(
    overrides: tuple[str, ...], sentence: str, tmp_path: Path, study_file: Write
) -> None:
    file = study_file(STUDY % "tpe")
    folder, _ = begun(tmp_path, file)
    with pytest.raises(UserError, match=f"study small cannot be extended to this: .*(?:{sentence})") as caught:
        require_extends(folder, load_study(file, overrides))
    assert "\n" not in str(caught.value)
    assert "--extend takes wider ranges, more choices and more branches" in str(caught.value)


def test_the_cells_of_a_design_are_not_extended(tmp_path: Path, study_file: Write) -> None:
    file = study_file(STUDY % "tpe")
    space = ("model.width={choice: [2, 4]}", "training={epochs: 2}")
    spec, folder = load_study(file, (*space, "search={sampler: grid}")), StudyFolder(tmp_path / "small")
    folder.path.mkdir(parents=True)
    begin(folder, spec, file, ())
    wider = load_study(file, (space[0].replace("4", "4, 8"), space[1], "search={sampler: grid}"))
    with pytest.raises(UserError, match="a design is a list of cells, which more replicates extend"):
        require_extends(folder, wider)
    require_extends(folder, load_study(file, (*space, "search={sampler: grid, replicates: 2}")))


def test_distributions_are_optunas_own(study_file: Write) -> None:
    spec = load_study(study_file(STUDY % "random"), ("training.weight_decay={float: [0, 0.3], step: 0.1}",))
    study = optuna.create_study()
    for number in range(20):
        spec.suggest(number, partial(suggested, study.ask()))
    parameters = spec.parameters()
    for trial in study.get_trials():
        for name, distribution in trial.distributions.items():
            assert optuna_distribution(parameters[name]) == distribution

"""The cells of a design: each is trained once, whoever dies; those that fail again, under a new number."""

import json
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from equitune.analysis.arms import arms
from equitune.cli.studies import _print_answer
from equitune.config.load import load_study
from equitune.config.study import StudySpec
from equitune.records.folder import StudyFolder, write_json
from equitune.records.reader import StudyReader, StudyRecord
from equitune.report.terminal import summary
from equitune.results.values import Measurement, TrialResult
from equitune.search.cells import OpenCells
from equitune.search.engine import Engine, Task
from equitune.search.storage import open_storage
from equitune.search.study_record import begin, is_finished

SPACE = """\
study: small
model: {name: resnet, depth: {choice: [8, 14]}, width: {int: [2, 4], step: 2}}
prior: {choose: {conv: {padding: {choice: [zero, circular]}}, p4: {}}}
augmentation: {translate: {max_px: 1}}
objectives: {accuracy: maximize, parameters: minimize}
"""
BASELINE = "baseline: {model.depth: 8, model.width: 4, prior: conv, prior.conv.padding: zero}"
DESIGNS = {
    "factorial": "design: factorial",
    "one_at_a_time": f"design: one_at_a_time, {BASELINE}",
    "leave_one_out": f"design: leave_one_out, {BASELINE.replace('zero', 'circular')}",
    "toggles": f"design: toggles, {BASELINE}, best: {{model.depth: 14, model.width: 2, prior: p4}}",
}
Write = Callable[..., Path]


def opened(path: Path, spec: StudySpec) -> StudyFolder:
    folder = StudyFolder(path / "small")
    folder.path.mkdir(parents=True, exist_ok=True)
    begin(folder, spec, None, ())
    return folder


def engine_of(folder: StudyFolder, spec: StudySpec) -> Engine:
    return Engine(spec, folder, open_storage(folder, spec))


def result_of(task: Task, fails: bool) -> TrialResult:
    if fails:
        return TrialResult(number=task.number, state="FAILED", reason="ValueError: by chance")
    values = {"accuracy": 0.5 + task.number / 1000, "parameters": 100.0}
    metrics = {name: Measurement(value=value, n=9, split="validation") for name, value in values.items()}
    return TrialResult(number=task.number, state="COMPLETE", metrics=metrics)


def play(
    folder: StudyFolder,
    spec: StudySpec,
    dies: Collection[int] = (),
    fails: Callable[[Task], bool] = lambda task: False,
) -> StudyRecord:
    """One call of the command; where the count of what happens is in `dies`, the driver is gone and another one comes.

    Asking, the worker's writing and the telling count one each.
    """
    engine, count = engine_of(folder, spec), 0
    while engine.has_trials_left():
        task = engine.next_task()
        assert isinstance(task, Task)
        result = result_of(task, fails(task))
        for step in ("asked", "written", "told"):
            count += 1
            if count in dies:
                engine = engine_of(folder, spec)
                break
            if step == "asked" and not task.folder.result.exists():
                write_json(task.folder.result, result.model_dump(mode="json"))
            elif step == "written":
                engine.ended(task.number, result)
    return StudyReader(folder).read()


def cells_of(study: StudyRecord) -> list[tuple[int, int, dict[str, object]]]:
    return [(trial.cell, trial.config.replicate, dict(trial.config.params)) for trial in study.trials]


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("dies", [(), {1}, {2}, {3}, {4, 20, 21, 22}, set(range(2, 60, 5))], ids=str)
def test_every_cell_of_a_design_is_trained_once_wherever_drivers_die(
    design: str, dies: Collection[int], tmp_path: Path, study_file: Write
) -> None:
    spec = load_study(study_file(SPACE + f"search: {{{DESIGNS[design]}, replicates: 2}}"))
    study = play(opened(tmp_path, spec), spec, dies)
    num = len(spec.cells)
    assert cells_of(study) == [(place, place // num, cell) for place, cell in enumerate(spec.cells * 2)]
    assert [trial.number for trial in study.trials] == list(range(2 * num))
    assert study.state == "complete"
    seeds = [trial.config.seed for trial in study.trials]
    assert seeds == [seeds[0]] * num + [seeds[num]] * num
    assert seeds[0] != seeds[num]


def test_a_driver_that_dies_before_it_can_say_which_cell_it_began_begins_the_same_one(
    tmp_path: Path, study_file: Write
) -> None:
    spec = load_study(study_file(SPACE + f"search: {{{DESIGNS['toggles']}}}"))
    folder = opened(tmp_path, spec)
    for _ in range(2):
        engine_of(folder, spec).next_task()  # the second goes on with the first one's
    open_storage(folder, spec).ask()  # and was killed here
    study = play(folder, spec)
    assert cells_of(study) == [(place, 0, cell) for place, cell in enumerate(spec.cells)]


@pytest.fixture
def design(tmp_path: Path, study_file: Write) -> tuple[StudyFolder, StudySpec]:
    spec = load_study(study_file(SPACE + f"search: {{{DESIGNS['one_at_a_time']}, replicates: 2}}"))
    assert spec.search.trials == 10
    return opened(tmp_path, spec), spec


def test_a_cell_that_fails_is_trained_again_under_a_new_number(design: tuple[StudyFolder, StudySpec]) -> None:
    folder, spec = design
    study = play(folder, spec, fails=lambda task: task.number in (1, 7))
    assert [trial.cell for trial in study.trials] == [0, 1, 1, 2, 3, 4, 5, 6, 6, 7, 8, 9]
    assert [trial.state for trial in study.trials if trial.cell in (1, 6)] == ["FAILED", "COMPLETE"] * 2
    assert len({(trial.config.seed, json.dumps(trial.config.params)) for trial in study.trials}) == 10
    assert (study.num_settled(), study.num_planned, study.state) == (10, 10, "complete")
    assert summary(study) == [
        "small: complete, 10 of 10 trials (10 COMPLETE)",
        "  2 trials that failed are not counted: the same cells were trained again",
    ]
    assert [len(arm.trials) for arm in arms(study)] == [2] * 5
    assert {arm.summary("accuracy").n for arm in arms(study)} == {2}


def test_a_bug_is_tried_twice_a_call_and_again_with_the_next(design: tuple[StudyFolder, StudySpec]) -> None:
    folder, spec = design

    def is_broken(task: Task) -> bool:
        return task.config is not None and task.config.params["model.depth"] == 14

    study = play(folder, spec, fails=is_broken)
    assert [trial.cell for trial in study.trials] == [0, 1, 1, 2, 3, 4, 5, 6, 6, 7, 8, 9]
    assert (study.num_settled(), study.state) == (10, "complete")
    assert summary(study)[0] == "small: complete, 10 of 10 trials (8 COMPLETE, 2 FAILED)"
    assert arms(study)[1].summary("accuracy").n == 0
    assert not is_finished(folder, spec)
    study = play(folder, spec, fails=is_broken)
    assert [trial.cell for trial in study.trials[12:]] == [1, 1, 6, 6]
    study = play(folder, spec)  # it has been mended
    assert [trial.cell for trial in study.trials[16:]] == [1, 6]
    assert [trial.state for trial in study.counted()] == ["COMPLETE"] * 10
    assert not engine_of(folder, spec).has_trials_left()


def test_what_is_infeasible_is_not_tried_again(design: tuple[StudyFolder, StudySpec]) -> None:
    folder, spec = design
    engine = engine_of(folder, spec)
    task = engine.next_task()
    assert isinstance(task, Task)
    engine.ended(task.number, TrialResult(number=task.number, state="INFEASIBLE", reason="too small"))
    following = engine.next_task()
    assert isinstance(following, Task)
    assert following.config is not None
    assert following.config.cell == 1


def test_a_lost_worker_leaves_its_cell_open(design: tuple[StudyFolder, StudySpec]) -> None:
    folder, spec = design
    engine = engine_of(folder, spec)
    for expected in ((0, 0), (1, 0), (2, 1)):  # twice, then the next cell
        task = engine.next_task()
        assert isinstance(task, Task)
        assert task.config is not None
        assert (task.number, task.config.cell) == expected
        engine.lost(task.number)


def test_more_replicates_go_on_behind_failures(design: tuple[StudyFolder, StudySpec], study_file: Write) -> None:
    folder, spec = design
    play(folder, spec, fails=lambda task: task.number in (1, 7))
    more = load_study(study_file(SPACE + f"search: {{{DESIGNS['one_at_a_time']}, replicates: 3}}"))
    begin(folder, more, None, ())
    study = play(folder, more)
    assert [trial.cell for trial in study.trials[12:]] == [10, 11, 12, 13, 14]
    assert [trial.config.params for trial in study.trials[12:]] == more.cells
    assert {trial.config.replicate for trial in study.trials[12:]} == {2}
    assert study.state == "complete"


def test_a_grid_from_before_cells_were_noted_goes_on(design: tuple[StudyFolder, StudySpec]) -> None:
    folder, spec = design
    study = open_storage(folder, spec)
    engine = Engine(spec, folder, study)
    for number in range(3):
        task = engine.next_task()
        assert isinstance(task, Task)
        engine.ended(number, result_of(task, fails=number == 1))
        if number == 1:
            engine._cells = OpenCells(10, {0, 1})  # failed cells were not trained again
    for path in (trial.config for trial in folder.trials()):
        old = json.loads(path.read_text())
        del old["cell"]
        write_json(path, old)
    text = "".join(line for line in folder.journal.read_text().splitlines(keepends=True) if '"cell"' not in line)
    assert text != folder.journal.read_text()
    folder.journal.write_text(text)
    for number in range(3):
        path = folder.trial(number).result
        write_json(path, TrialResult(number=number, state="FAILED" if number == 1 else "COMPLETE").model_dump())
    record = play(folder, spec)
    assert [trial.cell for trial in record.trials] == [0, 1, 2, 1, *range(3, 10)]
    assert record.state == "complete"


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_samplers_study_counts_every_trial_and_begins_with_its_baseline(
    sampler: str, tmp_path: Path, study_file: Write
) -> None:
    spec = load_study(study_file(SPACE + f"search: {{sampler: {sampler}, trials: 6, {BASELINE}}}"))
    study = play(opened(tmp_path, spec), spec, dies={1, 2}, fails=lambda task: task.number == 2)
    assert study.trials[0].config.params == spec.search.baseline
    assert [trial.config.cell for trial in study.trials] == [None] * 6
    assert [trial.state for trial in study.trials].count("FAILED") == 1
    assert study.num_settled() == 6
    assert len({json.dumps(trial.config.params) for trial in study.trials}) > 2  # the others are sampled


def test_a_study_whose_failed_cells_were_mended_ends_well(
    design: tuple[StudyFolder, StudySpec], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, spec = design
    play(folder, spec, fails=lambda task: task.number == 0)
    study = _print_answer(folder, None, draw=False)
    assert [trial for trial in study.counted() if trial.state == "FAILED"] == []
    assert "10 of 10 trials (10 COMPLETE)" in capsys.readouterr().out


def test_a_design_whose_journal_is_lost_knows_its_cells_from_their_folders(
    design: tuple[StudyFolder, StudySpec],
) -> None:
    folder, spec = design
    before = play(folder, spec, fails=lambda task: task.number in (1, 7))
    folder.journal.unlink()
    engine = engine_of(folder, spec)
    assert not engine.has_trials_left()
    assert engine._cell_of == {trial.number: trial.cell for trial in before.trials}

"""The search without training: Tune's calls are made by hand, results are invented, drivers die at any call."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from ray.tune.search import Searcher

from equitune.analysis.pareto import front
from equitune.config.data_shape import DataShape
from equitune.config.load import load_study
from equitune.config.objectives import UNMEASURED, Bound
from equitune.config.resources import Resources
from equitune.config.study import StudySpec
from equitune.driver.cluster import slots
from equitune.driver.tune_searcher import StopAll, StudySearcher
from equitune.errors import UserError
from equitune.preflight.plan import num_exact, proposals, require_feasible
from equitune.records.folder import StudyFolder, write_json
from equitune.records.reader import StudyReader
from equitune.results.values import Measurement, TrialResult
from equitune.search.engine import Engine
from equitune.search.storage import open_storage
from equitune.search.study_record import begin, require_same_search

COMPLETE, PRUNED, FAIL, RUNNING = (optuna.trial.TrialState[name] for name in ("COMPLETE", "PRUNED", "FAIL", "RUNNING"))


@pytest.fixture
def folder(tmp_path: Path, small_spec: StudySpec) -> StudyFolder:
    study = StudyFolder(tmp_path / "small")
    study.path.mkdir()
    begin(study, small_spec, None, ())
    return study


def open_searcher(folder: StudyFolder, spec: StudySpec) -> StudySearcher:
    return StudySearcher(Engine(spec, folder, open_storage(folder, spec)))


def outcome(
    number: int, state: str = "COMPLETE", accuracy: float | None = 0.5, error: float | None = 0.5, **values: Any
) -> TrialResult:
    def metric(value: float | None) -> Measurement:
        return Measurement(value=value, n=9, split="validation", status="ok" if value is not None else "collapsed")

    metrics = {"accuracy": metric(accuracy), "translation_error": metric(error)} if state == "COMPLETE" else {}
    return TrialResult(number=number, state=state, metrics=metrics, **values)  # type: ignore[arg-type]


def finish(searcher: StudySearcher, folder: StudyFolder, tune_id: str, result: TrialResult) -> None:
    """What a worker and Tune do at the end of a trial."""
    write_json(folder.trial(result.number).result, result.model_dump(mode="json"))
    searcher.on_trial_result(tune_id, {"result": result.model_dump_json()})
    searcher.on_trial_complete(tune_id, {})


def states(folder: StudyFolder, spec: StudySpec) -> list[optuna.trial.TrialState]:
    return [trial.state for trial in open_storage(folder, spec).get_trials()]


def test_a_study_asks_for_its_trials_and_no_more(folder: StudyFolder, small_spec: StudySpec) -> None:
    searcher = open_searcher(folder, small_spec)
    configs = [searcher.suggest(str(index)) for index in range(4)]
    assert [config["number"] for config in configs] == [0, 1, 2, 3]
    assert searcher.suggest("5") is None  # what runs may still change the front
    for config in configs:
        finish(searcher, folder, str(config["number"]), outcome(config["number"], accuracy=config["number"] / 10))
    test = searcher.suggest("6")
    assert (test["number"], test["test"]) == (3, True)
    assert searcher.suggest("7") == Searcher.FINISHED
    assert not searcher._engine.is_done()
    metric = Measurement(value=0.4, n=9, split="test").model_dump(mode="json")
    searcher.on_trial_result("6", {"test": json.dumps({"accuracy": metric})})
    assert searcher._engine.is_done()
    assert open_searcher(folder, small_spec).suggest("8") == Searcher.FINISHED
    assert states(folder, small_spec) == [COMPLETE] * 4
    record = StudyReader(folder).read()
    assert record.state == "complete"
    assert [json.loads(config["trial"])["params"] for config in configs] == [
        trial.config.params for trial in record.trials
    ]


@pytest.mark.parametrize(
    ("result", "state", "constraint"),
    [
        (outcome(0), COMPLETE, None),
        (outcome(0, "INFEASIBLE", reason="diverged: ..."), PRUNED, "infeasible"),  # recorded before causes were
        (outcome(0, "INFEASIBLE").model_copy(update={"cause": "out_of_memory"}), PRUNED, "out_of_memory"),
        (outcome(0, "PRUNED", reason="stopped early"), PRUNED, None),
        (outcome(0, "FAILED", reason="ValueError: x"), FAIL, None),
        (outcome(0, error=None), PRUNED, "unmeasured"),
        (outcome(0, accuracy=None), PRUNED, "unmeasured"),
    ],
)
def test_each_ending_is_told_in_its_own_way(
    result: TrialResult, state: Any, constraint: str | None, folder: StudyFolder, small_spec: StudySpec
) -> None:
    searcher = open_searcher(folder, small_spec)
    searcher.suggest("a")
    finish(searcher, folder, "a", result)
    trial = open_storage(folder, small_spec).get_trials()[0]
    assert trial.state == state
    violated = [key for key, value in trial.system_attrs.items() if key.startswith("constraints:") and value > 0]
    assert violated == ([f"constraints:{constraint}"] if constraint else [])
    assert (trial.values is not None) == (state == COMPLETE)


def test_how_far_a_trial_lies_outside_its_constraints_is_told(folder: StudyFolder, small_spec: StudySpec) -> None:
    bounds = {
        "accuracy": Bound(at_least=0.75),
        "translation_error": Bound(at_most=0.75),
        "parameters": Bound(at_most=1000),
    }
    spec = small_spec.model_copy(update={"constraints": bounds})
    searcher = open_searcher(folder, spec)
    size = {"parameters": Measurement(value=1500, n=0, split="none")}
    kept, unknown = outcome(0, accuracy=0.875), outcome(1)
    kept = kept.model_copy(update={"metrics": kept.metrics | {"parameters": Measurement(value=9, n=0, split="none")}})
    infeasible = outcome(2, "INFEASIBLE", reason="parameters: ...").model_copy(update={"metrics": size})
    for result in (kept, unknown, infeasible):
        searcher.suggest(str(result.number))
        finish(searcher, folder, str(result.number), result)
    first, second, third = open_storage(folder, spec).get_trials()
    assert first.constraints == {"accuracy": -0.125, "translation_error": -0.25, "parameters": -991}
    assert second.constraints == {"accuracy": 0.25, "translation_error": -0.25, "parameters": UNMEASURED}
    assert third.constraints == {"infeasible": 1, "parameters": 500}
    assert [trial.state for trial in (first, second, third)] == [COMPLETE, COMPLETE, PRUNED]
    assert [trial.number for trial in open_storage(folder, spec).best_trials] == [0]
    searcher.suggest("3")  # the sampler takes trials with different constraints


def test_reports_of_epochs_end_nothing(folder: StudyFolder, small_spec: StudySpec) -> None:
    searcher = open_searcher(folder, small_spec)
    searcher.suggest("a")
    searcher.on_trial_result("a", {"epoch": 1})
    searcher.on_trial_complete("a", {"epoch": 1})  # as Tune says it of a trial that was stopped
    assert states(folder, small_spec) == [RUNNING]
    assert open_searcher(folder, small_spec).suggest("b")["number"] == 0


def test_a_worker_that_is_lost_for_good_is_a_failure_with_its_reason(
    folder: StudyFolder, small_spec: StudySpec
) -> None:
    searcher = open_searcher(folder, small_spec)
    searcher.suggest("a")
    searcher.on_trial_complete("a", None, error=True)
    assert states(folder, small_spec) == [FAIL]
    record = StudyReader(folder).read().trials[0]
    assert record.state == "FAILED"
    assert record.reason is not None
    assert "its worker was lost" in record.reason


def test_a_full_disk_halts_the_study_and_keeps_the_trial(folder: StudyFolder, small_spec: StudySpec) -> None:
    searcher = open_searcher(folder, small_spec)
    searcher.suggest("a")
    assert not StopAll(searcher._engine).stop_all()
    searcher.on_trial_result("a", {"halt": "the disk is full"})
    assert StopAll(searcher._engine).stop_all()
    assert states(folder, small_spec) == [RUNNING]


def test_draining_begins_no_trial_and_going_on_finishes_the_begun_ones(
    folder: StudyFolder, small_spec: StudySpec
) -> None:
    searcher = open_searcher(folder, small_spec)
    first = searcher.suggest("a")
    searcher._engine.draining = True
    assert searcher.suggest("b") == Searcher.FINISHED
    again = open_searcher(folder, small_spec)
    assert again.suggest("c") == first


def scripted(number: int) -> TrialResult:
    """A result that depends on the trial alone."""
    return outcome(number, accuracy=(number * 37 % 11) / 11, error=(number * 23 % 7) / 7)


def play(folder: StudyFolder, spec: StudySpec, dies: Callable[[int], bool]) -> list[dict[str, Any]]:
    """Runs a study one trial at a time; where `dies` says so, the driver is gone and a new one opens the folder.

    Call counts: asking, the worker's writing and the telling are one call each.
    """
    searcher, call = open_searcher(folder, spec), 0
    trained: list[int] = []

    def step() -> bool:
        nonlocal searcher, call
        call += 1
        if dies(call):
            searcher = open_searcher(folder, spec)
            return True
        return False

    while True:
        config = searcher.suggest("t")
        if "test" in config:
            break
        number = config["number"]
        if step():
            continue
        if not folder.trial(number).result.exists():
            trained.append(number)
            write_json(folder.trial(number).result, scripted(number).model_dump(mode="json"))
        if step():
            continue
        searcher.on_trial_result("t", {"result": scripted(number).model_dump_json()})
        searcher.on_trial_complete("t", {})
        step()
    assert sorted(trained) == sorted(set(trained)), "a trial was trained twice"
    return [trial.config.params for trial in StudyReader(folder).read().trials]


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc", "nsga2", "nsga3", "gp", "cmaes"])
@pytest.mark.parametrize("deaths", [{1}, {2}, {3}, {5, 6, 7}, {4, 20, 33}, set(range(2, 60, 5))])
def test_drivers_that_die_anywhere_change_nothing(
    sampler: str, deaths: set[int], tmp_path: Path, study_file: Callable[..., Path]
) -> None:
    one = ("objectives={accuracy: maximize}",) if sampler == "cmaes" else ()
    num_trials = 12 if sampler == "gp" else 16  # after ten random ones it takes half a second each
    spec = load_study(study_file(), (f"search.sampler={sampler}", f"search.trials={num_trials}", *one))
    params, fronts = [], []
    for name, dies in (("undisturbed", lambda call: False), ("disturbed", deaths.__contains__)):
        folder = StudyFolder(tmp_path / name / "small")
        folder.path.mkdir(parents=True)
        begin(folder, spec, None, ())
        params.append(play(folder, spec, dies))
        assert states(folder, spec) == [COMPLETE] * num_trials
        fronts.append([trial.number for trial in front(StudyReader(folder).read())])
    assert params[0] == params[1]
    assert fronts[0] == fronts[1]
    if sampler not in ("nsga2", "nsga3"):  # whose children may equal a parent
        assert len({json.dumps(each) for each in params[0]}) == num_trials


GRID = ("model={choose: {cnn: {width: {int: [2, 4], step: 1}}, resnet: {depth: 8, width: {choice: [2, 4]}}}}",
        "augmentation={}", "training={epochs: 2}", "search={sampler: grid, replicates: 3}")  # fmt: skip


@pytest.fixture
def grid(tmp_path: Path, study_file: Callable[..., Path]) -> tuple[StudySpec, StudyFolder]:
    spec = load_study(study_file(), GRID)
    folder = StudyFolder(tmp_path / "grid" / "small")
    folder.path.mkdir(parents=True)
    begin(folder, spec, None, ())
    return spec, folder


def test_a_grid_runs_its_cells_replicate_by_replicate_with_paired_seeds(
    grid: tuple[StudySpec, StudyFolder],
) -> None:
    spec, folder = grid
    cells = [{"model": "cnn", "model.cnn.width": width} for width in (2, 3, 4)]
    cells += [{"model": "resnet", "model.resnet.width": width} for width in (2, 4)]
    planned = proposals(spec)
    assert [config.params for config in planned] == cells * 3
    assert num_exact(spec) == len(planned) == 15
    assert play(folder, spec, lambda call: False) == cells * 3
    recorded = [trial.config for trial in StudyReader(folder).read().trials]
    assert recorded == planned
    assert [config.replicate for config in recorded] == [0] * 5 + [1] * 5 + [2] * 5
    seeds = [config.seed for config in recorded]
    assert seeds == [seeds[0]] * 5 + [seeds[5]] * 5 + [seeds[10]] * 5
    assert len(set(seeds)) == 3


@pytest.mark.parametrize("deaths", [{1}, {3}, {4, 20, 33}, set(range(2, 60, 5))])
def test_a_grid_whose_drivers_die_is_the_same_grid(deaths: set[int], grid: tuple[StudySpec, StudyFolder]) -> None:
    spec, folder = grid
    assert play(folder, spec, deaths.__contains__) == spec.cells * 3
    assert states(folder, spec) == [COMPLETE] * 15


def test_every_trial_of_a_study_with_replicates_is_tested(grid: tuple[StudySpec, StudyFolder]) -> None:
    spec, folder = grid
    play(folder, spec, lambda call: False)
    searcher = open_searcher(folder, spec)
    asked = [searcher.suggest(str(index)) for index in range(15)]
    assert sorted(config["number"] for config in asked) == list(range(15))
    assert all(config["test"] for config in asked)
    assert searcher.suggest("16") == Searcher.FINISHED
    assert not searcher._engine.is_done()
    metric = Measurement(value=0.4, n=9, split="test").model_dump(mode="json")
    for index in range(15):
        searcher.on_trial_result(str(index), {"test": json.dumps({"accuracy": metric})})
    assert searcher._engine.is_done()


def test_more_replicates_extend_a_grid(grid: tuple[StudySpec, StudyFolder], study_file: Callable[..., Path]) -> None:
    spec, folder = grid
    play(folder, spec, lambda call: False)
    more = load_study(study_file(), (*GRID, "search.replicates=4"))
    require_same_search(folder, more)
    begin(folder, more, None, ())
    assert StudyReader(folder).read().replicates == 4
    assert play(folder, more, lambda call: False) == spec.cells * 4


def test_another_search_space_is_refused_and_a_larger_budget_is_not(
    folder: StudyFolder, study_file: Callable[..., Path]
) -> None:
    path = study_file()
    begin(folder, load_study(path, ("search.trials=9", "resources.concurrent=1")), None, ())
    assert StudyReader(folder).read().num_planned == 9
    changed = load_study(path, ("model.width={int: [2, 9]}", "training.epochs=3"))
    with pytest.raises(UserError) as caught:
        require_same_search(folder, changed)
    assert "model.resnet.width.int was [2, 4], is [2, 9]" in str(caught.value)
    assert "training.epochs was 2, is 3" in str(caught.value)
    larger = load_study(path, ("search.trials=12",))
    require_same_search(folder, larger)
    begin(folder, larger, None, ())
    assert StudyReader(folder).read().num_planned == 12


def test_what_is_planned_is_what_is_asked(folder: StudyFolder, small_spec: StudySpec) -> None:
    planned = proposals(small_spec)
    searcher = open_searcher(folder, small_spec)
    asked = [json.loads(searcher.suggest(str(index))["trial"]) for index in range(4)]
    assert [config.to_json() for config in planned] == asked
    assert num_exact(small_spec) == 4


def test_a_study_without_any_feasible_network_is_refused(study_file: Callable[..., Path]) -> None:
    path = study_file()
    require_feasible(load_study(path, ("model.depth={choice: [8, 9]}",)), DataShape((1, 16, 16), 10))
    with pytest.raises(
        UserError, match="no network of study small can be built for images of 16 x 16: the depth of a resnet"
    ):
        require_feasible(load_study(path, ("model.depth=9",)), DataShape((1, 16, 16), 10))


@pytest.mark.parametrize(
    ("asked", "available", "concurrent"),
    [
        (Resources(), {"CPU": 2.0}, 2),
        (Resources(cpu=2), {"CPU": 5.0}, 2),
        (Resources(cpu=0.5), {"CPU": 2.0}, 4),
        (Resources(concurrent=1), {"CPU": 2.0}, 1),
        (Resources(concurrent=9), {"CPU": 2.0}, 2),
        (Resources(gpu=1), {"CPU": 16.0, "GPU": 4.0}, 4),
        (Resources(gpu=0.25), {"CPU": 16.0, "GPU": 2.0}, 8),
        (Resources(gpu=0.4), {"CPU": 16.0, "GPU": 2.0}, 4),
        (Resources(gpu=2), {"CPU": 16.0, "GPU": 5.0}, 2),
    ],
)
def test_as_many_trials_as_fit(asked: Resources, available: dict[str, float], concurrent: int) -> None:
    assert slots(asked, available).concurrent == concurrent
    assert slots(asked, available, may_grow=True).concurrent == (asked.concurrent or concurrent)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (Resources(gpu=1), "resources.gpu: a trial asks for 1 GPU, but there are 0"),
        (Resources(cpu=3), "resources.cpu: a trial asks for 3 CPUs, but there are 2"),
    ],
)
def test_what_does_not_fit_is_refused(asked: Resources, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        slots(asked, {"CPU": 2.0})

"""Whole studies on invented learning curves, under a virtual clock, with drivers that die anywhere."""

import csv
import json
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from invented import learns
from optuna.storages.journal import JournalFileBackend

from equitune.analysis.arms import to_test
from equitune.analysis.pareto import front
from equitune.config.load import load_study
from equitune.config.study import StudySpec
from equitune.config.trial import TrialConfig
from equitune.errors import Infeasible
from equitune.records.folder import StudyFolder
from equitune.records.reader import StudyReader, StudyRecord
from equitune.search import engine, replay
from equitune.search.replay import TEST_S, DriverDied, WorkerLost
from equitune.search.storage import open_storage
from equitune.search.study_record import begin

GRID = ("search={sampler: grid, replicates: 2}", "model={name: resnet, depth: 8, width: {choice: [2, 3, 4]}}",
        "augmentation={translate: {max_px: {choice: [0, 1, 2]}}}", "training={epochs: 3}")  # fmt: skip
DIES_OFTEN = 0.15  # at an event


@pytest.fixture(autouse=True)
def quick_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What dies here is the driver, not the machine."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory, where there is such a place: a replay does little else than write."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as path:
        yield Path(path)


@pytest.fixture
def spec_of(study_file: Callable[..., Path]) -> Callable[..., StudySpec]:
    def load(sampler: str = "tpe", trials: int = 24, *changes: str) -> StudySpec:
        if sampler == "grid":
            return load_study(study_file(), (*GRID, *changes))
        return load_study(study_file(), (f"search.sampler={sampler}", f"search.trials={trials}", *changes))

    return load


def at_random(seed: int) -> Callable[[int], bool]:
    """Deaths without a pattern; always the same ones for a seed."""
    return lambda event: random.Random(f"{seed}/{event}").random() < DIES_OFTEN


def said(study: StudyRecord) -> list[dict[str, Any]]:
    """All that a study's records say, but for its times."""
    return [
        {
            "config": trial.config.to_json(),
            "epochs": [(epoch.epoch, epoch.train_loss, epoch.validation_accuracy) for epoch in trial.epochs],
            "result": trial.result and trial.result.model_dump(mode="json"),
            "test": {name: metric.value for name, metric in trial.test.items()},
        }
        for trial in study.trials
    ]


def told(folder: StudyFolder, spec: StudySpec) -> list[tuple[Any, ...]]:
    return [(trial.state, trial.values, trial.params) for trial in open_storage(folder, spec).get_trials()]


def run(path: Path, spec: StudySpec, curves: replay.Curves = learns, **settings: Any) -> StudyFolder:
    folder = StudyFolder(path / spec.study)
    replay.replay(spec, folder, curves, **settings)
    return folder


def require_same(spec: StudySpec, path: Path, curves: replay.Curves = learns, **settings: Any) -> None:
    """Whether a study whose drivers die is the undisturbed one."""
    workers = settings.get("workers", 1)
    expected, found = run(path / "undisturbed", spec, curves, workers=workers), run(path, spec, curves, **settings)
    assert told(found, spec) == told(expected, spec)
    assert said(StudyReader(found).read()) == said(StudyReader(expected).read())
    for trial in found.trials():
        lines = trial.epochs.read_text().splitlines() if trial.epochs.exists() else []
        assert len(lines) == len(trial.read_epochs()), "an epoch was trained twice"


@pytest.mark.parametrize(
    ("sampler", "workers"),
    [("tpe", 1), ("nsga2", 1), ("nsga3", 1), ("random", 1), ("random", 3), ("qmc", 3), ("grid", 1), ("grid", 4)],
)
@pytest.mark.parametrize("seed", range(2))
def test_drivers_that_die_at_random_change_nothing(
    sampler: str, workers: int, seed: int, spec_of: Callable[..., StudySpec], tmp_path: Path
) -> None:
    require_same(spec_of(sampler), tmp_path, workers=workers, dies=at_random(seed))


def require_same_after_torn_writes(spec: StudySpec, path: Path, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a study is the undisturbed one whose drivers die before or after lines of the journal and files."""
    dice, num_deaths = random.Random(0), 0

    def dying(write: Callable[..., None]) -> Callable[..., None]:
        def wrapped(*args: Any) -> None:
            nonlocal num_deaths
            dies = dice.random() < DIES_OFTEN
            num_deaths += dies
            if dies and when == "before":
                raise DriverDied
            write(*args)
            if dies:
                raise DriverDied

        return wrapped

    expected, folder = run(path / "undisturbed", spec), StudyFolder(path / spec.study)
    folder.path.mkdir()
    begin(folder, spec, None, ())
    open_storage(folder, spec)  # what dies in the making of the study leaves nothing to go on with
    with monkeypatch.context() as patch:
        patch.setattr(JournalFileBackend, "append_logs", dying(JournalFileBackend.append_logs))
        patch.setattr(engine, "write_json", dying(engine.write_json))
        run(path, spec)
    assert num_deaths > 5, "nothing was tried"
    assert told(folder, spec) == told(expected, spec)
    assert said(StudyReader(folder).read()) == said(StudyReader(expected).read())


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_drivers_that_die_within_a_write_change_nothing(
    sampler: str, when: str, spec_of: Callable[..., StudySpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_same_after_torn_writes(spec_of(sampler), tmp_path, when, monkeypatch)


def test_parameters_of_one_stream_of_random_numbers_are_caught(
    spec_of: Callable[..., StudySpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial whose driver died between two parameters, and goes on with the first draw as the second."""
    one_stream = lambda spec, number, *given: optuna.samplers.RandomSampler(seed=number)  # noqa: E731
    monkeypatch.setattr(engine, "make_sampler", one_stream)
    with pytest.raises(AssertionError, match="told|COMPLETE"):
        require_same_after_torn_writes(spec_of("random"), tmp_path, "after", monkeypatch)


def forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.Engine, "_reconcile", lambda self: [])


def repeats_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samplers go on drawing from where they are, as Optuna's do, instead of being a function of the number."""
    going_on = {}

    def make_sampler(spec: StudySpec, number: int, *given: Any) -> optuna.samplers.BaseSampler:
        return going_on.setdefault("sampler", optuna.samplers.TPESampler(seed=7, constant_liar=True))

    monkeypatch.setattr(engine, "make_sampler", make_sampler)


def begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials of dead drivers are given up, and others take their place."""

    def reconcile(self: Any) -> list[int]:
        for frozen in self._study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            self._study.tell(frozen.number, state=optuna.trial.TrialState.FAIL)
        return []

    monkeypatch.setattr(engine.Engine, "_reconcile", reconcile)


@pytest.mark.parametrize("breaks", [forgets, repeats_its_seed, begins_anew])
def test_broken_twins_are_caught(
    breaks: Callable[..., None], spec_of: Callable[..., StudySpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks(monkeypatch)
    with pytest.raises(AssertionError):
        require_same(spec_of("random"), tmp_path, dies=at_random(0))


def breaks_sometimes(config: TrialConfig) -> Iterator[tuple[float, dict[str, float]]]:
    """Every ending that a trial can have, by its number."""
    if config.number % 8 == 3:
        raise Infeasible("no such network")
    for epoch, (seconds, metrics) in enumerate(learns(config), 1):
        if config.number % 8 == 5 and epoch == 2:
            raise Infeasible("diverged")
        if config.number % 8 == 6 and epoch == 2:
            raise WorkerLost
        missing = {"translation_error": float("nan")} if config.number % 8 == 7 else {}
        yield seconds, metrics | missing


@pytest.mark.parametrize("dies", [lambda event: False, at_random(1)])
def test_every_ending_is_recorded_and_told(
    dies: Callable[[int], bool], spec_of: Callable[..., StudySpec], tmp_path: Path
) -> None:
    spec = spec_of("tpe", 16)
    folder = run(tmp_path, spec, breaks_sometimes, dies=dies)
    study = StudyReader(folder).read()
    each = ["COMPLETE"] * 3 + ["INFEASIBLE", "COMPLETE", "INFEASIBLE", "FAILED", "COMPLETE"]
    assert [trial.state for trial in study.trials] == each * 2
    each = ["COMPLETE"] * 3 + ["PRUNED", "COMPLETE", "PRUNED", "FAIL", "PRUNED"]
    assert [state.name for state, *_ in told(folder, spec)] == each * 2
    assert [len(trial.epochs) for trial in study.trials] == [2, 2, 2, 0, 2, 1, 1, 2] * 2
    assert study.trials[7].metrics["translation_error"].status == "undefined"
    assert {trial.number for trial in study.trials if trial.test} == {trial.number for trial in front(study)}
    require_same(spec, tmp_path / "again", breaks_sometimes, dies=dies)


def stops_every_other(self: engine.Engine, number: int, epoch: int, metrics: dict[str, float]) -> bool:
    if number % 2 or epoch > 1:
        return True
    result = engine.TrialResult(number=number, state="PRUNED", reason="of little promise")
    engine.write_json(self._folder.trial(number).result, result.model_dump(mode="json"))
    self.ended(number, result)
    return False


def test_a_trial_that_the_engine_stops_trains_no_further(
    spec_of: Callable[..., StudySpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.Engine, "reached", stops_every_other)
    study = StudyReader(run(tmp_path, spec_of("random"))).read()
    epochs = {state: {len(trial.epochs) for trial in study.trials if trial.state == state} for state in
              ("COMPLETE", "PRUNED")}  # fmt: skip
    assert epochs == {"COMPLETE": {2}, "PRUNED": {1}}


@pytest.mark.parametrize(("workers", "rounds"), [(1, 18), (4, 5), (18, 1)])
def test_the_clock_is_that_of_as_many_workers(
    workers: int, rounds: int, spec_of: Callable[..., StudySpec], tmp_path: Path
) -> None:
    """18 trials of 3 epochs of 2 s each; then their tests."""
    spec, folder, clock = spec_of("grid"), StudyFolder(tmp_path / "small"), replay.Clock()

    def steady(config: TrialConfig) -> Iterator[tuple[float, dict[str, float]]]:
        return ((2.0, metrics) for _, metrics in learns(config))

    tally = replay.replay(spec, folder, steady, workers=workers, clock=clock)
    study = StudyReader(folder).read()
    assert len(to_test(study)) == len(study.trials) == 18
    assert tally.epochs == 54
    assert tally.seconds == clock() - replay.START_S == rounds * (3 * 2.0 + TEST_S)
    assert max(trial.epochs[-1].time for trial in study.trials) == replay.START_S + rounds * 6.0
    assert {trial.epochs[-1].time - trial.started for trial in study.trials} == {6.0}


def test_going_on_with_more_trials_is_the_longer_study(spec_of: Callable[..., StudySpec], tmp_path: Path) -> None:
    for trials in (9, 24):
        folder = run(tmp_path, spec_of("tpe", trials))
    whole = run(tmp_path / "whole", spec_of("tpe", 24))
    assert told(folder, spec_of("tpe", 24)) == told(whole, spec_of("tpe", 24))


RECORDED = Path(__file__).parent / "curves.csv"
REAL = ("model={name: resnet, depth: 8, width: {choice: [3, 5]}}", "downsampler={choose: {stride: {}, blur3: {}}}",
        "augmentation={translate: {max_px: {choice: [0, 1, 2]}}}",
        "training={epochs: 9, lr: {choice: [5.0e-3, 1.0e-2, 2.0e-2, 4.0e-2]}}",
        "objectives={accuracy: maximize, translation_substride_error: minimize}")  # fmt: skip


def test_recorded_curves_are_a_study_of_their_own(study_file: Callable[..., Path], tmp_path: Path) -> None:
    """A whole grid on really trained networks ends with the front that the table has."""
    spec = load_study(study_file(), (*REAL, "search={sampler: grid}"))
    study = StudyReader(run(tmp_path, spec, replay.recorded_curves(RECORDED), workers=3)).read()
    rows = list(csv.DictReader(line for line in RECORDED.read_text().splitlines() if not line.startswith("#")))
    ends = [row for row in rows if row["epoch"] == "9"]
    assert len(study.trials) == len(ends) == len(rows) / 9
    points = {(float(row["accuracy"]), float(row["translation_substride_error"])) for row in ends}
    beaten = {point for point in points if any(a >= point[0] and e <= point[1] and (a, e) != point for a, e in points)}
    found = {
        (trial.metrics["accuracy"].value, trial.metrics["translation_substride_error"].value) for trial in front(study)
    }
    assert found == points - beaten
    assert all(len(trial.epochs) == 9 for trial in study.trials)


@pytest.mark.parametrize("seed", range(2))
def test_a_search_that_stops_early_on_recorded_curves_goes_on_as_if_nothing_had_died(
    seed: int, study_file: Callable[..., Path], tmp_path: Path
) -> None:
    spec = load_study(study_file(), (*REAL, "search={trials: 20, scheduler: mo_asha}"))
    curves = replay.recorded_curves(RECORDED)
    require_same(spec, tmp_path, curves, dies=at_random(seed))
    study = StudyReader(StudyFolder(tmp_path / "small")).read()
    assert {trial.state for trial in study.trials} == {"COMPLETE", "PRUNED"}
    assert {len(trial.epochs) for trial in study.trials if trial.state == "PRUNED"} <= {1, 3}


def test_what_was_not_recorded_is_an_error(study_file: Callable[..., Path], tmp_path: Path) -> None:
    spec = load_study(study_file(), (*REAL, "training.lr={choice: [7.0e-3, 8.0e-3]}"))
    with pytest.raises(KeyError, match="0.00[78]"):
        run(tmp_path, spec, replay.recorded_curves(RECORDED))


def test_a_thousand_trials(spec_of: Callable[..., StudySpec], tmp_path: Path) -> None:
    spec = spec_of("random", 1000)
    tally = replay.replay(spec, StudyFolder(tmp_path / "small"), learns, workers=8)
    study = StudyReader(StudyFolder(tmp_path / "small")).read()
    assert study.state == "complete"
    assert [trial.number for trial in study.trials] == list(range(1000))
    assert tally.epochs == 2000
    assert len({json.dumps(trial.config.params) for trial in study.trials}) == 1000


def test_an_engine_that_waits_for_nothing_is_a_bug(
    spec_of: Callable[..., StudySpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.Engine, "next_task", lambda self: "wait")
    with pytest.raises(RuntimeError, match="waits although nothing runs"):
        run(tmp_path, spec_of())

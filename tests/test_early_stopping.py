"""Early stopping against brute force, on hand-made fronts, and in whole studies whose drivers die anywhere."""

import math
import os
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SMALL_STUDY
from invented import learns

from equitune.config.load import load_study
from equitune.config.objectives import Bound
from equitune.config.stopping import SchedulerSpec
from equitune.config.study import StudySpec
from equitune.config.trial import TrialConfig
from equitune.errors import UserError
from equitune.records.folder import StudyFolder
from equitune.records.reader import StudyReader
from equitune.report.terminal import summary
from equitune.results.values import Epoch
from equitune.search import early_stopping, engine, rungs
from equitune.search.early_stopping import EarlyStopping, crowded, epsilon_net, place_of, ranked, scalarised
from equitune.search.replay import replay
from equitune.search.storage import open_storage
from equitune.search.study_record import begin

Write = Callable[..., Path]

TWO = {"accuracy": "maximize", "loss": "minimize"}
ONE = {"loss": "minimize"}


def asha(objectives: Mapping[str, str] = TWO, **settings: Any) -> EarlyStopping:
    return EarlyStopping(SchedulerSpec(name="mo_asha", **settings), objectives)


def stops(early: EarlyStopping, number: int, epoch: int = 1, **metrics: float) -> str | None:
    return early.why_stop(number, epoch) if early.hear(number, epoch, metrics) else None


def test_rungs_are_powers_below_the_last_epoch() -> None:
    spec = SchedulerSpec(name="mo_asha", reduction=3, first_epoch=1)
    assert spec.rungs(1) == ()
    assert spec.rungs(9) == (1, 3)
    assert spec.rungs(10) == (1, 3, 9)
    assert SchedulerSpec(name="median", reduction=2, first_epoch=5).rungs(41) == (5, 10, 20, 40)
    assert [epoch for epoch in range(1, 30) if spec.is_rung(epoch)] == [1, 3, 9, 27]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("reduction", [2, 3, 4])
def test_with_one_objective_it_is_asha(seed: int, reduction: int) -> None:
    """A trial goes on where fewer than a share of those heard of so far are strictly better: by counting, with ties."""
    rng, early, seen = np.random.default_rng(seed), asha(ONE, reduction=reduction), []
    for number in range(60):
        loss = float(rng.integers(12))
        seen.append(loss)
        stopped = stops(early, number, loss=loss) is not None
        better = sum(other < loss for other in seen)
        assert stopped == (len(seen) >= reduction and better >= math.ceil(len(seen) / reduction))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_ranks_are_those_of_peeling_fronts_by_brute_force(seed: int, objectives: int) -> None:
    rng = np.random.default_rng(seed)
    losses = rng.integers(5, size=(30, objectives)).astype(float)  # with ties and duplicates
    left, rank, expected = set(range(30)), 0, {}
    while left:
        front = {
            i for i in left if not any((losses[j] <= losses[i]).all() and (losses[j] < losses[i]).any() for j in left)
        }
        expected |= dict.fromkeys(front, rank)
        left, rank = left - front, rank + 1
    table = np.column_stack([losses, np.zeros(30)])
    assert ranked(table).tolist() == [expected[i] for i in range(30)]
    for ties in ("epsilon_net", "crowding"):
        found = [place_of(i, table, ranked(table), ties) for i in range(30)]
        for i in range(30):
            for j in range(30):
                assert not expected[i] < expected[j] or found[i] < found[j]
                assert not (losses[i] == losses[j]).all() or found[i] == found[j]


def test_who_violates_constraints_comes_after_all_who_do_not() -> None:
    table = np.array([[0.0, 0.0, 0.2], [5.0, 5.0, 0.0], [0.0, 0.0, 0.1], [4.0, 6.0, 0.0], [9.0, 9.0, 0.2]])
    assert ranked(table).tolist() == [2, 0, 1, 0, 2]
    early = EarlyStopping(SchedulerSpec(name="mo_asha", reduction=2), TWO, {"parameters": Bound(at_most=100)})
    assert stops(early, 0, accuracy=0.1, loss=9.0, parameters=100) is None
    assert stops(early, 1, accuracy=0.9, loss=0.1, parameters=101) is not None
    assert stops(early, 2, accuracy=0.2, loss=8.0) is None  # of what was not measured nothing is known


FRONT = np.array([[0.0, 1.0], [0.05, 0.9], [0.1, 0.8], [0.5, 0.5], [1.0, 0.0]])


def test_an_epsilon_net_goes_to_the_farthest_first() -> None:
    assert epsilon_net(FRONT) == [0, 4, 3, 2, 1]
    assert epsilon_net(FRONT * [1, 1000]) == [0, 4, 3, 2, 1]  # whatever the units are
    assert epsilon_net(np.ones((3, 2))) == [0, 1, 2]
    rng = np.random.default_rng(0)
    points = rng.random((20, 3))
    scaled = (points - points.min(0)) / np.ptp(points, axis=0)
    order = epsilon_net(points)
    assert sorted(order) == list(range(20))
    for k in range(1, 20):  # each is at least as far from those before as any that follows
        nearest = [min(np.linalg.norm(scaled[i] - scaled[j]) for j in order[:k]) for i in order[k:]]
        assert nearest[0] == pytest.approx(max(nearest))


def test_crowding_goes_to_the_ends_and_then_where_there_is_room() -> None:
    assert crowded(FRONT) == [0, 4, 3, 2, 1]  # rooms inf, inf, 0.9 + 0.8, 0.45 + 0.4, 0.1 + 0.2
    assert crowded(np.ones((1, 2))) == [0]


@pytest.mark.parametrize("ties", ["epsilon_net", "crowding"])
def test_of_one_large_front_a_share_goes_on(ties: str) -> None:
    early = asha(reduction=3, ties=ties)
    xs = np.random.default_rng(1).permutation(90) / 90
    stopped = [stops(early, number, accuracy=x, loss=x) is not None for number, x in enumerate(xs)]
    assert 90 * 0.4 < sum(stopped) < 90 * 0.75  # later ones are judged among more


def test_without_a_tie_break_nobody_of_a_front_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken twin: all of a front share its first place."""

    def by_rank(mine: int, table: Any, ranks: Any, ties: str) -> int:
        return int((ranks < ranks[mine]).sum())

    monkeypatch.setattr(early_stopping, "place_of", by_rank)
    with pytest.raises(AssertionError):
        test_of_one_large_front_a_share_goes_on("epsilon_net")


def test_a_verdict_says_why() -> None:
    early = asha(reduction=3)
    for number, accuracy in enumerate((0.9, 0.8, 0.7)):
        said = stops(early, number, accuracy=accuracy, loss=1 - accuracy)
    assert said == "rank 3 of 3, place 3 of 3 trials, of which the first goes on"
    said = stops(early, 3, accuracy=0.6, loss=0.4)
    assert said == "rank 4 of 4, place 4 of 4 trials, of which the first 2 go on"  # a third, rounded up


@pytest.mark.parametrize("metrics", [{}, {"accuracy": 0.1}, {"accuracy": 0.1, "loss": math.nan}, {"accuracy": math.inf, "loss": 1.0}])  # fmt: skip
def test_what_has_no_value_stops_nobody_and_counts_nowhere(metrics: dict[str, float]) -> None:
    early = asha(reduction=2)
    for number in range(6):
        assert stops(early, number, accuracy=0.9, loss=0.1) is None
    assert stops(early, 6, **metrics) is None
    assert stops(early, 7, accuracy=0.8, loss=0.2) == "rank 2 of 2, place 7 of 7 trials, of which the first 4 go on"


def test_a_verdict_is_given_once_and_only_at_rungs() -> None:
    early = asha(reduction=2)
    assert stops(early, 0, accuracy=0.5, loss=0.5) is None
    assert stops(early, 1, accuracy=0.9, loss=0.1) is None
    assert stops(early, 0, accuracy=0.5, loss=0.5) is None  # heard again after its worker was lost
    assert not early.hear(2, 3, {"accuracy": 0.1, "loss": 0.9})  # epoch 3 of rungs 1, 2, 4
    assert stops(early, 2, 2, accuracy=0.1, loss=0.9) is None  # the first there


def test_median_stops_who_is_worse_than_the_median_of_complete_trials() -> None:
    early = EarlyStopping(SchedulerSpec(name="median", min_trials=3), TWO)
    for number, accuracy in enumerate((0.2, 0.4, 0.6)):
        assert stops(early, number, accuracy=accuracy, loss=1 - accuracy) is None
        assert stops(early, 10 + number, accuracy=0.0, loss=1.0) is None  # too few are complete
        early.complete(number)
    assert stops(early, 20, accuracy=0.5, loss=0.5) is None
    assert stops(early, 21, accuracy=0.4, loss=0.6) is None  # as good as the median
    said = stops(early, 22, accuracy=0.3, loss=0.7)
    assert said is not None
    assert "the median of 3 complete trials there" in said
    assert scalarised(np.array([[0.0, 0.0, 0.0], [1.0, 5.0, 0.0], [0.5, 5.0, 0.0]])).tolist() == [0.0, 2.0, 1.5]
    with_violation = scalarised(np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 0.1]]))
    assert with_violation[1] > with_violation[0]


# Whole studies.

STOPPING = "search={trials: 27, seed: 7, sampler: random, scheduler: mo_asha}"


@pytest.fixture(autouse=True)
def quick_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What dies here is the driver, not the machine."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def spec(study_file: Write) -> StudySpec:
    return load_study(study_file(), (STOPPING, "training={epochs: 9, lr: {float: [1e-3, 1e-2], log: true}}"))


def run(path: Path, spec: StudySpec, **settings: Any) -> StudyFolder:
    folder = StudyFolder(path / spec.study)
    replay(spec, folder, learns, **settings)
    return folder


def test_a_study_stops_trials_and_says_so(spec: StudySpec, tmp_path: Path) -> None:
    folder = run(tmp_path, spec)
    study = StudyReader(folder).read()
    assert study.state == "complete"
    states = [trial.state for trial in study.trials]
    assert states.count("COMPLETE") + states.count("PRUNED") == 27
    assert 5 <= states.count("PRUNED") <= 22
    for trial in study.trials:
        last = trial.epochs[-1].epoch
        assert trial.config.rungs == (1, 3)
        assert [epoch.epoch for epoch in trial.epochs if epoch.metrics] == [at for at in (1, 3) if at <= last]
        assert last == 9 if trial.state == "COMPLETE" else last in (1, 3)
        if trial.state == "PRUNED":
            assert trial.reason is not None
            assert trial.reason.startswith(f"stopped at epoch {last} of 9: rank ")
            assert not folder.trial(trial.number).checkpoint.exists()
    saved = sum(9 - len(trial.epochs) for trial in study.trials)
    assert f"  early stopping saved {saved} of 243 epochs" in summary(study)


@pytest.mark.parametrize("deaths", [{3}, {4, 7, 20}, set(range(3, 400, 5))])
def test_drivers_that_die_anywhere_stop_the_same_trials(spec: StudySpec, deaths: set[int], tmp_path: Path) -> None:
    expected = StudyReader(run(tmp_path / "undisturbed", spec)).read()
    found = StudyReader(run(tmp_path, spec, dies=deaths.__contains__)).read()
    assert [(trial.state, trial.reason) for trial in found.trials] == [
        (trial.state, trial.reason) for trial in expected.trials
    ]


def forgets_rungs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begins each driver with empty rungs."""
    monkeypatch.setattr(rungs.EarlyStopping, "hear", _only_live(rungs.EarlyStopping.hear))


def _only_live(hear: Any) -> Any:
    import sys

    def heard(self: Any, *args: Any) -> bool:
        return False if sys._getframe(1).f_code.co_name == "recorded_rungs" else hear(self, *args)

    return heard


def never_judges_orphans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "last_rung", lambda folder, early: None)
    monkeypatch.setattr(EarlyStopping, "rungs_before", lambda self, epoch: ())


@pytest.mark.parametrize("broken", [forgets_rungs, never_judges_orphans])
def test_twins_that_rebuild_nothing_are_caught(
    broken: Callable[[pytest.MonkeyPatch], None], spec: StudySpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = StudyReader(run(tmp_path / "undisturbed", spec)).read()
    broken(monkeypatch)
    found = StudyReader(run(tmp_path, spec, dies=lambda event: random.Random(event).random() < 0.2)).read()
    assert [trial.state for trial in found.trials] != [trial.state for trial in expected.trials]


def test_rungs_by_counting_calls_compare_late_values_with_early_ones(
    spec: StudySpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken twin: as Tune's `training_iteration`, which begins again with each driver."""
    expected = StudyReader(run(tmp_path / "undisturbed", spec)).read()
    reached = engine.Engine.reached

    def by_calls(self: Any, number: int, epoch: int, metrics: Any) -> bool:
        counts = self.__dict__.setdefault("counts", {})
        counts[number] = counts.get(number, 0) + 1
        values = {"accuracy": 0.1 * epoch, "translation_error": 0.5}
        return reached(self, number, counts[number], metrics or values)

    monkeypatch.setattr(engine.Engine, "reached", by_calls)
    found = StudyReader(run(tmp_path, spec, dies=set(range(2, 400, 5)).__contains__)).read()
    assert [trial.state for trial in found.trials] != [trial.state for trial in expected.trials]


def test_a_rung_whose_report_was_lost_with_its_worker_is_heard_of_at_the_next_epoch(
    spec: StudySpec, tmp_path: Path
) -> None:
    folder = StudyFolder(tmp_path / "small")
    folder.path.mkdir()
    begin(folder, spec, None, ())
    search = engine.Engine(spec, folder, open_storage(folder, spec))
    best = {"accuracy": 0.9, "translation_error": 0.1}
    for _ in range(3):
        task = search.next_task()
        assert isinstance(task, engine.Task)
        if task.number < 2:
            assert search.reached(task.number, 1, best)
    last = Epoch(epoch=1, time=1.7e9, train_loss=1, validation_loss=1, validation_accuracy=0.1, lr=0.1, train_s=1,
                 images_per_s=1, metrics={"accuracy": 0.1, "translation_error": 0.9})  # fmt: skip
    folder.trial(2).append_epoch(last)
    assert not search.reached(2, 2, {})
    reason = StudyReader(folder).read().trials[2].reason
    assert reason is not None
    assert reason.startswith("stopped at epoch 1 of 9")
    assert search.reached(0, 1, best)  # heard twice: nothing new


def test_the_most_recent_trials_of_a_rung_are_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten good ones, then six bad ones: the best of the bad ones goes on where six are ranked."""
    for most, goes_on in ((6, True), (1000, False)):
        monkeypatch.setattr(early_stopping, "MOST_RANKED", most)
        early = asha(ONE)
        for number in range(10):
            stops(early, number, loss=0.1)
        for number in range(10, 15):
            stops(early, number, loss=0.9)
        reason = stops(early, 15, loss=0.5)
        assert (reason is None) == goes_on
        assert reason is None or reason.startswith("rank 2 of 3, place 11 of 16 trials")


def test_a_baseline_is_measured_at_rungs_and_never_stopped(study_file: Write, tmp_path: Path) -> None:
    baseline = "{model.width: 2, augmentation.translate.max_px: 0.0, training.lr: 0.001}"
    search = STOPPING.replace("trials", f"baseline: {baseline}, trials")
    spec = load_study(study_file(), (search, "training={epochs: 9, lr: {float: [1e-3, 1e-2], log: true}}"))

    def slow_and_bad_at_first(config: TrialConfig) -> Iterator[tuple[float, Mapping[str, float]]]:
        good = 0.9 - 0.01 * config.number if config.number else 0.1
        for _ in range(config.training.epochs):
            yield 1.0 if config.number else 5.0, {"accuracy": good, "translation_error": 1 - good}

    folder = StudyFolder(tmp_path / "small")
    replay(spec, folder, slow_and_bad_at_first, workers=8)
    trials = StudyReader(folder).read().trials
    assert trials[0].state == "COMPLETE"
    assert trials[0].epochs[0].metrics
    assert [trial.state for trial in trials[1:]].count("PRUNED") > 15


def test_a_trial_has_rungs_below_its_own_epochs(study_file: Write) -> None:
    spec = load_study(study_file(), (STOPPING, "training={epochs: {choice: [2, 30]}}"))
    for epochs, expected in ((2, (1,)), (30, (1, 3, 9, 27))):
        config = spec.suggest(0, lambda name, values, epochs=epochs: epochs if name == "training.epochs" else 2)  # type: ignore[misc]
        assert config.rungs == expected
        assert config.rung_images == 64


@pytest.mark.parametrize(
    ("search", "sentence"),
    [
        ("{sampler: grid, scheduler: mo_asha}", "search.scheduler: a design trains each of its trials to the end"),
        ("{scheduler: asha}", "search.scheduler.name: must be one of 'mo_asha', 'median' or 'none', but got 'asha'"),
        ("{scheduler: {reduction: 3}}", "search.scheduler.name: is required"),
        ("{scheduler: {name: mo_asha, reduction: 1}}", "search.scheduler.reduction: must be >= 2, but got 1"),
        ("{scheduler: {name: median, ties: crowding}}", "search.scheduler.ties: only mo_asha has ties to break"),
        ("{scheduler: {name: mo_asha, rung: 1}}", "search.scheduler.rung: unknown name"),
    ],
)
def test_mistakes_are_said_in_a_sentence(search: str, sentence: str, study_file: Write) -> None:
    text = SMALL_STUDY.replace("{trials: 4, seed: 7}", search)
    with pytest.raises(UserError) as caught:
        load_study(study_file(text))
    assert sentence in str(caught.value)


def test_a_scheduler_that_stops_nothing_is_said(study_file: Write) -> None:
    notices = load_study(study_file(), ("search.scheduler={name: median, first_epoch: 2}",)).notices()
    assert "search.scheduler stops nothing: its first rung is epoch 2, of at most 2" in notices
    assert load_study(study_file(), ("search.scheduler=none",)).search.scheduler is None

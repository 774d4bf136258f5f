"""Budgets on a virtual clock: what ends a study, what then still runs, what a larger budget goes on with."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SMALL_STUDY

from equitune.analysis.hypervolume import hypervolume
from equitune.config.load import load_study
from equitune.config.plateau import Plateau
from equitune.config.search import SearchSpec
from equitune.config.study import StudySpec
from equitune.config.trial import TrialConfig
from equitune.errors import UserError
from equitune.records.folder import StudyFolder, read_json
from equitune.records.reader import StudyReader
from equitune.report.terminal import summary
from equitune.search.budget import Growth, Usage
from equitune.search.engine import Engine
from equitune.search.replay import Clock, replay
from equitune.search.storage import open_storage
from equitune.search.study_record import begin, record_end

Write = Callable[..., Path]

EPOCH_S = 90.0
REFERENCES = (
    "objectives={accuracy: {direction: maximize, reference: 0}, translation_error: {direction: minimize, reference: 1}}"
)


@pytest.fixture(autouse=True)
def quick_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)


def steady(config: TrialConfig) -> Iterator[tuple[float, Mapping[str, float]]]:
    """Ten epochs of 90 s, 15 minutes a trial; each trial is better than the one before, by less and less."""
    good = 1 - 0.5 ** (config.number + 1)
    for _ in range(10):
        yield EPOCH_S, {"accuracy": good, "translation_error": 1 - good}


@pytest.fixture
def spec_of(study_file: Write) -> Callable[..., StudySpec]:
    def load(search: str, *changes: str) -> StudySpec:
        every = ("training={epochs: 10}", f"search={{seed: 7, sampler: random, {search}}}")
        return load_study(study_file(), (*every, *changes))

    return load


def run(path: Path, spec: StudySpec, **settings: Any) -> StudyFolder:
    folder = StudyFolder(path / spec.study)
    replay(spec, folder, steady, **settings)
    record_end(folder, engine_of(folder, spec))
    return folder


def engine_of(folder: StudyFolder, spec: StudySpec) -> Engine:
    return Engine(spec, folder, open_storage(folder, spec), now=Clock())


def epochs(folder: StudyFolder) -> list[int]:
    return [len(trial.epochs) for trial in StudyReader(folder).read().trials]


def states(folder: StudyFolder) -> list[str]:
    return [trial.state for trial in StudyReader(folder).read().trials]


def test_hours_stop_what_runs_and_more_hours_go_on_with_it(spec_of: Callable[..., StudySpec], tmp_path: Path) -> None:
    spec = spec_of("trials: 8, hours: 0.6")  # 36 minutes: two trials of 15, and 6 minutes
    folder = run(tmp_path, spec)
    assert states(folder) == ["COMPLETE", "COMPLETE", "RUNNING"]
    assert epochs(folder) == [10, 10, 4]
    study = StudyReader(folder).read()
    assert study.state == "complete"
    assert study.ended_by == "hours: 0.6 of 0.6"
    assert "  ended by hours: 0.6 of 0.6" in summary(study)
    assert study.trials[1].test, "the front was not tested"
    assert engine_of(folder, spec).is_done()
    more = spec_of("trials: 8, hours: 0.8")
    assert more.fingerprint() == spec.fingerprint()
    run(tmp_path, more)
    assert states(folder) == ["COMPLETE"] * 3 + ["RUNNING"]
    assert sum(epochs(folder)) in (31, 32)  # 48 minutes of 90 s, less what testing took
    run(tmp_path, spec_of("trials: 5, hours: 9"))
    assert states(folder) == ["COMPLETE"] * 5
    assert StudyReader(folder).read().ended_by == "trials: 5 of 5"


def test_a_study_that_its_hours_have_ended_stays_ended(spec_of: Callable[..., StudySpec], tmp_path: Path) -> None:
    """Its last seconds are written down too, though less than 5 s have passed since the last time."""

    def quick(config: TrialConfig) -> Iterator[tuple[float, Mapping[str, float]]]:
        yield from ((2.0, metrics) for _, metrics in steady(config))

    spec, folder = (
        spec_of("trials: 9, hours: 0.01112"),
        StudyFolder(tmp_path / "small"),
    )  # 40.03 s: two trials, and half a third
    replay(spec, folder, quick)
    assert epochs(folder) == [10, 10, 1]
    assert engine_of(folder, spec).is_done()
    assert replay(spec, folder, quick).epochs == 0


def test_gpu_hours_count_every_trial_that_runs(spec_of: Callable[..., StudySpec], tmp_path: Path) -> None:
    spec = spec_of("trials: 8, gpu_hours: 0.5", "resources.gpu=0.5")  # three trials at a time: 1.5 GPUs, 20 minutes
    folder = run(tmp_path, spec, workers=3)
    assert states(folder) == ["COMPLETE"] * 3 + ["RUNNING"] * 3
    assert epochs(folder) == [10, 10, 10, 4, 4, 4]
    assert read_json(folder.usage)["gpu_s"] == pytest.approx(14 * EPOCH_S * 3 * 0.5)
    assert StudyReader(folder).read().ended_by == "gpu_hours: 0.525 of 0.5"


@pytest.mark.parametrize("deaths", [{5, 11, 30}, {3, 14, 27, 40}])
def test_time_is_counted_over_drivers_that_die(
    deaths: set[int], spec_of: Callable[..., StudySpec], tmp_path: Path
) -> None:
    folder = run(tmp_path, spec_of("trials: 8, hours: 0.6"), dies=deaths.__contains__)
    # A death forgets what was not written for 5 s: here an epoch, for Tune's loop, which ticks, is not replayed.
    assert 24 <= sum(epochs(folder)) <= 24 + len(deaths)
    assert StudyReader(folder).read().ended_by is not None


def test_usage_is_written_every_few_seconds(tmp_path: Path) -> None:
    clock, file = Clock(), tmp_path / "usage.json"
    usage = Usage(file, clock)
    for _ in range(4):
        clock.now_s += 2
        usage.count(gpus=0.5)
    assert usage.wall_s == 8
    assert json.loads(file.read_text()) == {"format": 2, "wall_s": 6, "gpu_s": 3}
    clock.now_s += 1000  # dead
    again = Usage(file, clock)
    clock.now_s += 6
    again.count(gpus=2)
    assert json.loads(file.read_text()) == {"format": 2, "wall_s": 12, "gpu_s": 15}
    file.write_text("{")
    assert Usage(file, clock).wall_s == 0


def test_a_target_lets_those_that_run_finish(spec_of: Callable[..., StudySpec], tmp_path: Path) -> None:
    spec = spec_of("trials: 30, hypervolume: 0.7", REFERENCES)  # 0.25, 0.5625, 0.766
    folder = run(tmp_path / "one", spec)
    assert states(folder) == ["COMPLETE"] * 3
    assert StudyReader(folder).read().ended_by == "hypervolume: 0.7656 of 0.7"
    several = run(tmp_path / "two", spec, workers=4)
    assert states(several) == ["COMPLETE"] * (3 + 3)  # three of the next ones had begun, or less
    assert engine_of(folder, spec).is_done()
    larger = spec_of("trials: 30, hypervolume: 0.9", REFERENCES)
    assert larger.fingerprint() == spec.fingerprint()
    assert not engine_of(folder, larger).is_done()


@pytest.mark.parametrize("references", [(), (REFERENCES,)])
def test_a_plateau_ends_a_study(references: tuple[str, ...], spec_of: Callable[..., StudySpec], tmp_path: Path) -> None:
    folder = run(tmp_path, spec_of("trials: 40, plateau: {trials: 4, gain: 0.02}", *references))
    assert 8 < len(states(folder)) < 14
    said = StudyReader(folder).read().ended_by
    assert said is not None
    assert said.startswith("plateau: ")
    assert said.endswith("% of hypervolume gained by the last 4 trials")


@pytest.mark.parametrize("reference", [(1.0, 1.0), (None, 1.0), (None, None)])
def test_a_plateau_by_brute_force(reference: tuple[float | None, ...]) -> None:
    rng = np.random.default_rng(0)
    plateau = Plateau(trials=5, gain=0.05)
    for _ in range(20):
        growth, seen = Growth(SearchSpec(plateau=plateau), reference), []
        for _ in range(60):
            row = rng.random(2) if rng.random() < 0.8 else np.full(2, np.nan)
            growth.add(row)
            seen.append(row)
            table = np.array(seen)
            finite = table[np.isfinite(table).all(1)]
            if len(seen) <= 5 or not len(finite):
                continue
            worst = [high if given is None else given for given, high in zip(reference, finite.max(0), strict=True)]
            now, before = hypervolume(table, worst), hypervolume(table[:-5], worst)
            enough = before > 0 and now <= 1.05 * before
            assert (growth.had_enough is not None) == enough
            if enough:
                break
        growth.add(np.zeros(2))
        assert growth.had_enough is not None  # it stays so


def test_a_plateau_without_gain_ends_where_nothing_is_gained() -> None:
    growth = Growth(SearchSpec(plateau=Plateau(trials=3, gain=0)), (1.0, 1.0))
    for loss in (0.5, 0.4, 0.4, 0.4):
        growth.add(np.array([loss, loss]))
        assert growth.had_enough is None
    growth.add(np.array([0.9, 0.9]))
    assert growth.had_enough == "plateau: 0.00% of hypervolume gained by the last 3 trials"


def test_what_a_warm_start_has_brought_is_no_plateau() -> None:
    """Five trials brought, in whatever order, and three of its own; without that number it ends before its first."""
    search, rows = SearchSpec(plateau=Plateau(trials=3)), [np.array([0.5, 0.5])] * 8
    warm, cold = Growth(search, (1.0, 1.0), 5), Growth(search, (1.0, 1.0))
    for row in rows[:7]:
        warm.add(row)
        cold.add(row)
    assert cold.had_enough is not None
    assert warm.had_enough is None
    warm.add(rows[7])
    assert warm.had_enough is not None
    target = Growth(SearchSpec(hypervolume=0.2), (1.0, 1.0), 5)
    target.add(rows[0])
    assert target.had_enough is not None  # it is reached, whoever has reached it


def test_a_study_that_began_anew_knows_its_growth(spec_of: Callable[..., StudySpec], tmp_path: Path) -> None:
    spec = spec_of("trials: 30, hypervolume: 0.9", REFERENCES)
    expected = run(tmp_path / "undisturbed", spec)
    found = run(tmp_path, spec, dies=set(range(5, 400, 7)).__contains__)
    assert states(found) == states(expected)


def test_a_drained_study_is_not_ended(spec_of: Callable[..., StudySpec], tmp_path: Path) -> None:
    spec, folder = spec_of("trials: 3, hours: 1"), StudyFolder(tmp_path / "small")
    folder.path.mkdir()
    begin(folder, spec, None, ())
    assert StudyReader(folder).read().state == "interrupted"
    assert StudyReader(folder).read().ended_by is None


@pytest.mark.parametrize(
    ("search", "sentence"),
    [
        ("{gpu_hours: 2}", "search.gpu_hours: a trial uses no GPU, as resources.gpu is 0"),
        ("{hypervolume: 0.5}", "search.hypervolume: a target needs a reference of each objective, but accuracy, translation_error"),
        ("{hours: 0}", "search.hours: must be > 0.0, but got 0"),
        ("{plateau: {trials: 0}}", "search.plateau.trials: must be >= 1, but got 0"),
        ("{plateau: 20}", "search.plateau: must be a mapping"),
        ("{plateau: {gains: 0.1}}", "search.plateau.gains: unknown name"),
    ],
)  # fmt: skip
def test_mistakes_are_said_in_a_sentence(search: str, sentence: str, study_file: Write) -> None:
    with pytest.raises(UserError) as caught:
        load_study(study_file(SMALL_STUDY.replace("{trials: 4, seed: 7}", search)))
    assert sentence in str(caught.value)


def test_a_target_that_no_front_can_reach_is_refused(study_file: Write) -> None:
    accuracy = "objectives={accuracy: {direction: maximize, reference: 0.4}}"
    with pytest.raises(
        UserError, match=r"hypervolume=0.7: no front has more than 0.6 below these references, but got 0.7"
    ):
        load_study(study_file(), (accuracy, "search.hypervolume=0.7"))
    load_study(study_file(), (accuracy, "search.hypervolume=0.5"))
    and_error = "objectives={accuracy: {direction: maximize, reference: 0.4}, parameters: {direction: minimize, reference: 1000}}"
    load_study(study_file(), (and_error, "search.hypervolume=600"))
    with pytest.raises(UserError, match="no front has more than 600"):
        load_study(study_file(), (and_error, "search.hypervolume=601"))


def test_a_design_is_not_cut_short_by_its_front(study_file: Write) -> None:
    grid = "{sampler: grid, plateau: {trials: 3}}"
    text = SMALL_STUDY.replace("{trials: 4, seed: 7}", grid).replace("{int: [2, 4]}", "2")
    text = text.replace("{float: [0, 2]}", "{choice: [0.0, 1.0]}").replace(", lr: {float: [1e-3, 1e-2], log: true}", "")
    with pytest.raises(UserError, match="search.plateau: a design trains each of its cells: leave it out"):
        load_study(study_file(text))


def test_trials_that_were_not_asked_for_are_said(study_file: Write) -> None:
    text = SMALL_STUDY.replace("{trials: 4, seed: 7}", "{hours: 2}")
    notice = "search.trials is 20 where nothing is said: the study ends there, if not by hours"
    assert notice in load_study(study_file(text)).notices()

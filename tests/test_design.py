"""Designs, and what they conclude: cells against brute force, intervals and paired differences against scipy."""

import csv
import io
import json
import math
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from equitune.analysis.arms import Interval, arms, to_test
from equitune.config.design import factorial, levels
from equitune.config.load import load_study
from equitune.config.space import Choice, FloatRange, IntRange
from equitune.config.study import StudySpec
from equitune.config.trial import TrialConfig
from equitune.errors import UserError
from equitune.records.folder import StudyFolder, write_json
from equitune.records.reader import StudyReader, StudyRecord
from equitune.report.arms import arms_table, write_answer
from equitune.report.machine import as_json
from equitune.report.terminal import StudyView, answer
from equitune.results.values import Measurement, TrialResult
from equitune.search.recorded import recorded_params
from equitune.search.study_record import begin

Write = Callable[..., Path]

GRID = """\
study: grid
model: {name: resnet, depth: 8, width: {choice: [2, 4]}}
prior: {choose: {conv: {padding: {choice: [zero, circular]}}, p4: {}}}
augmentation: {choose: {none: {}, shifts: {translate: {max_px: {float: [1, 2], step: 0.5}}}}}
objectives: {accuracy: maximize, parameters: minimize}
search: {sampler: grid, replicates: 4, seed: 3}
"""


def mistakes(write: Write, text: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_study(write(text))
    return [line.split("study.yaml:")[-1] for line in str(caught.value).splitlines()]


def test_a_factorial_has_every_combination_once_and_asks_within_its_branch(study_file: Write) -> None:
    spec = load_study(study_file(GRID))
    priors = [
        {"prior": "conv", "prior.conv.padding": "zero"},
        {"prior": "conv", "prior.conv.padding": "circular"},
        {"prior": "p4"},
    ]
    at = "augmentation.shifts.translate.max_px"
    shifts = [{"augmentation": "none"}, *({"augmentation": "shifts", at: px} for px in (1.0, 1.5, 2.0))]
    expected = [{"model.width": width} | prior | shift for width in (2, 4) for prior in priors for shift in shifts]
    assert spec.cells == factorial(spec.sections()) == expected
    assert spec.search.trials == 4 * len(expected) == 96
    for number, cell in enumerate(expected):  # the walk that makes a trial asks for just these
        assert spec.suggest(number, lambda name, _, cell=cell: cell[name]).params == cell  # type: ignore[misc]


def test_the_levels_of_each_distribution() -> None:
    assert levels(Choice(choice=("a", None, True))) == ("a", None, True)
    assert levels(IntRange.model_validate({"int": [1, 4], "step": 1})) == (1, 2, 3, 4)
    assert levels(IntRange.model_validate({"int": [2, 8], "step": 3})) == (2, 5, 8)
    assert levels(FloatRange.model_validate({"float": [0, 0.3], "step": 0.1})) == (0.0, 0.1, 0.2, 0.3)
    assert levels(IntRange.model_validate({"int": [1, 4]})) is None
    assert levels(FloatRange.model_validate({"float": [0, 1]})) is None
    assert levels(FloatRange.model_validate({"float": [1, 1]})) == (1,)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            "model: {name: resnet, width: {int: [2, 4]}}",
            "3:23 model.width: a grid needs every value: give the range a step, or list values as {choice: [...]}",
        ),
        (
            "model: resnet\ntraining: {choose: {a: {lr: {float: [1e-3, 1], log: true}}}}",
            "4:25 training.choose.a.lr: a grid needs every value",
        ),
        (
            "model: {name: resnet, width: {choice: [2, 4]}}\nsearch: {sampler: grid, replicates: 2, trials: 5}",
            "4:40 search.trials: 2 cells and 2 replicates are 4 trials, but got 5: leave it out",
        ),
        (
            "model: {name: resnet, width: {int: [1, 1000], step: 1}}\n"
            "training: {epochs: {int: [1, 1000], step: 1}}\nsearch: {sampler: grid, replicates: 3}",
            "5:10 search.sampler: 1,000,000 cells and 3 replicates are 3,000,000 trials, but a design has at most 10,000",
        ),
        (
            "model: resnet\nsearch: {replicates: 3}",
            "4:10 search.replicates: only a design has replicates, but the sampler is tpe: set design: factorial",
        ),
    ],
)
def test_each_mistake_of_a_design_has_its_sentence(line: str, sentence: str, study_file: Write) -> None:
    search = "" if "search" in line else "\nsearch: {sampler: grid}"
    (found,) = mistakes(study_file, f"study: s\nobjectives: {{accuracy: maximize}}\n{line}{search}")
    assert found.startswith(sentence)


HEAD = "study: s\nobjectives: {accuracy: maximize}\n"
SPACE = """\
model: {name: resnet, depth: {choice: [8, 14]}, width: {int: [4, 8], step: 2}}
prior: {choose: {conv: {padding: {choice: [zero, circular]}}, p4: {}}}
augmentation: {translate: {max_px: {float: [0.1, 0.3], step: 0.1}}}
"""
PX = "augmentation.translate.max_px"
BASELINE = {"model.depth": 8, "model.width": 6, "prior": "conv", "prior.conv.padding": "zero", PX: 0.3}


def one_at_a_time(write: Write, **search: Any) -> StudySpec:
    return load_study(write(HEAD + SPACE + json.dumps({"search": {"design": "one_at_a_time", **search}})[1:-1]))


def test_one_at_a_time_is_every_cell_that_differs_from_the_baseline_in_one_parameter(study_file: Write) -> None:
    spec = one_at_a_time(study_file, baseline=BASELINE, replicates=3)
    every = load_study(study_file(HEAD + SPACE + "search: {sampler: grid}")).cells
    differing = {
        json.dumps(cell, sort_keys=True)
        for cell in every
        if sum(cell.get(name) != value for name, value in BASELINE.items() if name in cell) <= 1
    }
    assert {json.dumps(cell, sort_keys=True) for cell in spec.cells} == differing
    assert spec.cells[0] == BASELINE
    assert len(spec.cells) == 1 + 1 + 2 + 1 + 1 + 2
    assert spec.search.trials == 3 * len(spec.cells)
    for place in range(spec.search.trials):  # the walk that makes a trial asks for just these
        cell = spec.given(place)
        assert cell is not None
        config = spec.suggest(place, lambda name, _, cell=cell: cell[name])  # type: ignore[misc]
        assert (config.params, config.replicate, config.cell) == (cell, place // len(spec.cells), place)


def test_the_branch_that_is_switched_to_takes_its_values_from_the_baseline(study_file: Write) -> None:
    baseline = {name: value for name, value in BASELINE.items() if name != "prior.conv.padding"} | {"prior": "p4"}
    with pytest.raises(UserError, match=r"baseline: must give .* lacks prior.conv.padding \(one_at_a_time switches to"):
        one_at_a_time(study_file, baseline=baseline)
    cells = one_at_a_time(study_file, baseline=baseline | {"prior.conv.padding": "circular"}).cells
    assert cells[0] == baseline
    assert [cell for cell in cells if cell["prior"] == "conv"] == [BASELINE | {"prior.conv.padding": "circular"}]


def test_a_baseline_is_first_in_a_factorial_and_with_a_sampler(study_file: Write) -> None:
    without = load_study(study_file(HEAD + SPACE + "search: {sampler: grid}"))
    for word in ("sampler: grid", "design: factorial"):
        spec = load_study(study_file(HEAD + SPACE + f"search: {{{word}, baseline: {json.dumps(BASELINE)}}}"))
        assert spec.cells[0] == BASELINE
        assert sorted(map(str, spec.cells)) == sorted(map(str, without.cells))
    assert load_study(study_file(HEAD + SPACE + "search: {design: factorial}")).fingerprint() == without.fingerprint()
    sampled = load_study(study_file(HEAD + SPACE + f"search: {{trials: 5, baseline: {json.dumps(BASELINE)}}}"))
    assert [sampled.given(number) for number in (0, 1)] == [BASELINE, None]


LEFT_OUT = """\
model: {name: resnet, depth: 8, width: {choice: [4, 8]}}
prior: {choose: {p4: {padding: {choice: [zero, circular]}}, conv: {}}}
downsampler: aps
augmentation: {translate: {max_px: 1}, hflip: {}}
search: {design: leave_one_out, baseline: {model.width: 4, prior: p4, prior.p4.padding: circular}, replicates: 2}
"""


def test_leaving_a_component_out_is_the_study_without_its_line(study_file: Write) -> None:
    spec = load_study(study_file(HEAD + LEFT_OUT))
    left_out = ["nothing", "prior", "downsampler", "augmentation.translate", "augmentation.hflip"]
    assert [cell["without"] for cell in spec.cells] == left_out
    assert next(iter(spec.parameters())) == "without"
    line = {
        "prior": ("prior: ", ""),
        "downsampler": ("downsampler: ", ""),
        "augmentation.translate": ("augmentation: ", "augmentation: {hflip: {}}"),
        "augmentation.hflip": ("augmentation: ", "augmentation: {translate: {max_px: 1}}"),
        "nothing": ("study: ", "study: s"),
    }
    for place, cell in enumerate(spec.cells):
        found = spec.suggest(place, lambda name, _, cell=cell: cell[name])  # type: ignore[misc]
        begins, instead = line[str(cell["without"])]
        lines = [instead if text.startswith(begins) else text for text in (HEAD + LEFT_OUT).splitlines()]
        lines = [text for text in lines if not text.startswith("search")]
        study = load_study(study_file("\n".join(lines)), ("search={}",))
        own = {name: value for name, value in cell.items() if name != "without"}
        expected = study.suggest(0, lambda name, _, own=own: own[name])  # type: ignore[misc]
        same = {"number", "seed", "cell", "replicate", "params"}
        assert found.model_dump(exclude=same) == expected.model_dump(exclude=same)
        assert expected.params == own  # nothing that such a trial does not have


def test_toggles_set_one_parameter_after_the_other_back(study_file: Write) -> None:
    best = {"model.depth": 14, "model.width": 6, "prior": "p4", PX: 0.1}
    search = {"design": "toggles", "baseline": BASELINE, "best": best}
    spec = load_study(study_file(HEAD + SPACE + json.dumps({"search": search})[1:-1]))
    assert spec.cells == [
        best,
        best | {"model.depth": 8},
        best | {"prior": "conv", "prior.conv.padding": "zero"},
        best | {PX: 0.3},
        BASELINE,
    ]
    assert spec.notices() == []
    one = BASELINE | {"model.width": 8}
    spec = load_study(study_file(HEAD + SPACE + json.dumps({"search": search | {"best": one}})[1:-1]))
    assert spec.cells == [one, BASELINE]
    assert spec.notices() == [
        "search.best: model.width alone differs; set back it is the baseline, which is trained once"
    ]


def test_the_best_may_be_a_recorded_trial(tmp_path: Path, study_file: Write) -> None:
    design = f"search: {{design: toggles, baseline: {json.dumps(BASELINE)}, best: other/3}}"
    best = {**BASELINE, "model.depth": 14}
    write_json(tmp_path / "other" / "study.json", {})
    write_json(tmp_path / "other" / "trials" / "00003" / "config.json", {"params": best})
    recorded = partial(recorded_params, tmp_path)
    assert load_study(study_file(HEAD + SPACE + design), recorded=recorded).search.best == best
    for name, sentence in {
        "othr/3": "unknown study 'othr': did you mean 'other'?",
        "other/4": "study other has no trial 4: its trials are 3 to 3",
        "other": "must be parameters with their values, or a recorded trial, STUDY/NUMBER, but got 'other'",
    }.items():
        with pytest.raises(UserError) as caught:
            load_study(study_file(HEAD + SPACE + design.replace("other/3", name)), recorded=recorded)
        assert f"study.yaml:6:160 search.best: {sentence}" in str(caught.value)
    best["model.width"] = 5
    write_json(tmp_path / "other" / "trials" / "00003" / "config.json", {"params": best})
    with pytest.raises(UserError, match=r"search.best.model.width: must be 4 plus a multiple of 2, but got 5"):
        load_study(study_file(HEAD + SPACE + design), recorded=recorded)


B = json.dumps(BASELINE)


@pytest.mark.parametrize(
    ("search", "sentence"),
    [
        ("design: one_at_a_time", "6:10 search.design: design: one_at_a_time needs a baseline, such as"),
        ("baseline: [1]", "6:10 search.baseline: must be a mapping from parameters to values, but got [1]"),
        ("baseline: {model: {depth: 8}}", "6:21 search.baseline.model: takes one value, but got a mapping"),
        (f"baseline: {B.replace('8', '9')}", "search.baseline.model.depth: must be one of 8, 14, but got 9"),
        (f"baseline: {B.replace('8', 'true')}", "search.baseline.model.depth: must be one of 8, 14, but got True"),
        (f"baseline: {B.replace('6', '5')}", "search.baseline.model.width: must be 4 plus a multiple of 2, but got 5"),
        (f"baseline: {B.replace('6', '10')}", "search.baseline.model.width: must lie between 4 and 8, but got 10"),
        (f"baseline: {B.replace('6', '6.0')}", "search.baseline.model.width: must be a whole number, but got 6.0"),
        (f"baseline: {B.replace('model.depth', 'depth')}", "search.baseline.depth: unknown parameter 'depth': did you"),
        (f"baseline: {B.replace('conv', 'p4', 1)}", "search.baseline.prior.conv.padding: belongs to a branch that is"),
        ("baseline: {prior: p4}", "6:10 search.baseline: must give each parameter a value, but lacks model.depth, mod"),
        (f"design: one_at_a_time, baseline: {B}, sampler: tpe", "search.sampler: a design lists its trials, and no tpe"),
        (f"design: factorial, best: {B}", "6:29 search.best: is for design: toggles, but the design is factorial"),
        (f"best: {B}", "6:10 search.best: is what design: toggles takes apart: set that design, or leave it out"),
        (f"design: toggles, baseline: {B}", "6:10 search.design: design: toggles needs a best"),
        (f"design: toggles, baseline: {B}, best: {B}", "search.best: equals the baseline: there is nothing to set back"),
        (f"design: toggles, baseline: {B}, best: a/1", "search.best: must be a mapping from parameters to values, or S"),
        ("design: leave_one_out", "6:10 search.design: leave_one_out trains one value of each parameter, but model.depth"),
        (f"design: one_at_a_time, baseline: {B}, trials: 7", "search.trials: 8 cells and 1 replicate are 8 trials, but"),
        ("design: ofat", "6:10 search.design: must be one of 'factorial', 'one_at_a_time', 'leave_one_out' or 'toggles'"),
        (f"design: one_at_a_time, baseline: {B}, replicates: 5000", "search.design: 8 cells and 5000 replicates are 40,"),
    ],
)  # fmt: skip
def test_each_mistake_of_a_baseline_has_its_place(search: str, sentence: str, study_file: Write) -> None:
    (found,) = mistakes(study_file, HEAD + SPACE + f"search: {{{search}}}")
    assert sentence in found


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("model: resnet", "search.design: leave_one_out needs a prior, a downsampler, a stem, an averaging or augment"),
        ("model: resnet\nprior: conv", "4:1 prior: the study is the same without it: leave the line out, or name anot"),
        (
            "model: resnet\naugmentation: {hflip: {}, translate: {max_px: 0}}",
            "4:27 augmentation.translate: the study is the same without it",
        ),
    ],
)
def test_a_component_that_changes_nothing_is_no_arm(lines: str, sentence: str, study_file: Write) -> None:
    (found,) = mistakes(study_file, HEAD + lines + "\nsearch: {design: leave_one_out}")
    assert sentence in found


def test_arms_that_train_the_same_are_refused(study_file: Write) -> None:
    lines = "model: resnet\naugmentation: {choose: {none: {}, a: {translate: {max_px: {choice: [0, 1]}}}}}\n"
    baseline = "{augmentation: a, augmentation.a.translate.max_px: %s}"
    (found,) = mistakes(study_file, HEAD + lines + f"search: {{design: one_at_a_time, baseline: {baseline % 0}}}")
    assert "the arms augmentation none and augmentation a, augmentation.a.translate.max_px 0 train the same" in found


@pytest.mark.parametrize(("design", "place"), [("sampler: grid", "sampler"), ("design: factorial", "design")])
def test_a_design_of_a_billion_cells_is_refused_without_making_them(design: str, place: str, study_file: Write) -> None:
    line = "model: {name: resnet, width: {int: [1, 1000], step: 1}}\ntraining: {epochs: {int: [1, 1000000], step: 1}}\n"
    (found,) = mistakes(study_file, HEAD + line + f"search: {{{design}}}")
    assert f"search.{place}: 1,000,000,000 cells and 1 replicate are 1,000,000,000 trials" in found
    (found,) = mistakes(
        study_file, HEAD + line + "search: {design: one_at_a_time, baseline: {model.width: 3, training.epochs: 5}}"
    )
    assert "1,000,999 cells" in found


def test_a_recorded_trial_without_a_replicate_is_readable(small_config: TrialConfig) -> None:
    old = small_config.to_json()
    assert old.pop("replicate") == 0
    assert TrialConfig.from_json_text(json.dumps(old)) == small_config


@pytest.mark.parametrize("n", [2, 3, 10])
def test_the_interval_is_students(n: int) -> None:
    values = np.random.default_rng(n).normal(3, 2, n)
    interval = Interval.of(values)
    low, high = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
    assert (interval.n, interval.mean, interval.sd) == (
        n,
        pytest.approx(values.mean()),
        pytest.approx(values.std(ddof=1)),
    )
    assert (interval.low, interval.high) == (pytest.approx(low), pytest.approx(high))
    assert interval.half == pytest.approx((high - low) / 2)


def test_the_interval_in_closed_form_and_where_there_is_none() -> None:
    pair = Interval.of([0.0, 2.0])  # t(1) at 97.5 % is tan(0.475 pi), the standard error 1
    assert pair.high - 1 == pytest.approx(math.tan(0.475 * math.pi))
    assert (Interval.of([5.0, 5.0, 5.0]).low, Interval.of([5.0, 5.0, 5.0]).high) == (5.0, 5.0)
    assert Interval.of([7.0]).mean == 7.0
    assert math.isnan(Interval.of([7.0]).low)
    assert Interval.of([]).n == 0


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).normal(1, 1, (2000, 5))
    covered = np.mean([(interval := Interval.of(row)).low <= 1 <= interval.high for row in draws])
    assert covered == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 2000))
    naive = np.mean([abs(row.mean() - 1) <= 1.96 * row.std() / math.sqrt(5) for row in draws])  # the broken twin
    assert naive < 0.9


# Accuracies by (width, replicate); the replicate moves all arms alike, as paired seeds do.
EFFECT = {2: 0.0, 4: 0.02}
LUCK = [0.1, -0.05, 0.03, -0.08]


def accuracy(width: int, replicate: int) -> float:
    return 0.7 + EFFECT[width] + LUCK[replicate] + 0.001 * (replicate - 1.5) * (width - 3)


def play(
    path: Path, spec: StudySpec, change: dict[int, dict[str, Any]] | None = None, tested: bool = False
) -> StudyRecord:
    folder = StudyFolder(path)
    begin(folder, spec, None, ())
    for number in range(spec.search.trials):
        replicate, cell = number // len(spec.cells), spec.given(number)
        config = spec.suggest(number, lambda name, _, cell=cell: cell[name])  # type: ignore[misc]
        write_json(folder.trial(number).config, config.to_json())
        width = config.model.args["width"]
        value = accuracy(width, replicate)
        metrics = {
            "accuracy": Measurement(value=value, stderr=0.01, n=90, split="validation"),
            "parameters": Measurement(value=100.0 * width, n=0, split="none"),
        }
        result = TrialResult(number=number, state="COMPLETE", metrics=metrics)
        result = result.model_copy(update=(change or {}).get(number, {}))
        write_json(folder.trial(number).result, result.model_dump(mode="json"))
        if tested:
            on_test = {"accuracy": Measurement(value=value - 0.1, n=90, split="test").model_dump(mode="json")}
            write_json(folder.trial(number).test, on_test)
    return StudyReader(folder).read()


@pytest.fixture
def spec(study_file: Write) -> StudySpec:
    return load_study(study_file(GRID), ("prior=conv", "augmentation={}"))


def test_arms_are_summarised_and_compared_in_pairs(tmp_path: Path, spec: StudySpec) -> None:
    first, second = arms(play(tmp_path / "grid", spec))
    assert [arm.params for arm in (first, second)] == [{"model.width": 2}, {"model.width": 4}]
    assert [trial.number for trial in second.trials] == [1, 3, 5, 7]
    values = {width: np.array([accuracy(width, replicate) for replicate in range(4)]) for width in (2, 4)}
    summary, difference = second.summary("accuracy"), second.difference(first, "accuracy")
    assert summary.mean == pytest.approx(values[4].mean())
    assert summary.sd == pytest.approx(values[4].std(ddof=1))
    paired = stats.ttest_rel(values[4], values[2])
    interval = paired.confidence_interval(0.95)
    assert (difference.low, difference.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert difference.low > 0
    unpaired = stats.ttest_ind(values[4], values[2]).confidence_interval(0.95)  # the broken twin sees nothing
    assert unpaired.low < 0 < unpaired.high
    counted = second.difference(first, "parameters")
    assert (counted.mean, counted.low, counted.high) == (200, 200, 200)


def test_trials_without_a_value_count_in_no_interval(tmp_path: Path, spec: StudySpec) -> None:
    collapsed = {"accuracy": Measurement(value=None, n=90, split="validation", status="collapsed")}
    failed = {"state": "FAILED", "reason": "x", "metrics": {}}
    study = play(tmp_path / "grid", spec, {0: failed, 3: {"metrics": collapsed}})
    first, second = arms(study)
    assert sorted(first.by_replicate("accuracy")) == [1, 2, 3]
    assert sorted(second.by_replicate("accuracy")) == [0, 2, 3]
    assert second.difference(first, "accuracy").n == 2
    assert second.difference(first, "unheard_of").n == 0
    assert "3 of 4" in text_of(arms_table(study))
    relaxed = {"metrics": {name: Measurement(value=0.1, n=0, split="none") for name in ("accuracy", "relaxation")}}
    table = text_of(arms_table(play(tmp_path / "other", spec, {0: relaxed}), ("relaxation",)))
    assert "1 of 4" in table  # of the arm that has it once
    assert "0 of 4" not in table  # the other has none, and all its accuracies
    assert [trial.number for trial in to_test(study)] == [1, 2, 3, 4, 5, 6, 7]


def text_of(table: object, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_the_table_shows_arms_and_the_test_split_once_all_are_tested(tmp_path: Path, spec: StudySpec) -> None:
    before = text_of(answer(play(tmp_path / "a", spec)))
    mean = np.mean([accuracy(2, replicate) for replicate in range(4)])
    assert f"{mean:.4f} ± " in before
    assert "validation split" in before
    assert "+0.0200 ± 0.00" in before
    after = play(tmp_path / "b", spec, tested=True)
    assert f"{mean - 0.1:.4f} ± " in text_of(answer(after))
    assert "test split" in text_of(answer(after))
    assert "-0.0200 ± 0.00" in text_of(arms_table(after, against=1))
    assert "parameters" in text_of(answer(after, ("parameters",)))
    with pytest.raises(UserError, match="--against 2: the study has arms 0 to 1"):
        arms_table(after, against=2)
    with pytest.raises(UserError, match="--metric acuracy: unknown metric 'acuracy': did you mean 'accuracy'"):
        arms_table(after, ("acuracy",))


def test_arms_are_written_as_csv_and_json(tmp_path: Path, spec: StudySpec) -> None:
    study = play(tmp_path / "grid", spec, tested=True)
    paths = write_answer(study, tmp_path)
    assert [path.name for path in paths] == ["front.png", "front.html", "front.csv", "arms.csv"]
    rows = list(csv.DictReader(paths[-1].open()))
    assert [(row["arm"], row["split"], row["metric"]) for row in rows] == [
        (arm, split, metric)
        for arm in "01"
        for split, metric in product(("validation", "test"), ("accuracy", "parameters"))  # which need no images
    ]
    first, second = arms(study)
    assert float(rows[6]["mean"]) == second.summary("accuracy", "test").mean
    assert float(rows[6]["difference_low"]) == second.difference(first, "accuracy", "test").low
    assert (rows[6]["n"], rows[6]["model.width"], rows[6]["complete"]) == ("4", "4", "4")
    found = as_json(study)["arms"]
    assert found[1]["params"] == {"model.width": 4}
    assert found[1]["trials"] == [1, 3, 5, 7]
    assert found[1]["metrics"]["test"]["accuracy"]["mean"] == second.summary("accuracy", "test").mean
    assert found[1]["metrics"]["validation"]["accuracy"]["difference"]["n"] == 4
    assert json.dumps(found, allow_nan=False)


def test_a_study_without_replicates_has_its_front(tmp_path: Path, study_file: Write) -> None:
    spec = load_study(study_file(GRID), ("prior=conv", "augmentation={}", "search.replicates=1"))
    study = play(tmp_path / "grid", spec)
    assert "trial" in text_of(answer(study))
    assert as_json(study)["arms"] == []
    assert [path.name for path in write_answer(study, tmp_path)] == ["front.png", "front.html", "front.csv"]
    assert [trial.number for trial in to_test(study)] == [1, 0]


def test_the_live_view_shows_arms(tmp_path: Path, spec: StudySpec) -> None:
    play(tmp_path / "grid", spec)
    assert "difference from arm 0" in text_of(StudyView(StudyFolder(tmp_path / "grid"), Console())._live(), 120)

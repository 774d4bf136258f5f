"""What people see: pictures, pages, tables and the terminal, from invented results."""

import csv
import io
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from invented import add_trial, invent
from PIL import Image
from rich.console import Console, Group

from equitune.config.load import load_study
from equitune.config.study import StudySpec
from equitune.measuring.compare import Request, measure_models
from equitune.records.folder import StudyFolder, write_json
from equitune.records.reader import StudyReader
from equitune.report import terminal
from equitune.report.front import exact_under, shown, write_front
from equitune.report.measured import lines
from equitune.report.profile import draw_profiles, write_profile
from equitune.report.terminal import StudyView, answer, duration, front_table, summary
from equitune.results.values import Measurement


def text_of(renderable: object, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize("num_trials", [0, 1, 6])
@pytest.mark.parametrize("objectives", ["{accuracy: maximize}", "{accuracy: maximize, translation_error: minimize}",
                                        "{accuracy: maximize, translation_error: minimize, parameters: minimize}"])  # fmt: skip
def test_every_front_can_be_drawn(
    num_trials: int, objectives: str, tmp_path: Path, study_file: Callable[..., Path]
) -> None:
    spec = load_study(study_file(), (f"objectives={objectives}",))
    study = StudyReader(invent(tmp_path / "small", spec, num_trials)).read()
    picture, page, table = write_front(study, tmp_path)
    with Image.open(picture) as image:
        assert image.width > 800
    assert page.stat().st_size > 1_000_000  # carries plotly's script: opens offline
    assert not re.search(r"<(script|link)[^>]+(src|href)=", page.read_text())
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == num_trials


def test_the_page_and_the_table_hold_what_was_measured(tmp_path: Path, small_spec: StudySpec) -> None:
    states = {1: "FAILED", 2: "INFEASIBLE"}
    study = StudyReader(invent(tmp_path / "small", small_spec, 5, states=states, tested=(4,))).read()
    _, page, table = write_front(study, tmp_path)
    rows = {row["trial"]: row for row in csv.DictReader(table.open())}
    assert rows["4"]["front"] == "True"
    assert float(rows["4"]["accuracy"]) == pytest.approx(0.82)
    assert float(rows["4"]["test_accuracy"]) == 0.6
    assert rows["1"]["state"] == "FAILED"
    assert rows["1"]["accuracy"] == ""
    assert rows["4"]["exact_under"] == "translation, c4 (at first)"
    text = page.read_text().encode().decode("unicode_escape", errors="ignore")
    assert "<b>trial 4</b>" in text
    assert "exact under: translation, c4 (at first)" in text


def test_nothing_in_a_study_reaches_the_page_as_markup(tmp_path: Path, study_file: Callable[..., Path]) -> None:
    spec = load_study(study_file(), ('augmentation={choose: {"<script>alert(1)</script>": {}, none: {}}}',))
    study = StudyReader(invent(tmp_path / "small", spec, 4)).read()
    _, page, _ = write_front(study, tmp_path)
    assert "<script>alert" not in page.read_text()
    assert "alert(1)" in page.read_text()


def test_what_is_exact_is_said_in_a_few_words(tmp_path: Path, small_spec: StudySpec) -> None:
    folder = invent(tmp_path / "small", small_spec, 2)

    recorded = json.loads(folder.trial(0).result.read_text())
    del recorded["exact"]

    def said(**fields: object) -> str:
        write_json(folder.trial(0).result, recorded | fields)
        return exact_under(StudyReader(folder).read().trials[0])

    held: dict[str, object] = {}
    every = dict.fromkeys(("translation", "translation_substride", "c4", "d4"), held)
    assert said(exact=every) == "translation_substride, d4"
    assert said(exact={"translation": held, "c4": {"loosened_by": "stem: w"}}) == "translation, c4 (at first)"
    assert said(exact={"translation": {"broken_by": "stem: a border"}}) == "–"
    assert said() == "–"  # a result that was recorded without


def test_a_profile_is_drawn_where_there_is_one(tmp_path: Path, small_spec: StudySpec) -> None:
    study = StudyReader(invent(tmp_path / "small", small_spec, 2, states={1: "FAILED"})).read()
    assert write_profile(study.trials[0], tmp_path / "profile.png")
    with Image.open(tmp_path / "profile.png") as image:
        assert image.width > 800
    assert not write_profile(study.trials[1], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_a_picture_has_a_panel_for_each_quantity_and_for_several_models_each_set(tmp_path: Path) -> None:
    row = {"group": "translation", "set": "lattice", "layer": "stem", "depth": 0.5, "status": "ok", "n": 8}
    of_output = row | {"set": "shift y", "lie_derivative": 1.0}  # of no axis that the picture has
    rows = [
        row | {"error": 0.5, "error_stderr": 0.1, "correlation": 0.5, "correlation_stderr": 0.1},
        *(row | {"set": name, "lie_error": 0.5, "lie_error_stderr": 0.1} for name in ("shift y", "shift x")),
        of_output,
    ]
    sizes = []
    for models in ({"one": rows}, {"one": rows, "two": rows}):
        assert draw_profiles(models, "", tmp_path / "profile.png")
        with Image.open(tmp_path / "profile.png") as image:
            sizes.append((image.width // 550, image.height // 430))
    assert sizes == [(3, 1), (2, 2)]
    assert not draw_profiles({"one": [of_output]}, "", tmp_path / "none.png")


def test_a_measurement_fits_a_terminal_and_says_which_layers_are_exact(tmp_path: Path) -> None:
    names = ("resnet:depth=8,width=2,prior.padding=circular", "resnet:depth=8,width=2")
    request = Request(models=names, data="digits:size=12", images=16, measures=("equivariance",))
    several = text_of(Group(*lines(measure_models(request, root=tmp_path, folder=tmp_path))), 80)
    for metric in ("translation_error", "translation_invariance_correlation"):
        assert re.search(
            rf"^{metric} +[-\d.]+ +[-\d.]+ +[-+][\d.]+ +\[[-+][\d.]+, [-+][\d.]+\]$", several, re.MULTILINE
        )
    exact = []
    for name in names:
        alone = request.model_copy(update={"models": (name,)})
        text = text_of(Group(*lines(measure_models(alone, root=tmp_path, folder=tmp_path))), 80)
        lattice = text[text.index("equivariance of translation, lattice") : text.index("translation, substride")]
        assert all(len(line) <= 80 for line in lattice.splitlines())
        exact.append(re.findall(r"^(\S+) +\d +\S+ +exact ", lattice, re.MULTILINE))
    assert exact == [["stem", "stages.0.0", "stages.1.0", "stages.2.0", "last", "output"], []]


def test_the_front_in_the_terminal(tmp_path: Path, small_spec: StudySpec) -> None:
    study = StudyReader(invent(tmp_path / "small", small_spec, 5, tested=(3, 4))).read()
    text = text_of(front_table(study), 80)
    assert "accuracy ↑" in text
    assert "error ↓" in text
    assert "0.8200 ± 0.0200" in text
    assert "test 0.6000 ± 0.0200" in text
    assert len(text_of(front_table(study, 2)).splitlines()) < len(text.splitlines())
    assert max(map(len, text.splitlines())) <= 80


def test_what_was_chosen_is_said_below_where_it_does_not_fit(
    tmp_path: Path, small_spec: StudySpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = StudyReader(invent(tmp_path / "small", small_spec, 3)).read()
    assert "trial 2:" not in text_of(answer(study), 80)  # three parameters have a column each
    monkeypatch.setattr(terminal, "MOST_PARAMS", 2)
    text = text_of(answer(study), 80)
    assert re.search(r"^trial 2: width \d+, translate.max_px [\d.]+, lr [\d.]+$", text, re.MULTILINE)
    assert "max_px\n" not in text


def test_the_summary_counts_states_and_gives_reasons(tmp_path: Path, small_spec: StudySpec) -> None:
    folder = invent(tmp_path / "small", small_spec, 3, states={1: "FAILED", 2: "RUNNING"})
    lines = summary(StudyReader(folder).read())
    assert lines[0] == "small: interrupted, 2 of 4 trials (1 COMPLETE, 1 FAILED, 1 RUNNING)"
    assert lines[1] == '  trial 1 FAILED: because of <b>"1"</b>'


def test_plain_lines_where_there_is_no_terminal(tmp_path: Path, small_spec: StudySpec) -> None:
    folder = invent(tmp_path / "small", small_spec, 1)
    console = Console(file=io.StringIO(), width=200)
    view = StudyView(folder, console)
    with view.showing():
        view.say("looking")
        add_trial(folder, small_spec, 1)
        add_trial(folder, small_spec, 2, "INFEASIBLE")
        time.sleep(1.2)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "looking" in text
    assert "2/4 trial 1 COMPLETE: accuracy 0.5800 ± 0.0200, translation_error" in text
    assert '3/4 trial 2 INFEASIBLE: because of <b>"2"</b>' in text
    assert "trial 0" not in text  # it had ended before
    assert "\x1b" not in text


def test_the_live_view_shows_what_runs(tmp_path: Path, small_spec: StudySpec) -> None:
    folder = invent(tmp_path / "small", small_spec, 3, states={2: "RUNNING"})
    folder.trial(2).claim()
    write_json(folder.driver, {"pid": os.getpid(), "host": "here"})
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    view = StudyView(folder, console)
    text = text_of(view._live())
    assert "2 of 4 trials" in text
    assert "trial 2: measuring, accuracy 0.620" in text
    assert "accuracy ↑" in text


def test_the_live_view_shows_what_is_used_of_a_budget_of_time(tmp_path: Path, study_file: Callable[..., Path]) -> None:
    gpus = ("search={hours: 8, gpu_hours: 1.5}", "resources.gpu=0.5")
    spec = load_study(study_file(), gpus)
    folder = invent(tmp_path / "small", spec, 1)
    view = StudyView(folder, Console(file=io.StringIO(), width=120, force_terminal=True))
    assert "starting; 0 of 8 hours; 0 of 1.5 GPU-hours" in text_of(view._live())
    write_json(folder.usage, {"wall_s": 7.995 * 3600, "gpu_s": 1800.0})
    add_trial(folder, spec, 1)
    os.utime(folder.trial(1).config, (time.time() - 60,) * 2)
    text = text_of(view._live())
    assert "8 of 8 hours; 0.5 of 1.5 GPU-hours" in text
    assert "about 18 s left" in text  # however long the other trials would take
    assert "hours" not in text_of(
        StudyView(invent(tmp_path / "b" / "small", load_study(study_file())), Console())._live()
    )


def test_a_study_that_has_just_begun_is_shown_too(tmp_path: Path) -> None:
    assert "starting" in text_of(StudyView(StudyFolder(tmp_path / "new"), Console(file=io.StringIO()))._live())


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        (Measurement(value=0.12345, stderr=0.01, n=9, split="test"), "0.1235 ± 0.0100"),
        (Measurement(value=68800.0, n=0, split="none"), "68,800"),
        (Measurement(value=None, n=9, split="test", status="collapsed"), "collapsed"),
        (None, "–"),
    ],
)
def test_a_number_is_shown_with_its_error_or_its_reason(metric: Measurement | None, text: str) -> None:
    assert shown(metric) == text


@pytest.mark.parametrize(("seconds", "text"), [(5, "5 s"), (100, "2 min"), (7200, "2.0 h")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_records_are_read_again_only_where_they_can_change(tmp_path: Path, small_spec: StudySpec) -> None:
    folder = invent(tmp_path / "small", small_spec, 2, states={1: "RUNNING"})
    reader = StudyReader(folder)
    first = reader.read()
    with folder.trial(1).epochs.open("a") as file:
        file.write('{"epoch": 3, "torn')
    second = reader.read()
    assert second.trials[0] is first.trials[0]
    assert [epoch.epoch for epoch in second.trials[1].epochs] == [1, 2]
    write_json(folder.trial(0).test, {"accuracy": Measurement(value=1.0, n=2, split="test").model_dump(mode="json")})
    assert reader.read().trials[0].test["accuracy"].value == 1.0


def test_a_heartbeat_tells_a_running_study_from_an_interrupted_one(tmp_path: Path, small_spec: StudySpec) -> None:
    folder = invent(tmp_path / "small", small_spec, 1)
    assert StudyReader(folder).read().state == "interrupted"
    folder.driver.write_text(json.dumps({}))
    assert StudyReader(folder).read().state == "running"
    os.utime(folder.driver, (1, 1))
    assert StudyReader(folder).read().state == "interrupted"
    for number in range(1, 4):
        add_trial(folder, small_spec, number)
    assert StudyReader(folder).read().state == "complete"

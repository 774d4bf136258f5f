"""The report: its page as text and in Chromium, its other formats, and studies that have little to say."""

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from invented import add_trial, invent
from made import made
from prerequisites import CHROMIUM, require

import equitune
from equitune.cli import cli
from equitune.config.load import load_study
from equitune.config.objectives import Bound
from equitune.config.study import StudySpec
from equitune.errors import UserError
from equitune.records.folder import StudyFolder, write_json
from equitune.records.reader import StudyReader
from equitune.report import figures, panels
from equitune.report.files import write_tables
from equitune.report.front import GREY, interactive_front, plain
from equitune.report.page import inert, page
from equitune.report.parts import Chapter, Picture, Section, Table
from equitune.report.sections import chapter_of

EVIL = "</script><script>alert('x')</script><img src=x onerror=alert(1)> \"q\" & 漢字 עברית"


def text_of(folder: StudyFolder) -> str:
    return page([chapter_of(StudyReader(folder).read(), folder)])


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=True)


def test_the_page_says_everything_and_asks_nobody(tmp_path: Path, small_spec: StudySpec) -> None:
    folder = invent(tmp_path / "small", small_spec, 30, states={4: "FAILED", 7: "INFEASIBLE"}, tested=(29,))
    folder.searchspace.write_text("# Question: does width\n#   matter?\n# Command: x\nstudy: small\n")
    text = text_of(folder)
    for heading in ("What was asked, and what ran", "What was found", "The front", "Hypervolume over time", "Importance",
                    "Equivariance over depth", "Equivariance against accuracy", "Augmentation", "Capacity",
                    "Trials that did not complete", "Controls and chance levels", "How to run it again"):  # fmt: skip
        assert heading in text
    assert "does width matter?" in text
    assert "28 COMPLETE, 1 FAILED, 1 INFEASIBLE" in text
    assert "equitune search" in text
    assert len(text) < 5_000_000
    without_data = re.sub(r'<script type="text/plain".*?</script>', "", text, flags=re.S)
    assert not re.search(r'(src|href|action)="(?!#)', without_data)
    assert not re.search(r"url\((?!#)", without_data)
    assert "fetch(" not in without_data


@pytest.mark.parametrize(
    ("ui", "base"), [(None, "http://127.0.0.1:5000"), ("https://tracking.example", "https://tracking.example")]
)
def test_trials_link_to_their_runs(ui: str | None, base: str, tmp_path: Path, small_spec: StudySpec) -> None:
    folder = invent(tmp_path / "small", small_spec, 3)
    write_json(folder.runs, {"ui": ui, "experiment": "7", "runs": {"2": "abc"}})
    figure = json.loads(re.findall(r'data-figure="[^"]*front[^"]*">(.*?)</script>', text_of(folder))[0])
    links = {
        text: link
        for trace in figure["data"]
        if "text" in trace
        for text, link in zip(trace["text"], trace["customdata"], strict=True)
    }
    assert links["2"] == f"{base}/#/experiments/7/runs/abc"
    assert links["1"] is None


def test_links_stand_in_the_table_and_are_web_addresses(tmp_path: Path, small_spec: StudySpec) -> None:
    folder = invent(tmp_path / "small", small_spec, 3)
    for ui, is_linked in (("https://tracking.example", True), ("javascript:alert(1)//", False)):
        write_json(folder.runs, {"ui": ui, "experiment": "7", "runs": {"2": "abc"}})
        text = text_of(folder)
        assert (f'<td class="number"><a href="{ui}/#/experiments/7/runs/abc">2</a></td>' in text) == is_linked
        assert ui in text or not is_linked
        assert "javascript:" not in text


def test_names_are_text_in_the_interactive_front() -> None:
    """plotly reads its labels as HTML of its own, with links."""
    evil = '<a href="https://evil.example">accuracy</a>'
    study = made(
        [{evil: 0.5, "other<b>": 0.1, "third<i>": 2.0}] * 2,
        {evil: "maximize", "other<b>": "minimize", "third<i>": "minimize"},
    )
    assert not re.search("<(a|i)|<b>(?!trial)", json.dumps(interactive_front(study)))
    assert "&lt;a href" in json.dumps(interactive_front(study))


@pytest.mark.parametrize(
    "cell",
    [
        "=1+1",
        "@SUM(A1)",
        "+1+cmd|' /C calc'!A0",
        "-x",
        "\t=1",
        "\n=1+1",
        " =1",
        "\ufeff@x",
        "＝1+1",
        "＋1",
        "－1",
        "＠x",
    ],
)
def test_no_cell_of_csv_is_a_formula(cell: str) -> None:
    assert plain(cell) == f"'{cell}"
    for number in ("+0.0299", "-1.5e-3", "+0.0100 to -0.0300", "-0.5000 ± 0.0100", 0.5, -1, None, "relu"):
        assert plain(number) == number


def test_violating_and_pruned_trials_are_said_with_their_reasons() -> None:
    rows = [{"accuracy": 0.5 + i / 10, "translation_error": i / 10, "parameters": 100.0 * i} for i in range(1, 5)]
    rows.append({"accuracy": 0.1, "translation_error": 0.1, "state": "PRUNED"})
    study = made(rows, constraints={"parameters": Bound(at_most=250)}, info={"created": 0.0})
    chapter = chapter_of(study, StudyFolder(Path("none")))
    tables = {part.name: part for part in chapter.parts() if isinstance(part, Table)}
    assert [row[:2] for row in tables["endings"].rows] == [["2", "COMPLETE"], ["3", "COMPLETE"], ["4", "PRUNED"]]
    assert "250" in tables["endings"].rows[0][2]
    assert ["constraints", "parameters at most 250"] in tables["study"].rows
    assert [row[0] for row in tables["front"].rows] == ["1", "0"]
    assert not any("test" in name for name in tables["front"].header)
    drawn = figures.scatter(study, [*study.feasible(), study.trials[3]], {0, 1}, "translation_error", "accuracy")
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["violates a constraint", "front"]


def test_a_page_shows_a_part_of_a_long_table_and_says_so(tmp_path: Path) -> None:
    table = Table("long", ["trial"], [[str(i)] for i in range(100)])
    chapter = Chapter("x", [Section("long", "Long", [table])])
    text = page([chapter])
    assert text.count("<tr><td") == 60
    assert "40 more: equitune report --format csv." in text
    (path,) = write_tables([chapter], tmp_path)
    assert len(path.read_text().splitlines()) == 101


def test_axes_follow_what_their_parameter_was_drawn_from() -> None:
    """Logarithmic where the study draws so, whatever the range of what was drawn; numbers in their order."""
    space = {"training": {"lr": {"float": [0.001, 0.003], "log": True}}, "augmentation": {"deg": {"float": [0, 45]}},
             "model": {"depth": {"choice": [8, 14]}}}  # fmt: skip
    rows = [
        {"training.lr": 0.001 + i / 5000, "augmentation.deg": 0.1 + 4.0 * i, "model.depth": (8, 14)[i % 2]}
        | {"accuracy": 0.5, "translation_error": 0.1 * i, "parameters": 1.0}
        for i in range(10)
    ]
    names = ["training.lr", "augmentation.deg", "model.depth"]
    study = made(rows, varied=names, info={"identity": space})
    pictures = {
        part.name: part for section in panels.panels(study) for part in section.parts if isinstance(part, Picture)
    }
    scales = {name: pictures[f"{name.replace('.', '-')}-translation_error"].draw().axes[0] for name in names}
    assert scales["training.lr"].get_xscale() == "log"
    assert scales["augmentation.deg"].get_xscale() == "linear"  # though it spans a factor of 361
    assert [text.get_text() for text in scales["model.depth"].get_xticklabels()] == ["8", "14"]


def test_a_colour_is_not_spent_on_an_error_next_to_zero() -> None:
    three = {"accuracy": "maximize", "translation_error": "minimize", "d4_error": "minimize"}
    rows = [{"accuracy": i / 9, "translation_error": i / 9, "d4_error": 2e-8 if not i else i / 9} for i in range(9)]
    (trace,) = (trace for trace in interactive_front(made(rows, three))["data"] if trace["name"] == "front")
    assert sorted(trace["marker"]["color"]) == [row["d4_error"] for row in rows]
    counts = [{**row, "d4_error": 10.0 ** (i + 1)} for i, row in enumerate(rows)]
    (trace,) = (trace for trace in interactive_front(made(counts, three))["data"] if trace["name"] == "front")
    assert trace["marker"]["colorbar"]["ticktext"][-1] == "1,000,000,000"


def test_every_word_of_a_picture_is_inside_it_and_apart(tmp_path: Path) -> None:
    long = "translation_substride_invariance_error"
    rows = [("augmentation.translate.max_px", (0.3, 0.1)), ("prior", (0.1, 0.2))]
    study = made([{"accuracy": 0.5, long: i} for i in range(5)], {"accuracy": "maximize", long: "minimize"})
    for drawn in (
        figures.bars(rows, ("PED-ANOVA", "fANOVA"), f"importance for {long.replace('_', ' ')}"),
        figures.scatter(study, study.trials, {1}, long, "accuracy"),
        figures.against_numbers([0.003, 0.03], [0, 1], "training.lr", long, True),
        figures.against_numbers([1e3, 1e6], [0, 1], "number of parameters", long, True),
        figures.against_numbers([5e3, 8e4], [0, 1], "training.images", long, False),
    ):
        drawn.canvas.draw()
        (axes,) = drawn.axes
        for text in (label for label in (axes.xaxis.label, axes.yaxis.label) if label.get_text()):
            box = text.get_window_extent()
            assert drawn.bbox.x0 <= box.x0
            assert box.x1 <= drawn.bbox.x1
            assert drawn.bbox.y0 <= box.y0
            assert box.y1 <= drawn.bbox.y1
        boxes = [text.get_window_extent() for text in axes.get_xticklabels() if text.get_text()]
        boxes = [box for box in boxes if axes.bbox.x0 - 1 <= (box.x0 + box.x1) / 2 <= axes.bbox.x1 + 1]
        assert len(boxes) > 1
        assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


@pytest.mark.parametrize("paper", ["#ffffff", "#16181b"])
def test_what_is_drawn_first_is_seen_on_light_and_dark(paper: str) -> None:
    """3 to 1, as WCAG 2.2 asks of graphics, for the colours of up to four lines and of dominated trials."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colour in (*figures.COLOURS[:3], GREY):
        dark, light = sorted((luminance(colour), luminance(paper)))
        assert (light + 0.05) / (dark + 0.05) >= 3
    if paper != "#ffffff":
        assert all(luminance(colour) > 0.1 for colour in figures.COLOURS)  # none is black


@pytest.mark.parametrize("num_trials", [0, 1, 2])
@pytest.mark.parametrize("state", ["COMPLETE", "FAILED", "RUNNING"])
def test_studies_that_have_little_to_say(num_trials: int, state: str, tmp_path: Path, small_spec: StudySpec) -> None:
    folder = invent(tmp_path / "small", small_spec, num_trials, states=dict.fromkeys(range(9), state))
    text = text_of(folder)
    if state != "COMPLETE" or not num_trials:
        assert "No trial has completed yet: there is no front." in text
        assert "Hypervolume over time" not in text


def test_one_objective_is_a_ranking(tmp_path: Path, study_file: Callable[..., Path]) -> None:
    spec = load_study(study_file(), ("objectives={accuracy: maximize}",))
    text = text_of(invent(tmp_path / "small", spec, 4))
    assert "The ranking" in text
    table = text[text.index("The ranking") :]
    assert [int(number) for number in re.findall(r'<tr><td class="number">(\d+)</td>', table)][:4] == [3, 2, 1, 0]


def test_nothing_that_a_study_says_can_act_in_the_page(tmp_path: Path, study_file: Callable[..., Path]) -> None:
    spec = load_study(study_file())
    folder = invent(tmp_path / "small", spec, 4, states={1: "FAILED"})
    for number in (0, 1):
        config = json.loads(folder.trial(number).config.read_text())
        config["params"]["evil." + EVIL] = EVIL
        write_json(folder.trial(number).config, config)
    result = json.loads(folder.trial(1).result.read_text())
    write_json(folder.trial(1).result, {**result, "reason": EVIL})
    folder.searchspace.write_text(f"# Question: {EVIL}\n")
    text = text_of(folder)
    assert "alert(" in text  # it is there, as text
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert text.count("</script>") == text.count("<script")
    assert inert(EVIL).isascii() or "<" not in inert(EVIL)
    assert json.loads(inert({"a": EVIL})) == {"a": EVIL}
    assert "</script>" in json.dumps(EVIL)  # the broken twin


def test_the_other_formats(tmp_path: Path, small_spec: StudySpec) -> None:
    root = tmp_path / "studies"
    folder = invent(root / "small", small_spec, 6, states={2: "FAILED"})
    made = {kind: tmp_path / kind for kind in ("markdown", "png", "svg", "csv")}
    for kind, output in made.items():
        done = run("report", "small", "--root", root, "--format", kind, "--output", output)
        assert done.exit_code == 0, done.output
    text = (made["markdown"] / "report.md").read_text()
    for name in re.findall(r"\]\(([^)]+\.png)\)", text):
        assert (made["markdown"] / name).read_bytes().startswith(b"\x89PNG")
    assert 'because of \\<b\\>"2"\\</b\\>' in text
    assert {path.stem for path in made["png"].iterdir()} == {path.stem for path in made["svg"].iterdir()}
    assert "front.csv" in {path.name for path in made["csv"].iterdir()}
    assert run("report", "small", "--root", root).exit_code == 0
    assert (folder.path / "report.html").stat().st_size > 1_000_000


def test_several_studies_stand_side_by_side(tmp_path: Path, small_spec: StudySpec) -> None:
    root = tmp_path / "studies"
    for name, trials in (("small", 4), ("other", 6)):
        folder = invent(root / name, small_spec, trials)
        write_json(folder.study, json.loads(folder.study.read_text()) | {"study": name})
    done = run("report", "small", "other", "--root", root, "--output", tmp_path / "both.html")
    assert done.exit_code == 0, done.output
    text = (tmp_path / "both.html").read_text()
    assert "small beside other" in text
    assert "The fronts side by side" in text
    assert text.count("What was asked, and what ran</h2>") == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("report", "smal"), "unknown study 'smal': did you mean 'small'?"),
        (("report", "small", "--output", "/dev/null/x/y.html"), "--output: /dev/null/x/y.html cannot be written"),
        (("watch", "smal"), "unknown study 'smal'"),
    ],
)
def test_mistakes_are_said(arguments: tuple[str, ...], sentence: str, tmp_path: Path, small_spec: StudySpec) -> None:
    invent(tmp_path / "small", small_spec, 2)
    done = run(*arguments, "--root", tmp_path)
    assert isinstance(done.exception, UserError)
    assert sentence in str(done.exception)


def test_a_study_in_a_notebook(tmp_path: Path, small_spec: StudySpec) -> None:
    folder = invent(tmp_path / "small", small_spec, 6, states={2: "FAILED"})
    study = equitune.load_study(folder.path)
    assert list(study.trials["trial"]) == list(range(6))
    assert list(study.front["trial"]) == [5, 4, 3, 1, 0]
    assert study.trials["accuracy"].isna().sum() == 1
    assert {"front", "hypervolume"} <= study.figures().keys()
    assert len(study.interactive_front().data) == 2
    assert set(study.profile(0)["layer"]) == {"stem", "stages.0", "output"}
    for mistake in (lambda: study.profile(9), lambda: equitune.load_study(tmp_path / "none")):
        with pytest.raises(UserError):
            mistake()


def test_watching_ends_with_the_study(tmp_path: Path, small_spec: StudySpec, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = invent(tmp_path / "small", small_spec, 3)
    write_json(folder.driver, {"pid": 1})  # somebody drives: its heartbeat is fresh
    watched = iter([lambda: add_trial(folder, small_spec, 3)])
    monkeypatch.setattr(sys.modules["equitune.cli.watch"].time, "sleep", lambda seconds: next(watched)())
    done = run("watch", "small", "--root", tmp_path)
    assert done.exit_code == 0, done.output
    assert "small: complete, 4 of 4 trials" in done.output


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The Chromium of this machine; the tests that need one are skipped where there is none."""
    require("chromium")
    program = next(found for name in CHROMIUM if (found := shutil.which(name)))
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield running
        running.close()


OVERLAPS = """() => {
  const boxes = [...document.querySelectorAll('.textpoint text')].map(each => each.getBoundingClientRect());
  return boxes.filter((a, i) => a.width && boxes.some((b, j) => j < i && b.width && a.left < b.right && b.left < a.right
    && a.top < b.bottom && b.top < a.bottom)).length;
}"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_browser(
    width: int, scheme: str, browser: Any, tmp_path: Path, study_file: Callable[..., Path]
) -> None:
    spec = load_study(study_file(), ("search.trials=60",))
    folder = invent(tmp_path / "small", spec, 60, states={4: "FAILED"})
    path = tmp_path / "report.html"
    path.write_text(text_of(folder), encoding="utf-8")
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(path.as_uri())
    tab.wait_for_selector("html[data-ready=true]")
    assert said == []
    assert asked == [path.as_uri()]
    assert tab.locator(".js-plotly-plot").count() == 1
    assert tab.locator(".static svg:visible").count() > 5
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert tab.evaluate(OVERLAPS) == 0
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    column = tab.locator("#s1-front table tbody tr td:nth-child(2)")
    before = column.all_text_contents()
    tab.locator("#s1-front th button", has_text="accuracy").first.click()
    assert column.all_text_contents() == sorted(before, key=lambda cell: float(cell.split()[0]))
    tab.close()


@pytest.mark.slow
def test_a_page_of_two_thousand_trials_stays_small(tmp_path: Path, study_file: Callable[..., Path]) -> None:
    spec = load_study(study_file(), ("search.trials=2000",))
    folder = invent(tmp_path / "small", spec, 2000)
    assert len(text_of(folder).encode()) < 5_000_000

"""The report: its page as text and in Chromium, its other formats, and studies that have little to say."""

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from invented import add_trial, invent

import equitune
from equitune.cli import cli
from equitune.errors import UserError
from equitune.records.folder import StudyFolder, write_json
from equitune.records.reader import StudyReader
from equitune.report.page import inert, page
from equitune.report.sections import chapter_of
from equitune.spec.load import load_study
from equitune.spec.study import StudySpec

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
    program = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )
    if program is None:
        pytest.skip("no Chromium on this machine")
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

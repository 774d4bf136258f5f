"""Several studies beside each other: their fronts in one picture, and how their hypervolumes differ."""

from collections.abc import Sequence
from functools import partial
from html import escape
from typing import Any

from equitune.analysis.pareto import front
from equitune.analysis.versus import shared_objectives, versus
from equitune.records.reader import StudyRecord
from equitune.report import figures
from equitune.report.analysis import number
from equitune.report.figures import COLOURS, Point
from equitune.report.front import hover, interactive_layout, point
from equitune.report.parts import Chapter, Picture, Section, Table


def comparison(studies: Sequence[StudyRecord]) -> Chapter:
    """Return the chapter that comes before those of the single studies.

    Raises:
        UserError: the studies share no objective, or one of them has no complete trial.
    """
    reference, found = versus(studies)
    rows = [
        [
            each.name,
            str(each.trials),
            number(each.hypervolume),
            "–" if index == 0 else number(each.difference, "+"),
            "–" if index == 0 else f"{number(each.low, '+')} to {number(each.high, '+')}",
        ]
        for index, each in enumerate(found)
    ]
    said = ", ".join(f"{name} {number(value)}" for name, value in reference.items())
    caption = (
        f"Below one reference point, the worst value of any trial: {said}. Interval: 95 %, of drawing each measured "
        "value anew within its standard error over images; another seed may change more."
    )
    header = ["study", "trials", "hypervolume", f"beside {found[0].name}", "95 % interval"]
    section = Section("versus", "The fronts side by side", [Table("versus", header, rows, caption)])
    objectives = list(shared_objectives(studies))
    if len(objectives) > 1:
        y, x = objectives[:2]
        draw = partial(figures.fronts, {study.name: _members(study, x, y) for study in studies}, x, y)
        said = "The front of each study. Bars: one standard error over images."
        section.parts.append(Picture("fronts", said, draw, _interactive(studies, x, y)))
    return Chapter(" beside ".join(study.name for study in studies), [section])


def _members(study: StudyRecord, x: str, y: str) -> list[tuple[Point, Point]]:
    return sorted((point(trial, x), point(trial, y)) for trial in front(study))


def _interactive(studies: Sequence[StudyRecord], x: str, y: str) -> dict[str, Any]:
    traces = []
    for place, study in enumerate(studies):
        members = sorted(front(study), key=lambda trial: point(trial, x)[0])
        trace: dict[str, Any] = {
            "type": "scatter",
            "name": escape(study.name),
            "mode": "lines+markers",
            "x": [point(trial, x)[0] for trial in members],
            "y": [point(trial, y)[0] for trial in members],
            "marker": {"size": 10, "color": COLOURS[place % len(COLOURS)], "symbol": place},
            "line": {"width": 1, "color": COLOURS[place % len(COLOURS)]},
            "hovertext": [hover(study, trial) for trial in members],
            "hoverinfo": "text+name",
        }
        for axis, name in (("x", x), ("y", y)):
            errors = [point(trial, name)[1] or 0 for trial in members]
            trace[f"error_{axis}"] = {"type": "data", "array": errors, "thickness": 1}
        traces.append(trace)
    return {"data": traces, "layout": interactive_layout(studies[0], "", x, y)}

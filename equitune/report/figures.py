"""The report's pictures: small, drawn by matplotlib, one idea each. In a page they take its text colour."""

import io
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any

from equitune.records.reader import StudyRecord, TrialRecord
from equitune.report.front import BLUE, GREY, ORANGE, VIOLATES, label, point

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GREEN, PURPLE, SKY, GOLD = "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
# Okabe and Ito's, told apart by the colour-blind; grey for black, which a dark page hides
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, GOLD, GREY)
Point = tuple[float, float | None]  # a value and its standard error
INK = "#010203"  # stands for the colour of a page's text
WIDTH_IN, HEIGHT_IN = 4.2, 2.9  # at which SMALL is 10 px on a phone
SMALL = 8.5  # points
ACROSS, UPWARDS = 48, 32  # letters of an axis' label in a line
MARKERS = "osD^vP*"
MOST_BARS = 300  # trials that have error bars: of more they hide each other


def canvas(height_in: float = HEIGHT_IN) -> "tuple[Figure, Any]":
    """Return an empty picture and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, height_in), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(alpha=0.2, color=INK)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def as_svg(figure: "Figure", name: str) -> str:
    """Return the picture as SVG for a page: its own ids, the page's text colour, no header.

    Args:
        figure: drawn.
        name: differs from that of every other picture of the page.
    """
    import matplotlib

    _ink(figure, INK)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'\b(id="|url\(#|href="#)', rf"\1{name}-", text)  # glyphs, too
    head, rest = text.split(">", maxsplit=1)
    return re.sub(r' (width|height)="[^"]*"', "", head) + ">" + rest


def as_file(figure: "Figure", kind: str) -> bytes:
    """Return the picture as `png` or `svg` on white."""
    _ink(figure, "#000000")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind)
    return buffer.getvalue()


def hypervolume(numbers: Sequence[int], values: Sequence[float]) -> "Figure":
    """How the hypervolume grew with the number of ended trials."""
    figure, axes = canvas()
    axes.step(numbers, values, where="post", color=BLUE)
    axes.locator_params(axis="x", nbins=6)
    _name_axes(axes, "ended trials", "hypervolume")
    axes.set_ylim(bottom=0)
    return figure


def forest(rows: Sequence[tuple[str, float, float, float]], unit: str) -> "Figure":
    """Effects under each other: (what, mean, low, high), blue where the interval excludes 0."""
    figure, axes = canvas(0.9 + 0.3 * len(rows))
    for place, (_, mean, low, high) in enumerate(rows):
        colour = BLUE if low > 0 or high < 0 else GREY
        reach = None if math.isnan(low) else [[max(mean - low, 0)], [max(high - mean, 0)]]
        axes.errorbar([mean], [place], xerr=reach, color=colour, marker="o", ms=5, capsize=3, lw=1.5)
    axes.axvline(0, color=INK, lw=1)
    axes.set_yticks(range(len(rows)), [_short(row[0]) for row in rows], fontsize=SMALL)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.locator_params(axis="x", nbins=4)
    _name_axes(axes, unit, across=ACROSS // 2)  # names take the other half
    return figure


def bars(rows: Sequence[tuple[str, Sequence[float]]], series: Sequence[str], unit: str) -> "Figure":
    """Bars under each other: a name, and a value of each series."""
    colours = (BLUE, ORANGE, GREY)
    figure, axes = canvas(1.1 + 0.34 * len(rows))
    thick = 0.8 / len(series)
    for place, name in enumerate(series):
        y = [row + (place - (len(series) - 1) / 2) * thick for row in range(len(rows))]
        axes.barh(y, [values[place] for _, values in rows], height=thick, color=colours[place], label=name)
    axes.set_yticks(range(len(rows)), [_short(row[0]) for row in rows], fontsize=SMALL)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.locator_params(axis="x", nbins=4)
    _name_axes(axes, unit, across=ACROSS // 2)  # names take the other half
    if len(series) > 1:
        figure.legend(loc="outside upper center", ncols=len(series), frameon=False, fontsize=SMALL)  # bars hide no part
    return figure


def scatter(study: StudyRecord, trials: Sequence[TrialRecord], members: set[int], x: str, y: str) -> "Figure":
    """One metric against another, a point a trial; the front's blue, a cross where a constraint is violated."""
    figure, axes = canvas()
    kinds: dict[str, list[TrialRecord]] = {"dominated": [], VIOLATES: [], "front": []}
    for trial in trials:
        kinds["front" if trial.number in members else VIOLATES if study.violations(trial) else "dominated"].append(
            trial
        )
    for kind, part in kinds.items():
        if not part:
            continue
        colour = BLUE if kind == "front" else GREY
        places = [(point(trial, x), point(trial, y)) for trial in part]
        xs, ys = [place[0][0] for place in places], [place[1][0] for place in places]
        if not _are_many(trials):
            errors = [[place[axis][1] or 0 for place in places] for axis in (0, 1)]
            axes.errorbar(xs, ys, xerr=errors[0], yerr=errors[1], fmt="none", color=colour, alpha=0.5, elinewidth=0.8)
        marker = "x" if kind == VIOLATES else "o"
        are_many = _are_many(trials)
        axes.scatter(xs, ys, s=18, color=colour, marker=marker, label=kind, zorder=3, rasterized=are_many)
    axes.locator_params(axis="x", nbins=6)
    _name_axes(axes, label(study, x), label(study, y))
    if len(axes.get_legend_handles_labels()[0]) > 1:
        figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=SMALL)
    return figure


def fronts(members: Mapping[str, Sequence[tuple[Point, Point]]], x: str, y: str) -> "Figure":
    """Return the fronts of several studies, each with its colour and marker."""
    figure, axes = canvas()
    for place, (name, points) in enumerate(members.items()):
        columns = [[each[axis][part] or 0 for each in points] for axis in (0, 1) for part in (0, 1)]
        style = {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)], "ms": 5, "lw": 1}
        axes.errorbar(columns[0], columns[2], xerr=columns[1], yerr=columns[3], label=name, elinewidth=0.8, **style)
    _name_axes(axes, x.replace("_", " "), y.replace("_", " "))
    axes.legend(frameon=False, fontsize=SMALL)
    return figure


def against_numbers(xs: Sequence[float], ys: Sequence[float], x_label: str, y_label: str, is_log: bool) -> "Figure":
    """Numbers against numbers, across on a logarithmic axis where `is_log`."""
    figure, axes = canvas()
    axes.scatter(xs, ys, s=18, color=BLUE, alpha=0.7, rasterized=_are_many(xs))
    if is_log:
        from matplotlib.ticker import LogLocator, NullFormatter

        axes.set_xscale("log")
        subs = (1, 2, 5) if max(xs) < 30 * min(xs) else (1,)  # few enough that their labels stay apart
        axes.xaxis.set_major_locator(LogLocator(subs=subs))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}" if x >= 1 else f"{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.locator_params(axis="x", nbins=6)
    _name_axes(axes, x_label, y_label)
    return figure


def against_names(groups: Mapping[str, Sequence[float]], x_label: str, y_label: str) -> "Figure":
    """Numbers of each of several names: every one as a point, their mean as a bar."""
    figure, axes = canvas()
    for place, values in enumerate(groups.values()):
        axes.scatter([place] * len(values), values, s=18, color=BLUE, alpha=0.5, rasterized=_are_many(values))
        axes.plot([place - 0.25, place + 0.25], [sum(values) / len(values)] * 2, color=ORANGE, lw=2)
    names = [_short(name, 16) for name in groups]
    tilted = sum(map(len, names)) > 30
    axes.set_xticks(
        range(len(names)), names, fontsize=SMALL, rotation=35 if tilted else 0, ha="right" if tilted else "center"
    )
    axes.set_xlim(-0.6, len(names) - 0.4)
    _name_axes(axes, x_label, y_label)
    return figure


def _name_axes(axes: Any, x: str, y: str = "", across: int = ACROSS) -> None:
    """Labels both axes, in lines that fit; `n = 20` stays in one."""
    x, y = (text.replace(" = ", "\u00a0=\u00a0") for text in (x, y))
    axes.set_xlabel(textwrap.fill(x, across), fontsize=SMALL)
    axes.set_ylabel(textwrap.fill(y, UPWARDS), fontsize=SMALL)
    axes.tick_params(labelsize=SMALL)


def _are_many(points: Sized) -> bool:
    """Whether each as a shape of its own would make a page slow and large."""
    return len(points) > MOST_BARS


def _ink(figure: "Figure", colour: str) -> None:
    """Give every text, tick and edge of a picture one colour."""
    import matplotlib.text

    for text in figure.findobj(matplotlib.text.Text):
        text.set_color(colour)
    for axes in figure.axes:
        axes.tick_params(colors=colour, which="both")
        for spine in axes.spines.values():
            spine.set_edgecolor(colour)


def _short(text: str, most: int = 34) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def numbers_of(values: Iterable[object]) -> list[float] | None:
    """Return the values as numbers; None where one of them is none."""
    found = []
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        found.append(float(value))
    return found

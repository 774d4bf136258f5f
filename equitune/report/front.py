"""The frontier: the Pareto front as shown to people, as a picture, an interactive page and a table."""

import csv
import math
import re
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from equitune.analysis.pareto import front
from equitune.config.objectives import Direction
from equitune.printable import printable
from equitune.records.reader import StudyRecord, TrialRecord
from equitune.results.values import Measurement

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#868686"  # Okabe and Ito's, told apart by the colour-blind
MOST_BARS = 300  # trials of a kind that have error bars: of more they hide each other
NUMBERS = re.compile(r"[+-][\d.,e+-]*( ± [\d.,e-]+| to [+-]?[\d.,e+-]+)?")
FORMULA = re.compile(r"[\s\x00-\x1f\ufeff\u200b]*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")
VIOLATES = "violates a constraint"
MOST_LAYERS = 12  # that a trial's description lists
INCLUDES = {"translation_substride": "translation", "d4": "c4"}  # a symmetry, and the one that is a part of it
BETTER: dict[Direction, str] = {"maximize": "higher is better", "minimize": "lower is better"}


def write_front(study: StudyRecord, folder: Path) -> list[Path]:
    """Write the frontier as `front.png`, `front.html` and `front.csv`; return their paths."""
    paths = [folder / f"front.{suffix}" for suffix in ("png", "html", "csv")]
    for path, write in zip(paths, (write_picture, write_page, write_table), strict=True):
        write(study, path)
    return paths


def write_picture(study: StudyRecord, path: Path) -> None:
    """Error bars are standard errors over images. With one objective, the trials in order instead of a front."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.2), dpi=150)  # margins by hand: a solved layout doubles the time of drawing
    figure.subplots_adjust(left=0.1, right=0.97, bottom=0.14, top=0.92)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    members = front(study)
    dominated, violating = _others(study, members)
    x_name, y_name, colour_name = axis_names(study)
    for trials, style in ((dominated + violating, {"color": GREY, "alpha": 0.6}), (members, {"color": BLUE})):
        bars = [_errors(trials, name) for name in (x_name, y_name)]
        axes.errorbar(
            *_columns(trials, x_name, y_name), xerr=bars[0], yerr=bars[1], fmt="none", elinewidth=1, capsize=2, **style
        )
    axes.scatter(*_columns(dominated, x_name, y_name), s=28, color=GREY, alpha=0.7, label="dominated")
    if violating:
        crosses = _columns(violating, x_name, y_name)
        axes.scatter(*crosses, s=28, color=GREY, alpha=0.7, marker="x", label=VIOLATES)
    place = _columns(members, x_name, y_name)
    if colour_name and members:
        from matplotlib.colors import LogNorm

        values = [point(trial, colour_name)[0] for trial in members]
        norm = LogNorm() if _is_wide(values) else None
        drawn = axes.scatter(
            *place, c=values, norm=norm, s=70, cmap="viridis", edgecolor="black", label="front", zorder=3
        )
        bar = figure.colorbar(drawn, ax=axes, label=label(study, colour_name))
        if max(values) > 10:  # whole numbers, written out
            bar.ax.yaxis.set_major_formatter("{x:,.0f}")
            bar.ax.yaxis.set_minor_formatter("{x:,.0f}")
    else:
        axes.scatter(*place, s=70, color=BLUE, edgecolor="black", label="front", zorder=3)
        axes.plot(
            *_columns(sorted(members, key=lambda t: point(t, x_name)[0]), x_name, y_name),
            color=BLUE,
            lw=1,
        )
    for trial, x, y in zip(members, *place, strict=True):
        axes.annotate(str(trial.number), (x, y), xytext=(6, 6), textcoords="offset points", fontsize=9)
    axes.set_xlabel(label(study, x_name))
    axes.set_ylabel(label(study, y_name))
    axes.set_title(title(study, members), loc="left", fontsize=11)
    figure.text(0.01, 0.015, "error bars: one standard error over the n validation images", fontsize=8, color="#555555")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="best")
    figure.savefig(path)


def write_page(study: StudyRecord, path: Path) -> None:
    """One self-contained page that opens offline; hovering a trial shows its configuration."""
    import plotly.graph_objects as go

    go.Figure(interactive_front(study)).write_html(path, include_plotlyjs=True)


def interactive_front(study: StudyRecord, links: Mapping[int, str] | None = None) -> dict[str, Any]:
    """Return the frontier as plotly's data and layout of plain values; its custom data are the trials' links."""
    members = front(study)
    dominated, violating = _others(study, members)
    x_name, y_name, colour_name = axis_names(study)
    traces = []
    for name, trials, on_front in (
        ("dominated", dominated, False),
        *([(VIOLATES, violating, False)] if violating else []),
        ("front", members, True),
    ):
        points = [(point(trial, x_name), point(trial, y_name)) for trial in trials]
        marker: dict[str, Any] = {"size": 12 if on_front else 7, "color": BLUE if on_front else GREY}
        marker["symbol"] = "x" if name == VIOLATES else "circle"
        if on_front and colour_name:
            marker |= _coloured(study, colour_name, [point(trial, colour_name)[0] for trial in trials])
        trace: dict[str, Any] = {
            "type": "scatter",
            "x": [x for (x, _), _ in points],
            "y": [y for _, (y, _) in points],
            "mode": "markers+text" if on_front and len(trials) <= MOST_BARS else "markers",
            "textposition": "top right",
            "marker": marker,
            "name": name,
            "hovertext": [hover(study, trial) for trial in trials],
            "hoverinfo": "text",
            "customdata": [(links or {}).get(trial.number) for trial in trials],
        }
        if on_front:
            trace |= {"text": [str(trial.number) for trial in trials], "cliponaxis": False}
        if len(trials) <= MOST_BARS:
            for axis, errors in (("x", [e or 0 for (_, e), _ in points]), ("y", [e or 0 for _, (_, e) in points])):
                trace[f"error_{axis}"] = {"type": "data", "array": errors, "thickness": 1, "color": GREY}
        traces.append(trace)
    return {"data": traces, "layout": interactive_layout(study, title(study, members), x_name, y_name)}


def interactive_layout(study: StudyRecord, heading: str, x_name: str, y_name: str) -> dict[str, Any]:
    """Return plotly's layout of two metrics against each other, a legend above; what the study says is escaped."""
    return {
        "title": {"text": escape(heading)},
        "xaxis": {"title": {"text": escape(label(study, x_name))}},
        "yaxis": {"title": {"text": escape(label(study, y_name))}},
        "legend": {"orientation": "h", "y": 1.06, "x": 1, "xanchor": "right"},
    }


def write_table(study: StudyRecord, path: Path) -> None:
    """Every ended trial as a line of CSV, the front first."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([plain(cell) for cell in row] for row in rows(study))


def plain(cell: Any) -> Any:
    """Return a cell of CSV that no spreadsheet takes for a formula, without controls.

    Numbers and intervals stay as they are. Spaces and line ends before a formula hide it from no spreadsheet, and nor
    does a sign of full width.
    """
    if not isinstance(cell, str):
        return cell
    is_formula = FORMULA.match(cell) and not NUMBERS.fullmatch(cell)
    return printable(f"'{cell}" if is_formula else cell)


def rows(study: StudyRecord) -> Iterator[list[Any]]:
    """Yield a header and one row for each ended trial, members of the front first."""
    members = front(study)
    numbers = {member.number for member in members}
    metrics = sorted({name for trial in study.ended() for name in trial.metrics}, key=_objectives_first(study))
    params = sorted({name for trial in study.trials for name in trial.config.params})
    columns = [f"{split}{name}{part}" for split in ("", "test_") for name in metrics for part in ("", "_stderr")]
    yield ["trial", "state", "front", *columns, *params, "exact_under", "violates", "reason"]
    for trial in members + [trial for trial in study.ended() if trial.number not in numbers]:
        values = [split.get(name) for split in (trial.metrics, trial.test) for name in metrics]
        yield [
            trial.number,
            trial.state,
            trial.number in numbers,
            *(number for value in values for number in ((value.value, value.stderr) if value else (None, None))),
            *(trial.config.params.get(name) for name in params),
            exact_under(trial) if trial.exact else None,
            violated(study, trial) or None,
            trial.reason,
        ]


def axis_names(study: StudyRecord) -> tuple[str, str, str | None]:
    """Which objectives the axes and the colour show: the second across, the first upwards, the third as colour."""
    names = list(study.objectives)
    if len(names) == 1:
        return "trial", names[0], None
    return names[1], names[0], names[2] if len(names) > 2 else None


def point(trial: TrialRecord, name: str) -> tuple[float, float | None]:
    """Return a trial's place on an axis, and its standard error."""
    if name == "trial":
        return trial.number, None
    metric = trial.metrics[name]
    assert metric.value is not None
    return metric.value, metric.stderr


def measured(study: StudyRecord) -> list[TrialRecord]:
    """Return the trials that have a place in the picture: complete, with a value for each objective."""
    return [
        trial
        for trial in study.trials
        if trial.state == "COMPLETE" and all(_has_value(trial.metrics.get(name)) for name in study.objectives)
    ]


def _others(study: StudyRecord, members: list[TrialRecord]) -> tuple[list[TrialRecord], list[TrialRecord]]:
    """Return the trials of the picture that are not on the front: dominated ones, and those that
    violate a constraint.
    """
    on_front = {member.number for member in members}
    dominated = [t for t in measured(study) if t.number not in on_front and not study.violations(t)]
    return dominated, [trial for trial in measured(study) if study.violations(trial)]


def label(study: StudyRecord, name: str) -> str:
    """Return an axis' label: the metric, its unit where it has one, which way is better of an objective, its n of
    images.
    """
    if name == "trial":
        return "trial"
    metric = next((trial.metrics[name] for trial in study.ended() if name in trial.metrics), None)
    unit = f" [{metric.unit}]" if metric and metric.unit != "1" else ""
    said = [BETTER[study.objectives[name]]] if name in study.objectives else []  # type: ignore[index]
    said += [f"n = {metric.n}"] if metric and metric.n else []
    return f"{name.replace('_', ' ')}{unit}" + (f" ({', '.join(said)})" if said else "")


def title(study: StudyRecord, members: list[TrialRecord]) -> str:
    """Return the study, and how far it is."""
    return f"{study.name}: {len(members)} of {len(study.ended())} trials on the front"


def _columns(trials: list[TrialRecord], x: str, y: str) -> tuple[list[float], list[float]]:
    return [point(trial, x)[0] for trial in trials], [point(trial, y)[0] for trial in trials]


def _errors(trials: list[TrialRecord], name: str) -> list[float]:
    """Return standard errors; NaN, of which nothing is drawn, where there is none."""
    return [math.nan if error is None else error for _, error in (point(trial, name) for trial in trials)]


def _has_value(metric: Measurement | None) -> bool:
    return metric is not None and metric.value is not None


def _objectives_first(study: StudyRecord) -> Any:
    order = list(study.objectives)
    return lambda name: (order.index(name) if name in order else len(order), name)


def _coloured(study: StudyRecord, name: str, values: list[float]) -> dict[str, Any]:
    """Return a marker whose colour shows a third objective; a wide count by its logarithm, ticks at its values."""
    bar: dict[str, Any] = {"title": {"text": escape(label(study, name)), "side": "right"}, "thickness": 14}
    if _is_wide(values):
        low, high = math.log10(min(values)), math.log10(max(values))
        bar["tickvals"] = [low + (high - low) * step / 4 for step in range(5)]
        bar["ticktext"] = [f"{10**tick:,.0f}" for tick in bar["tickvals"]]
        values = [math.log10(value) for value in values]
    return {"color": values, "colorscale": "Viridis", "showscale": True, "line": {"width": 1}, "colorbar": bar}


def _is_wide(values: list[float]) -> bool:
    """Whether values are counts, or seconds, over more than a decade; an error next to 0 is no decade of its own."""
    return bool(values) and min(values) >= 1 and max(values) > 10 * min(values)


def hover(study: StudyRecord, trial: TrialRecord) -> str:
    """Return what an interactive picture says of a trial: lines of HTML, every name and value of the study escaped."""
    lines = [f"<b>trial {trial.number}</b>"]
    lines += [f"{escape(name)}: {escape(shown(trial.metrics.get(name)))}" for name in study.objectives]
    lines += [f"{escape(name)} = {escape(short(value))}" for name, value in trial.config.params.items()]
    lines += [f"violates {escape(name)}: {escape(reason)}" for name, reason in study.violations(trial).items()]
    if trial.exact:
        lines.append(f"exact under: {escape(exact_under(trial))}")
    if trial.amounts:
        lines.append("amount before training → after")
    for layer, amount in list(trial.amounts.items())[:MOST_LAYERS]:
        unit = f" {amount.unit}" if amount.unit != "1" else ""
        lines.append(f"{escape(layer)}: {amount.before:.3f} → {amount.after:.3f}{escape(unit)}")
    if len(trial.amounts) > MOST_LAYERS:
        lines.append(f"and {len(trial.amounts) - MOST_LAYERS} more layers")
    return "<br>".join(lines)


def violated(study: StudyRecord, trial: TrialRecord) -> str:
    """Return the constraints that a trial violates, with what is wrong; empty where it keeps them all."""
    return "; ".join(f"{name}: {reason}" for name, reason in study.violations(trial).items())


def shown(metric: Measurement | None) -> str:
    """Return a metric as text: value ± standard error, or why there is none."""
    if metric is None:
        return "–"
    if metric.value is None:
        return metric.status
    value = f"{metric.value:,.0f}" if float(metric.value).is_integer() and metric.value > 10 else f"{metric.value:.4f}"
    return value if metric.stderr is None else f"{value} ± {metric.stderr:.4f}"


def exact_under(trial: TrialRecord) -> str:
    """Return the symmetries with which a trial's network commutes exactly: `translation, d4 (at first)`; a dash: none.

    `at first` says that training may break it. A symmetry that another one includes is not named beside it.
    """
    held = {symmetry: verdict for symmetry, verdict in trial.exact.items() if verdict.broken_by is None}
    included = [less for more, less in INCLUDES.items() if more in held]
    named = {symmetry: verdict for symmetry, verdict in held.items() if symmetry not in included}
    return ", ".join(name + (" (at first)" if verdict.loosened_by else "") for name, verdict in named.items()) or "–"


def settings(values: Mapping[str, Any]) -> str:
    """Names and values as text: `model.width 8, training.lr 0.01`."""
    return ", ".join(f"{name} {short(value)}" for name, value in values.items())


def short(value: Any) -> str:
    """Return a parameter's value as text."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)

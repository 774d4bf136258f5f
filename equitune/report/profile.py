"""Equivariance over depth, as a picture: trained and untrained, with the chance level; of one model or of several."""

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equitune.records.reader import TrialRecord
from equitune.report.figures import COLOURS, SMALL, UPWARDS, canvas
from equitune.report.front import GREY

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONTROL: dict[str, Any] = {"marker": "o", "ms": 4, "mfc": "white", "ls": "--", "lw": 1}
PANELS = {  # quantity -> what its axis says
    "correlation": "correlation (1 is equivariant)",
    "error": "error (0 is exact, 1 is chance)",
    "lie_error": "local error (0 is exact, 1 is no relation)",
    "amount": "amount (0 is strict, 1 is free)",
}
MOST_LABELS = 30  # layers whose names fit below a panel
LETTERS_PER_INCH = 12  # at the size of the heading

Rows = list[dict[str, Any]]


@dataclass
class Panel:
    """One quantity of one group; of one of its sets, where there are several models."""

    title: str
    quantity: str
    models: dict[str, Rows] = field(default_factory=dict)


def write_profile(trial: TrialRecord, path: Path) -> bool:
    """Draws the profile of a trial, and how far its layers left their symmetry; returns whether there was any."""
    rows = [*(trial.result.profile if trial.result else []), *_amount_rows(trial)]
    return draw_profiles({f"trial {trial.number}": rows}, "", path)


def draw_profiles(models: Mapping[str, Rows], title: str, path: Path) -> bool:
    """Draws every measured layer of each model, a panel for each quantity.

    One model has a row of panels for each group, a colour for each set of elements and its layers' names below.
    Several have panels for each set and a colour each, over relative depth. Returns whether there was anything to draw.
    """
    good = {name: [row for row in rows if row["status"] == "ok"] for name, rows in models.items()}
    grid = list(_panels(good))
    if not grid:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    is_one = len(models) == 1
    names = dict.fromkeys(row["set"] for rows in good.values() for row in rows) if is_one else models
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(names)}
    width = max(map(len, grid))
    figure = Figure(figsize=(5.2 * width, 0.8 + 4 * len(grid)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for panels, row_of_axes in zip(grid, figure.subplots(len(grid), width, squeeze=False), strict=True):
        for axes in row_of_axes[len(panels) :]:
            axes.set_axis_off()
        for panel, axes in zip(panels, row_of_axes, strict=False):
            (_draw_sets if is_one else _draw_models)(axes, panel, colours)
            axes.set_ylabel(PANELS[panel.quantity])
            n = next(iter(panel.models.values()))[0]["n"]
            axes.set_title(f"{panel.title}, n = {n}" if n else panel.title, fontsize=10, loc="left")
            axes.grid(alpha=0.25)
            low, high = axes.get_ylim()
            axes.set_ylim(min(low, 0.0), max(high, 1.03))
    _draw_legend(figure)
    heading = f"{next(iter(models))}: equivariance over depth" if is_one else "equivariance over depth"
    heading += f" ({title})" if title else ""
    figure.suptitle(textwrap.fill(heading, int(figure.get_figwidth() * LETTERS_PER_INCH)), fontsize=11)
    figure.savefig(path)
    return True


def profile_figures(models: Mapping[str, Rows]) -> "Iterator[tuple[str, str, Callable[[], Figure]]]":
    """Return a small picture for each set of elements and quantity, a line for each model: title, quantity, how to draw
    it.
    """
    good = {name: [row for row in rows if row["status"] == "ok"] for name, rows in models.items()}
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(good)}
    panels: dict[tuple[str, str], Panel] = {}
    for model, rows in good.items():
        for row in rows:
            for quantity in PANELS:
                if quantity in row:
                    title = f"{row['group']}, {row['set']}"
                    panel = panels.setdefault((title, quantity), Panel(title, quantity))
                    panel.models.setdefault(model, []).append(row)
    for panel in panels.values():
        yield panel.title, panel.quantity, partial(_small, panel, colours)


def _small(panel: Panel, colours: Mapping[str, str]) -> "Figure":
    figure, axes = canvas()
    for name, rows in panel.models.items():
        for key, style in ((f"untrained_{panel.quantity}", CONTROL), (f"{panel.quantity}_chance", {"ls": ":"})):
            control = [(row["depth"], row[key]) for row in rows if row.get(key) is not None]
            if control:
                axes.plot(*zip(*control, strict=True), color=colours[name], alpha=0.6, **style)
    _draw_models(axes, panel, colours)
    axes.set_ylabel(textwrap.fill(PANELS[panel.quantity], UPWARDS), fontsize=SMALL)
    axes.xaxis.label.set_size(SMALL)
    axes.tick_params(labelsize=SMALL)
    axes.set_title(panel.title, fontsize=9, loc="left")
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=SMALL)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.0), max(high, 1.03))
    return figure


def _amount_rows(trial: TrialRecord) -> Rows:
    """Return the layers' amounts as a group of their own."""
    layers = {layer: amount for layer, amount in trial.amounts.items() if amount.unit == "1"}
    same = {"group": "how far layers left their symmetry", "set": "amount", "status": "ok", "n": 0}
    return [
        {**same, "layer": layer, "depth": place / len(layers), "amount": amount.after, "amount_stderr": 0.0}
        | {"untrained_amount": amount.before}
        for place, (layer, amount) in enumerate(layers.items(), 1)
    ]


def _panels(models: Mapping[str, Rows]) -> Iterator[list[Panel]]:
    """Yield the panels, row by row: all of a group for one model, in pairs for several."""
    of_group: dict[str, dict[tuple[str, str], Panel]] = {}
    for model, rows in models.items():
        for row in rows:
            title = row["group"] if len(models) == 1 else f"{row['group']}, {row['set']}"
            for quantity in PANELS:
                if quantity in row:
                    panels = of_group.setdefault(row["group"], {})
                    panel = panels.setdefault((title, quantity), Panel(title, quantity))
                    panel.models.setdefault(model, []).append(row)
    for each in of_group.values():
        panels_in_order = list(each.values())
        width = len(panels_in_order) if len(models) == 1 else 2
        for start in range(0, len(panels_in_order), width):
            yield panels_in_order[start : start + width]


def _draw_sets(axes: Any, panel: Panel, colours: Mapping[str, str]) -> None:
    """One model: a line for each set, dashed for the untrained copy, dotted for chance."""
    quantity, (rows,) = panel.quantity, panel.models.values()
    rows = sorted(rows, key=lambda row: row["depth"])  # a layer may be measured under one of the sets alone
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    for name in dict.fromkeys(row["set"] for row in rows):
        part = [row for row in rows if row["set"] == name]
        place = [layers.index(row["layer"]) for row in part]
        _draw_line(axes, place, part, quantity, colours[name], name)
        control = [row.get(f"untrained_{quantity}") for row in part]
        if all(value is not None for value in control):
            axes.plot(place, control, color=colours[name], label="untrained", **CONTROL)
    part = [row for row in rows if row["set"] == rows[0]["set"]]
    if all(f"{quantity}_chance" in row for row in part):
        chance = [row[f"{quantity}_chance"] for row in part]
        axes.plot([layers.index(row["layer"]) for row in part], chance, color=GREY, ls=":", label="chance")
    if len(layers) <= MOST_LABELS:
        axes.set_xticks(range(len(layers)), layers, rotation=45, ha="right", fontsize=8)
    else:
        axes.set_xlabel(f"layer, 0 to {len(layers) - 1}")


def _draw_models(axes: Any, panel: Panel, colours: Mapping[str, str]) -> None:
    """Several models: a line each."""
    for name, rows in panel.models.items():
        _draw_line(axes, [row["depth"] for row in rows], rows, panel.quantity, colours[name], name)
    axes.set_xlabel("relative depth")
    axes.set_xlim(0, 1.03)


def _draw_legend(figure: Any) -> None:
    """One for all panels, what is trained first."""
    from matplotlib.lines import Line2D

    shown = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    controls = {label: shown.pop(label) for label in ("untrained", "chance") if label in shown}
    if "untrained" in controls:
        controls["untrained"] = Line2D([], [], color=GREY, **CONTROL)  # of every colour
    shown |= controls
    longest = max(map(len, shown)) / LETTERS_PER_INCH + 0.5
    ncols = min(6, max(1, int(figure.get_figwidth() / longest)))
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=ncols, frameon=False, fontsize=9)


def _draw_line(axes: Any, place: Sequence[float], rows: Rows, quantity: str, colour: str, label: str) -> None:
    """Values with their 95 % intervals where there are any, and else their standard errors."""
    values = [row[quantity] for row in rows]
    bars = [
        (row[quantity] - row[f"{quantity}_low"], row[f"{quantity}_high"] - row[quantity])
        if row.get(f"{quantity}_low") is not None
        else (row[f"{quantity}_stderr"],) * 2
        for row in rows
    ]
    reach = list(zip(*[(max(low, 0.0), max(high, 0.0)) for low, high in bars], strict=True)) or None
    axes.errorbar(place, values, yerr=reach, color=colour, marker="o", ms=5, capsize=2, label=label)

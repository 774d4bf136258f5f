"""Equivariance over depth, as a picture: trained and untrained, with the chance level; of one model or of several."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from equitune.records.reader import TrialRecord
from equitune.report.front import BLUE, GREY, ORANGE

GREEN, PURPLE, BLACK = "#009E73", "#CC79A7", "#000000"  # Okabe and Ito's, told apart by the colour-blind
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, BLACK)
PANELS = {  # quantity -> what its axis says
    "correlation": "correlation (1 is equivariant)",
    "error": "error (0 is exact, 1 is chance)",
    "lie_error": "local error (0 is exact)",
}
MOST_LABELS = 30  # layers whose names fit below a panel
LETTERS_PER_INCH = 11  # at the size of the heading

Rows = list[dict[str, Any]]


def write_profile(trial: TrialRecord, path: Path) -> bool:
    """Draws the profile of a trial; returns whether there was anything to draw."""
    return draw_profiles({f"trial {trial.number}": trial.result.profile if trial.result else []}, "", path)


def draw_profiles(models: Mapping[str, Rows], title: str, path: Path) -> bool:
    """Draws every measured layer of each model, a row of panels for each group and a panel for each quantity.

    One model has a colour for each set of elements and its layers' names below; several have a colour each, under
    the first set that all of them have, over relative depth. Returns whether there was anything to draw.
    """
    good = {name: [row for row in rows if row["status"] == "ok"] for name, rows in models.items()}
    every = [row for rows in good.values() for row in rows]
    groups = {
        group: [each for each in PANELS if any(each in row for row in every if row["group"] == group)]
        for group in dict.fromkeys(row["group"] for row in every)
    }
    num_columns = max(map(len, groups.values()), default=0)
    if not num_columns:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * num_columns, 0.8 + 4 * len(groups)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(groups), num_columns, squeeze=False)
    for (group, quantities), row_of_panels in zip(groups.items(), panels, strict=True):
        for quantity, axes in zip(quantities, row_of_panels, strict=False):
            own = {name: [r for r in rows if r["group"] == group and quantity in r] for name, rows in good.items()}
            draw = _draw_sets if len(models) == 1 else _draw_models
            axes.set_title(f"{group}{draw(axes, own, quantity)}", fontsize=10, loc="left")
            axes.set_ylabel(PANELS[quantity])
            axes.grid(alpha=0.25)
            low, high = axes.get_ylim()
            axes.set_ylim(min(low, 0.0), max(high, 1.03))
        for axes in row_of_panels[len(quantities) :]:
            axes.remove()
    _describe(figure, f"{next(iter(models))}: " if len(models) == 1 else "", title, sorted({row["n"] for row in every}))
    figure.savefig(path)
    return True


def _describe(figure: Any, whose: str, title: str, counts: list[int]) -> None:
    """What is shown, above, and one legend for all panels, below: as wide as the figure lets them be."""
    heading = (
        f"{whose}equivariance over depth, n = {' and '.join(map(str, counts))} images{f' ({title})' if title else ''}"
    )
    width = figure.get_figwidth()
    figure.suptitle(textwrap.fill(heading, int(width * LETTERS_PER_INCH)), fontsize=11)
    shown = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    longest = max(map(len, shown)) / LETTERS_PER_INCH
    ncols = max(1, min(4, int(width / (longest + 0.6))))
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=ncols, frameon=False, fontsize=8)


def _draw_sets(axes: Any, models: Mapping[str, Rows], quantity: str) -> str:
    """One model: a line for each set, dashed for the untrained copy, dotted for chance."""
    rows = sorted(next(iter(models.values())), key=lambda row: row["depth"])
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    sets = _sets(models)
    for name, colour in zip(sets, COLOURS * 3, strict=False):
        part = [row for row in rows if row["set"] == name]
        place = [layers.index(row["layer"]) for row in part]
        _draw_line(axes, place, part, quantity, colour, f"{name}, trained")
        control = [row.get(f"untrained_{quantity}") for row in part]
        if all(value is not None for value in control):
            style = {"color": colour, "marker": "o", "ms": 4, "mfc": "white", "ls": "--", "lw": 1}
            axes.plot(place, control, label=f"{name}, untrained", **style)
    part = [row for row in rows if row["set"] == sets[0]]
    if all(f"{quantity}_chance" in row for row in part):
        chance = [row[f"{quantity}_chance"] for row in part]
        axes.plot([layers.index(row["layer"]) for row in part], chance, color=GREY, ls=":", label="chance")
    if len(layers) <= MOST_LABELS:
        axes.set_xticks(range(len(layers)), layers, rotation=45, ha="right", fontsize=8)
    else:
        axes.set_xlabel(f"layer, 0 to {len(layers) - 1}")
    return ""


def _draw_models(axes: Any, models: Mapping[str, Rows], quantity: str) -> str:
    """Several models: a line each, under the first set that all of them have; returns which."""
    sets = _sets(models)
    of_all = [name for name in sets if all(any(row["set"] == name for row in rows) for rows in models.values())]
    headline = (of_all or sets)[0]
    for (name, rows), colour in zip(models.items(), COLOURS * len(models), strict=False):
        part = [row for row in rows if row["set"] == headline]
        _draw_line(axes, [row["depth"] for row in part], part, quantity, colour, name)
    axes.set_xlabel("relative depth")
    return f", {headline}"


def _sets(models: Mapping[str, Rows]) -> list[str]:
    return list(dict.fromkeys(row["set"] for rows in models.values() for row in rows))


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

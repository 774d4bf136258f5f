"""Equivariance over depth, as a picture: trained and untrained, with the chance level; of one model or of several."""

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

Rows = list[dict[str, Any]]


def write_profile(trial: TrialRecord, path: Path) -> bool:
    """Draws the profile of a trial; returns whether there was anything to draw."""
    return draw_profiles({f"trial {trial.number}": trial.result.profile if trial.result else []}, "", path)


def draw_profiles(models: Mapping[str, Rows], title: str, path: Path) -> bool:
    """Draws every measured layer of each model, a row of panels for each group and a panel for each quantity.

    One model has a colour for each set of elements and its layers' names below; several have a colour each, under
    the headline set, over relative depth. Returns whether there was anything to draw.
    """
    good = {name: [row for row in rows if row["status"] == "ok"] for name, rows in models.items()}
    every = [row for rows in good.values() for row in rows]
    groups = list(dict.fromkeys(row["group"] for row in every))
    quantities = [quantity for quantity in PANELS if any(quantity in row for row in every)]
    if not every:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(quantities), 0.8 + 4 * len(groups)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(groups), len(quantities), squeeze=False)
    for group, row_of_panels in zip(groups, panels, strict=True):
        for quantity, axes in zip(quantities, row_of_panels, strict=True):
            own = {name: [r for r in rows if r["group"] == group and quantity in r] for name, rows in good.items()}
            if len(models) == 1:
                _draw_sets(axes, next(iter(own.values())), quantity)
            else:
                _draw_models(axes, own, quantity)
            axes.set_ylabel(PANELS[quantity])
            axes.set_title(group, fontsize=10, loc="left")
            axes.grid(alpha=0.25)
            low, high = axes.get_ylim()
            axes.set_ylim(min(low, 0.0), max(high, 1.03))
    shown = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    heading = f"{next(iter(models))}: equivariance over depth" if len(models) == 1 else "equivariance over depth"
    figure.suptitle(f"{heading}, n = {every[0]['n']} images{f' ({title})' if title else ''}", fontsize=11)
    figure.savefig(path)
    return True


def _draw_sets(axes: Any, rows: Rows, quantity: str) -> None:
    """One model: a line for each set, dashed for the untrained copy, dotted for chance."""
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    for name, colour in zip(dict.fromkeys(row["set"] for row in rows), COLOURS * 3, strict=False):
        part = [row for row in rows if row["set"] == name]
        place = [layers.index(row["layer"]) for row in part]
        _draw_line(axes, place, part, quantity, colour, f"{name}, trained")
        control = [row.get(f"untrained_{quantity}") for row in part]
        if all(value is not None for value in control):
            style = {"color": colour, "marker": "o", "ms": 4, "mfc": "white", "ls": "--", "lw": 1}
            axes.plot(place, control, label=f"{name}, untrained", **style)
    part = [row for row in rows if row["set"] == rows[0]["set"]] if rows else []
    if part and all(f"{quantity}_chance" in row for row in part):
        chance = [row[f"{quantity}_chance"] for row in part]
        axes.plot([layers.index(row["layer"]) for row in part], chance, color=GREY, ls=":", label="chance")
    if len(layers) <= MOST_LABELS:
        axes.set_xticks(range(len(layers)), layers, rotation=45, ha="right", fontsize=8)
    else:
        axes.set_xlabel(f"layer, 0 to {len(layers) - 1}")


def _draw_models(axes: Any, models: Mapping[str, Rows], quantity: str) -> None:
    """Several models: a line each, under the headline set."""
    for (name, rows), colour in zip(models.items(), COLOURS * len(models), strict=False):
        part = [row for row in rows if row["set"] == rows[0]["set"]]
        _draw_line(axes, [row["depth"] for row in part], part, quantity, colour, name)
    axes.set_xlabel("relative depth")


def _draw_line(axes: Any, place: Sequence[float], rows: Rows, quantity: str, colour: str, label: str) -> None:
    """Values with their 95 % intervals where there are any, and else their standard errors."""
    values = [row[quantity] for row in rows]
    bars = [
        (row[quantity] - row[f"{quantity}_low"], row[f"{quantity}_high"] - row[quantity])
        if f"{quantity}_low" in row
        else (row[f"{quantity}_stderr"],) * 2
        for row in rows
    ]
    reach = list(zip(*[(max(low, 0.0), max(high, 0.0)) for low, high in bars], strict=True)) or None
    axes.errorbar(place, values, yerr=reach, color=colour, marker="o", ms=5, capsize=2, label=label)

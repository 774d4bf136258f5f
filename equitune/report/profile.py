"""One trial's equivariance over depth, trained and untrained, with the chance level."""

from pathlib import Path

from equitune.records.reader import TrialRecord
from equitune.report.front import BLUE, GREY, ORANGE


def write_profile(trial: TrialRecord, path: Path) -> bool:
    """Draws correlation and error of every measured layer; returns whether there was anything to draw."""
    found = trial.result.profile if trial.result else []
    rows = [row for row in found if row["measure"] == "equivariance" and row["status"] == "ok"]
    if not rows:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.6), dpi=130)  # margins by hand: a solved layout doubles the time of drawing
    figure.subplots_adjust(left=0.07, right=0.98, bottom=0.2, top=0.9, wspace=0.2)
    FigureCanvasAgg(figure)
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    for axes, quantity, better in zip(
        figure.subplots(1, 2), ("correlation", "error"), ("1 is equivariant", "0 is exact, 1 is chance"), strict=True
    ):
        for name, colour in (("lattice", BLUE), ("substride", ORANGE)):
            part = [row for row in rows if row["set"] == name]
            place = [layers.index(row["layer"]) for row in part]
            values, errors = [row[quantity] for row in part], [row[f"{quantity}_stderr"] for row in part]
            axes.errorbar(
                place, values, yerr=errors, color=colour, marker="o", ms=5, capsize=2, label=f"{name}, trained"
            )
            control = [row.get(f"untrained_{quantity}") for row in part]
            if all(value is not None for value in control):
                axes.plot(
                    place, control, color=colour, marker="o", mfc="white", ls="--", lw=1, label=f"{name}, untrained"
                )
        if quantity == "correlation":
            part = [row for row in rows if row["set"] == rows[0]["set"]]
            chance = [row["correlation_chance"] for row in part]
            axes.plot([layers.index(row["layer"]) for row in part], chance, color=GREY, ls=":", label="chance")
        axes.set_xticks(range(len(layers)), layers, rotation=45, ha="right", fontsize=8)
        axes.set_ylabel(f"{quantity} ({better})")
        axes.grid(alpha=0.25)
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"trial {trial.number}: equivariance over depth, n = {rows[0]['n']} images", fontsize=11)
    figure.savefig(path)
    return True

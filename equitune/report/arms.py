"""Arms as shown to people: a table in the terminal and a file, with intervals over replicates."""

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from equitune.analysis.arms import Arm, Interval, arm_of, arms, to_test
from equitune.catalog import unknown
from equitune.errors import UserError
from equitune.records.reader import StudyRecord
from equitune.report.front import exact_under, plain, short, write_front

SPLITS = ("validation", "test")
ARROW = {"maximize": "↑", "minimize": "↓"}


def arms_table(study: StudyRecord, metrics: tuple[str, ...] = (), against: int = 0, most: int | None = None) -> Table:
    """One line an arm: the objectives and the metrics asked for, then what was varied.

    Under each arm stands its paired difference from the arm `against`. Numbers are those of the test split once every
    trial has been tested.

    Raises:
        UserError: there is no arm of that number, or no such metric.
    """
    found = arms(study)
    other = arm_of(found, against)
    split = shown_split(study)
    names = metric_columns(study, metrics)
    varied = _varied(found)
    table = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
    table.add_column("arm", justify="right", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    for name in names:
        table.add_column(heading(study, name), justify="right", no_wrap=True)
    for name in varied:
        table.add_column(name.replace(".", "\n"), justify="right")
    exact = {arm.number: max(map(exact_under, arm.trials), key=len) for arm in found}  # the same of all that have ended
    has_exact = any(said != "–" for said in exact.values())
    if has_exact:
        table.add_column("exact\nunder")
    for arm in found[:most]:
        summaries = [arm.summary(name, split) for name in names]
        values = [short(arm.params.get(name, "–")) for name in varied]
        values += [exact[arm.number]] * has_exact
        table.add_row(str(arm.number), _count(arm, summaries), *map(shown, summaries), *values)
        if arm is not other:
            differences = [shown(arm.difference(other, name, split), "+") for name in names]
            table.add_row("", "", *differences, style="dim")
    if most is not None and len(found) > most:
        table.add_row("...")
    return table


def metric_columns(study: StudyRecord, asked: tuple[str, ...]) -> list[str]:
    """Return the objectives and what else was asked for.

    Raises:
        UserError: no trial reports such a metric; names the nearest.
    """
    for name in asked:
        if name not in metric_names(study):
            raise UserError(f"--metric {name}: {unknown('metric', name, metric_names(study))}")
    return list(dict.fromkeys([*study.objectives, *asked]))


def heading(study: StudyRecord, metric: str) -> str:
    """Return a metric above its column, in several lines; an arrow says what is better of an objective."""
    direction = study.objectives.get(metric)
    return f"{metric} {ARROW[direction]}".replace("_", "\n") if direction else metric.replace("_", "\n")


def note(study: StudyRecord, against: int = 0) -> str:
    """Return what the numbers of the table of arms are."""
    return (
        f"{shown_split(study)} split, ± half of a 95 % interval over replicates; "
        f"below: the paired difference from arm {against}"
    )


def shown_split(study: StudyRecord) -> str:
    """`test` once every trial whose test counts has been tested."""
    counting = to_test(study)
    return "test" if counting and all(trial.test for trial in counting) else "validation"


def shown(interval: Interval, sign: str = "") -> str:
    """`0.9769 ± 0.0017`; without the second number where it is nothing, or not known. `+` shows a plus, too."""
    if not interval.n:
        return "–"
    is_count = interval.mean.is_integer() and abs(interval.mean) > 10
    mean = f"{interval.mean:{sign},.0f}" if is_count else f"{interval.mean:{sign}.4f}"
    return mean if math.isnan(interval.sd) or interval.sd == 0 else f"{mean} ± {interval.half:.4f}"


def write_answer(study: StudyRecord, folder: Path) -> list[Path]:
    """Write the frontier, and the arms of a study with replicates as `arms.csv`; return the paths."""
    paths = write_front(study, folder)
    if study.replicates > 1:
        write_arms(study, folder / "arms.csv")
        paths.append(folder / "arms.csv")
    return paths


def write_arms(study: StudyRecord, path: Path) -> None:
    """Every arm, metric and split as a line of CSV, with the paired difference from the first arm."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([plain(cell) for cell in row] for row in rows(study))


def rows(study: StudyRecord) -> Iterator[list[Any]]:
    """Yield a header and one row for each arm, metric and split."""
    found = arms(study)
    params = _varied(found)
    numbers = ["mean", "sd", "low", "high", "difference", "difference_low", "difference_high"]
    yield ["arm", *params, "trials", "complete", "split", "metric", "n", *numbers]
    for arm in found:
        values = [arm.params.get(name) for name in params]
        complete = sum(trial.state == "COMPLETE" for trial in arm.trials)
        for split in SPLITS:
            for metric in metric_names(study):
                of, minus = arm.summary(metric, split), arm.difference(found[0], metric, split)
                if of.n:
                    cells = [of.mean, of.sd, of.low, of.high, minus.mean, minus.low, minus.high]
                    numbers_or_none = [None if math.isnan(cell) else cell for cell in cells]
                    yield [arm.number, *values, len(arm.trials), complete, split, metric, of.n, *numbers_or_none]


def as_json(study: StudyRecord, against: int = 0) -> list[dict[str, Any]]:
    """Return what `equitune show --json` says of the arms of a study with replicates.

    Raises:
        UserError: there is no arm of that number.
    """
    found = arms(study)
    other = arm_of(found, against)
    return [
        {
            "arm": arm.number,
            "params": arm.params,
            "trials": [trial.number for trial in arm.trials],
            "metrics": {
                split: {
                    metric: _plain(arm.summary(metric, split))
                    | {"difference": _plain(arm.difference(other, metric, split))}
                    for metric in metric_names(study)
                    if arm.summary(metric, split).n
                }
                for split in SPLITS
            },
        }
        for arm in found
    ]


def metric_names(study: StudyRecord) -> list[str]:
    """Every metric that a trial reported, the objectives first."""
    reported = {name for trial in study.trials for name in trial.metrics}
    return [*study.objectives, *sorted(reported - study.objectives.keys())]


def _varied(found: list[Arm]) -> list[str]:
    return sorted({name for arm in found for name in arm.params})


def _count(arm: Arm, summaries: list[Interval]) -> str:
    """Replicates that count; `4 of 5` where some have no value, of metrics that the arm has at all."""
    least = min((summary.n for summary in summaries if summary.n), default=0)
    return str(least) if least == len(arm.trials) else f"{least} of {len(arm.trials)}"


def _plain(interval: Interval) -> dict[str, float | int | None]:
    fields = {"n": interval.n, "mean": interval.mean, "sd": interval.sd, "low": interval.low, "high": interval.high}
    return {name: None if math.isnan(value) else value for name, value in fields.items()}

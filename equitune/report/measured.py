"""A measurement of models as shown to people: tables in the terminal, a picture over depth, a table of it all.

Every table fits 80 columns. Several models are named A, B, C ...; the first is the baseline of the others.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from equitune.records.folder import write_json, write_whole
from equitune.report.front import plain
from equitune.report.profile import draw_profiles
from equitune.results.measured import Difference, MeasuredModel, MeasurementRecord
from equitune.results.values import Measurement

HEADINGS = {  # of a layer: where a number stands in its row -> what is written above it
    "equivariance": {
        "error": "error",
        "interval": "95 %\ninterval",
        "untrained_error": "un-\ntrained",
        "wrong_error": "wrong\ng",
        "correlation": "corre-\nlation",
        "correlation_chance": "chance",
        "invariance_error": "invar-\niance",
    },
    "lie_derivative": {
        "lie_error": "error",
        "interval": "95 %\ninterval",
        "untrained_lie_error": "un-\ntrained",
        "lie_derivative": "raw\nderivative",
    },
}
HEADLINE = {"equivariance": "error", "lie_derivative": "lie_error"}  # what the interval is of


def write_measurement(record: MeasurementRecord, folder: Path) -> list[Path]:
    """Write `measurement.json` and, where a layer was measured, `profile.csv` and `profile.png`; return their paths.

    Raises:
        OSError: the folder cannot be written.
    """
    result, table, picture = (folder / name for name in ("measurement.json", "profile.csv", "profile.png"))
    for path in (table, picture):  # of another measurement
        path.unlink(missing_ok=True)
    paths = [result]
    write_json(result, record.model_dump(mode="json"))
    rows = [{"model": name, **row} for name, model in _named(record) for row in model.profile]
    if rows:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writerow({key: plain(key) for key in writer.fieldnames})
        writer.writerows({key: plain(value) for key, value in row.items()} for row in rows)
        write_whole(table, text.getvalue().encode())
        paths.append(table)
    title = f"{record.data['name']}, {record.data['split']} split, 95 % intervals over images"
    if draw_profiles({name: model.profile for name, model in _named(record)}, title, picture):
        paths.append(picture)
    return paths


def lines(record: MeasurementRecord) -> Iterator[str | Table]:
    """Yield what the shell prints, in order."""
    data = record.data
    shape = " x ".join(map(str, data["shape"]))
    fewer = sorted({row["n"] for model in record.models for row in model.profile} - {data["n"]})
    by_layer = f"; of these by layer {' and '.join(map(str, fewer))}" if fewer else ""
    yield f"{data['name']}: {data['n']:,} images of {shape}, {data['split']} split{by_layer}"
    for name, model in _named(record):
        yield f"{name}: {', '.join(f'{key} {value}' for key, value in _described(model))}"
        yield from (f"  notice: {notice}" for notice in model.notices)
        yield from (f"  {what}: {_exactness(model, what)}" for what in model.controls)
    if len(record.models) == 1:
        yield _metrics_table(record.models[0])
        yield from _layer_tables(record.models[0])
    for index, model in enumerate(record.models[1:], 1):
        yield f"\n{_letter(index)} beside {_letter(0)}, on the same images:"
        differences = [each for each in record.differences if each.model == model.name]
        yield _differences_table(record.models[0], model, differences, _letter(index))
    for name, model in _named(record):
        yield from (f"{name}: {reason}" for reason in _reasons(model))


def _named(record: MeasurementRecord) -> list[tuple[str, MeasuredModel]]:
    """Return the models by name; several begin with a letter, which tells even two of one name apart."""
    if len(record.models) == 1:
        return [(record.models[0].name, record.models[0])]
    return [(f"{_letter(index)} {model.name}", model) for index, model in enumerate(record.models)]


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else str(index + 1)


def _described(model: MeasuredModel) -> list[tuple[str, str]]:
    return [(key, value) for key, value in model.provenance.items() if key in ("architecture", "parameters")]


def _exactness(model: MeasuredModel, what: str) -> str:
    """How far each set is exact, beside the numeric floor."""
    controls, group = model.controls[what], what.rpartition(" ")[2]
    measured = [row for row in model.profile if row["group"] == group and "verdict" in row]
    parts = [
        f"{name} set not exact from {layer} on" if (layer := controls.get(f"{name}_broken_at")) else f"{name} set exact"
        for name in dict.fromkeys(row["set"] for row in measured)
    ]
    floor = f"numeric floor {controls['floor']:.1e} in {controls['dtype']}"
    return f"{', '.join(parts) or 'no layer can be measured'} ({floor})"


def _metrics_table(model: MeasuredModel) -> Table:
    """Each metric that has a value, with its interval, chance level and control."""
    table = _table(["metric", "value", "95 % interval", "chance", "untrained"])
    for name, metric in model.metrics.items():
        if metric.value is not None:
            numbers = (_number(value) for value in (metric.chance, metric.untrained))
            table.add_row(name, _number(metric.value), _interval(metric), *numbers)
    return table


def _differences_table(first: MeasuredModel, model: MeasuredModel, found: list[Difference], letter: str) -> Table:
    """Each metric of two models with their paired difference."""
    table = _table(["metric", "A", letter, f"{letter} - A", "95 % interval"])
    by_metric = {each.metric: each for each in found}
    for name in dict.fromkeys([*first.metrics, *model.metrics]):
        values = [each.metrics[name].value if name in each.metrics else None for each in (first, model)]
        if values != [None, None]:
            difference = by_metric.get(name)
            by = [_number(difference.value, sign="+"), _interval(difference, sign="+")] if difference else ["–", ""]
            table.add_row(name, *map(_number, values), *by)
    return table


def _layer_tables(model: MeasuredModel) -> Iterator[str | Table]:
    """Every layer, a table for each measure, group and set."""
    for key in dict.fromkeys((row["measure"], row["group"], row["set"]) for row in model.profile):
        rows = [row for row in model.profile if (row["measure"], row["group"], row["set"]) == key]
        measure, group, name = key
        if measure not in HEADINGS:
            continue
        kind = ", interpolated" if any(row["interpolated"] for row in rows) else ""
        elements = f": {', '.join(rows[0]['elements'])}" if "elements" in rows[0] else ""
        yield f"\n{measure} of {group}, {name}{elements} (protocol {rows[0]['protocol']}{kind})"
        yield _layers_table(measure, rows)
        problems = {row["status"]: row["reason"] for row in reversed(rows) if row["status"] != "ok"}
        yield from (f"  {status}: {reason}" for status, reason in problems.items())


def _layers_table(measure: str, rows: list[dict[str, Any]]) -> Table:
    headings = HEADINGS[measure]
    table = _table(["layer", "stride", *headings.values()])
    for row in rows:
        cells = [_short(row.get(key)) if key != "interval" else _row_interval(row) for key in headings]
        table.add_row(row["layer"], str(row["stride"]), *cells)
    return table


def _row_interval(row: dict[str, Any]) -> str:
    """Of the headline quantity, which is never negative; where it is none or rounding alone, a word in its place."""
    if row["status"] != "ok":
        return str(row["status"])
    if row.get("verdict", "not exact") != "not exact":
        return str(row["verdict"])
    low, high = (row.get(f"{HEADLINE[row['measure']]}_{end}") for end in ("low", "high"))
    return "" if low is None or high is None else f"{_short(low)}–{_short(high)}"


def _reasons(model: MeasuredModel) -> Iterator[str]:
    """Why metrics have no value, or how they came by it, each reason once."""
    found: dict[tuple[str, str | None], list[str]] = {}
    for name, metric in model.metrics.items():
        if metric.status != "not_asked" and (metric.status != "ok" or metric.reason):
            found.setdefault((metric.status, metric.reason), []).append(name)
    for (status, reason), (first, *more) in found.items():
        which = f"{first} and {len(more)} more" if more else first
        yield f"{which}: {reason}" if status == "ok" else f"no value of {which}: {status}: {reason}"


def _table(headings: list[str]) -> Table:
    """Return a table whose numbers are never cut: where room is short, the names in its first column are folded."""
    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    table.add_column(headings[0], overflow="fold")
    for heading in headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _number(value: float | None, digits: int = 4, sign: str = "") -> str:
    if value is None:
        return "–"
    is_tiny = value != 0 and abs(value) < 10.0**-digits
    return f"{value:{sign}.1e}" if is_tiny else f"{value:{sign}.{digits}f}"


def _short(value: float | None) -> str:
    """For a table with many columns: near 0 a digit more."""
    return _number(value, 3 if value is None or abs(value) >= 0.01 else 4)


def _interval(of: Measurement | Difference, sign: str = "") -> str:
    ends = (of.low, of.high)
    return "" if None in ends else f"[{', '.join(_number(end, sign=sign) for end in ends)}]"

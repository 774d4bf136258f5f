"""A measurement of models as shown to people: tables in the terminal, a picture over depth, a table of it all."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from equitune.records.measured import MeasuredModel, MeasurementRecord
from equitune.report.profile import draw_profiles


def write_measurement(record: MeasurementRecord, folder: Path) -> list[Path]:
    """Writes `measurement.json`, `profile.csv` and, where a layer was measured, `profile.png`; returns their paths."""
    from equitune.records.folder import write_json

    paths = [folder / "measurement.json", folder / "profile.csv"]
    write_json(paths[0], record.model_dump(mode="json"))
    rows = [{"model": model.name, **row} for model in record.models for row in model.profile]
    with paths[1].open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    title = f"{record.data['name']}, {record.data['split']} split, 95 % intervals over images"
    if draw_profiles({model.name: model.profile for model in record.models}, title, folder / "profile.png"):
        paths.append(folder / "profile.png")
    return paths


def lines(record: MeasurementRecord) -> Iterator[str | Table]:
    """What the shell prints, in order."""
    data = record.data
    shape = " x ".join(map(str, data["shape"]))
    yield f"{data['name']}: {data['n']:,} images of {shape}, {data['split']} split"
    for model in record.models:
        yield f"{model.name}: {', '.join(f'{key} {value}' for key, value in _described(model))}"
        yield from (f"  notice: {notice}" for notice in model.notices)
        for what, controls in model.controls.items():
            yield f"  {what}: numeric floor {controls['floor']:.1e} in {controls['dtype']}; " + _exactness(controls)
    yield _metrics_table(record)
    if len(record.models) == 1:
        yield from _layer_tables(record.models[0])
    yield from dict.fromkeys(_reasons(record))


def _described(model: MeasuredModel) -> list[tuple[str, str]]:
    return [(key, value) for key, value in model.provenance.items() if key in ("architecture", "trial", "parameters")]


def _exactness(controls: dict[str, Any]) -> str:
    broken = {key.removesuffix("_broken_at"): layer for key, layer in controls.items() if key.endswith("_broken_at")}
    if not broken:
        return "exact at every layer"
    return "first layer that is not exact: " + ", ".join(f"{layer} ({name})" for name, layer in broken.items())


def _table(**options: Any) -> Table:
    return Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold", **options)


def _add_numbers(table: Table, *headings: str) -> None:
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)


def _metrics_table(record: MeasurementRecord) -> Table:
    """One model: its value, interval, chance level and control. Several: a column each, with differences."""
    first, *others = record.models
    table = _table()
    table.add_column("metric", overflow="fold")
    if not others:
        _add_numbers(table, "value", "95 % interval", "chance", "untrained")
        for name, metric in first.metrics.items():
            if metric.value is not None:
                controls = (_number(metric.chance), _number(metric.untrained))
                table.add_row(name, _number(metric.value), _interval(metric.low, metric.high), *controls)
        return table
    table.add_column(f"{first.name}\n(baseline)", justify="right", overflow="fold", max_width=12)
    for model in others:
        table.add_column(model.name, justify="right", overflow="fold", max_width=12)
        _add_numbers(table, "differ-\nence", "95 % interval")
    differences = {(each.model, each.metric): each for each in record.differences}
    for name, metric in first.metrics.items():
        cells = [_number(metric.value)]
        for model in others:
            difference = differences.get((model.name, name))
            cells.append(_number(model.metrics[name].value) if name in model.metrics else "–")
            cells += (
                (f"{difference.value:+.4f}", f"[{difference.low:+.4f}, {difference.high:+.4f}]")
                if difference
                else ("", "")
            )
        if any(cell.strip("–") for cell in cells):
            table.add_row(name, *cells)
    return table


def _layer_tables(model: MeasuredModel) -> Iterator[Table]:
    """Every layer, a table for each group and set: the error with its interval and controls, the correlation."""
    rows = [row for row in model.profile if row["measure"] == "equivariance"]
    for group, name in dict.fromkeys((row["group"], row["set"]) for row in rows):
        own = [row for row in rows if (row["group"], row["set"]) == (group, name)]
        kind = ", interpolated" if any(row["interpolated"] for row in own) else ""
        title = f"\n{group}, {name} set: {', '.join(own[0]['elements'])} (protocol {own[0]['protocol']}{kind})"
        table = _table(title=title, title_justify="left", title_style="")
        table.add_column("layer", overflow="fold")
        _add_numbers(table, "stride", "error", "95 % interval", "un-\ntrained", "wrong\ng", "invar-\niance")
        _add_numbers(table, "corre-\nlation", "chance")
        for row in own:
            table.add_row(row["layer"], str(row["stride"]), *_layer_cells(row))
        yield table


def _layer_cells(row: dict[str, Any]) -> list[str]:
    if row["status"] != "ok":
        return [row["status"], *[""] * 6]
    is_measured = row["verdict"] == "not exact"  # else it is rounding, and has no interval that means anything
    interval = _interval(row.get("error_low"), row.get("error_high")) if is_measured else row["verdict"]
    numbers = ("untrained_error", "wrong_error", "invariance_error", "correlation", "correlation_chance")
    return [_number(row["error"]), interval, *(_number(row.get(name)) for name in numbers)]


def _reasons(record: MeasurementRecord) -> Iterator[str]:
    """Why metrics have no value, each reason once."""
    for model in record.models:
        found: dict[str, list[str]] = {}
        for name, metric in model.metrics.items():
            if metric.status not in ("ok", "not_asked"):
                found.setdefault(f"{metric.status}: {metric.reason}", []).append(name)
        for reason, names in found.items():
            yield f"{model.name}: {', '.join(names)} {'have' if len(names) > 1 else 'has'} no value: {reason}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}" if abs(value) >= 1e-4 or value == 0 else f"{value:.1e}"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None else f"[{_number(low)}, {_number(high)}]"

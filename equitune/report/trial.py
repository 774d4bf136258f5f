"""One recorded trial, for people and for machines."""

import time
from collections.abc import Iterator
from typing import Any

from rich.table import Table

from equitune.config.space import Call
from equitune.records.folder import TrialFolder
from equitune.records.place import Place
from equitune.records.reader import TrialRecord
from equitune.report.front import settings, short, shown
from equitune.results.values import Epoch


def as_json(study: str, trial: TrialRecord, folder: TrialFolder, violates: dict[str, str]) -> dict[str, Any]:
    """Return what `equitune show STUDY/NUMBER --json` prints: a stable interface, to which keys may be added."""
    result = trial.result.model_dump(mode="json", exclude={"profile"}) if trial.result else {}
    return {
        "study": study,
        **result,
        "number": trial.number,
        "state": trial.state,
        "reason": trial.reason,
        "violates": violates,
        "started": trial.started,
        "params": trial.config.params,
        "config": trial.config.to_json(),
        "test": {name: metric.model_dump(mode="json") for name, metric in trial.test.items()},
        "epochs": [epoch.model_dump(mode="json") for epoch in trial.epochs],
        "damaged": list(trial.damaged),
        "files": {path.name: str(path) for path in files(folder)},
    }


def files(folder: TrialFolder) -> list[Place]:
    """Return the trial's files that are there."""
    known = (folder.config, folder.epochs, folder.checkpoint, folder.weights, folder.result, folder.test, folder.log)
    return [path for path in known if path.exists()]


def lines(study: str, trial: TrialRecord, folder: TrialFolder, violates: dict[str, str]) -> Iterator[str | Table]:
    """Yield what the shell prints, in order; what a trial does not have is left out.

    `violates` names the constraints that the trial does not keep, and says why.
    """
    reason = f": {trial.reason}" if trial.reason else ""
    yield f"{study}/{trial.number}: {trial.state}{reason}"
    yield from (f"  violates {name}: {why}" for name, why in violates.items())
    yield _pairs("chosen by the search", {name: short(value) for name, value in trial.config.params.items()})
    yield _pairs("configuration", dict(_configuration(trial)))
    if trial.metrics:
        yield _metrics(trial)
    if trial.exact:
        yield _pairs("exact under", {symmetry: verdict.said for symmetry, verdict in trial.exact.items()})
    if trial.amounts:
        yield _amounts(trial)
    if trial.epochs:
        yield _epochs(trial)
    yield _pairs("when and where", dict(_provenance(trial)))
    yield f"Folder:  {folder.path} ({', '.join(path.name for path in files(folder))})"
    if trial.result and trial.result.traceback:
        yield trial.result.traceback.rstrip()


def _pairs(heading: str, values: dict[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=True, header_style="bold")
    table.add_column(heading, no_wrap=True)
    table.add_column("", overflow="fold")
    for name, value in values.items():
        table.add_row(f"  {name}", value)
    if not values:
        table.add_row("  nothing", "")
    return table


def _configuration(trial: TrialRecord) -> Iterator[tuple[str, str]]:
    config = trial.config
    data = config.data.model_dump(exclude={"name", "args"}, exclude_defaults=True)
    yield "data", _call(Call(name=config.data.name, args=data | dict(config.data.args)))
    if config.input.size is not None:
        yield "input", f"size {config.input.size}"
    for part in ("model", "prior", "downsampler", "stem", "averaging"):
        if (call := getattr(config, part)) is not None:
            yield part, _call(call)
    for call in config.augmentation:
        yield "augmentation", _call(call)
    yield "training", settings(config.training.model_dump())
    yield "measures", "; ".join(_call(call) for call in config.measures) or "none"
    if config.rungs:
        yield "rungs", f"after epochs {', '.join(map(str, config.rungs))}, on {config.rung_images} images"
    yield "seed", f"{config.seed}" + (f" (replicate {config.replicate})" if config.replicate else "")
    yield "device", config.device


def _call(call: Call) -> str:
    return f"{call.name}: {settings(call.args)}" if call.args else call.name


def _metrics(trial: TrialRecord) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    has_test = bool(trial.test)
    table.add_column("metric", no_wrap=True)
    for name in ("value", *(["test"] if has_test else []), "chance", "untrained", "n"):
        table.add_column(name, justify="right")
    for name, metric in trial.metrics.items():
        of_test = trial.test.get(name)
        values = [shown(metric), *([shown(of_test) if of_test and of_test.split == "test" else ""] if has_test else [])]
        controls = ["" if value is None else short(float(value)) for value in (metric.chance, metric.untrained)]
        unit = f" [{metric.unit}]" if metric.unit != "1" else ""
        table.add_row(f"  {name}{unit}", *values, *controls, str(metric.n or ""))
        if metric.value is None:
            table.add_row(f"    {metric.reason}")
    return table


def _amounts(trial: TrialRecord) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("amount of", no_wrap=True)
    table.add_column("before training", justify="right")
    table.add_column("after", justify="right")
    for layer, amount in trial.amounts.items():
        unit = f" [{amount.unit}]" if amount.unit != "1" else ""
        table.add_row(f"  {layer}{unit}", short(amount.before), short(amount.after))
    return table


def _epochs(trial: TrialRecord) -> Table:
    """Return the first epoch, the most accurate one and the last."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(f"epoch of {trial.config.training.epochs}", no_wrap=True)
    for name in ("training loss", "validation loss", "accuracy", "seconds"):
        table.add_column(name, justify="right")
    best = max(trial.epochs, key=lambda epoch: epoch.validation_accuracy)
    chosen: dict[int, tuple[list[str], Epoch]] = {}
    for word, epoch in (("first", trial.epochs[0]), ("best", best), ("last", trial.epochs[-1])):
        chosen.setdefault(epoch.epoch, ([], epoch))[0].append(word)
    for number in sorted(chosen):
        words, epoch = chosen[number]
        numbers = (epoch.train_loss, epoch.validation_loss, epoch.validation_accuracy)
        table.add_row(
            f"  {number} ({', '.join(words)})", *(f"{value:.4f}" for value in numbers), f"{epoch.train_s:.1f}"
        )
    return table


def _provenance(trial: TrialRecord) -> Iterator[tuple[str, str]]:
    yield "begun", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(trial.started))
    if trial.result:
        if trial.result.seconds:
            yield "seconds", ", ".join(f"{name} {value:.1f}" for name, value in trial.result.seconds.items())
        yield from trial.result.provenance.items()

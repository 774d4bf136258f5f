"""The commands about studies: search, check, show."""

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from equitune.cli.options import (
    DONE,
    INTERRUPTED,
    TRIALS_FAILED,
    StudyFile,
    data_root_option,
    extend_option,
    register_option,
    require_lasting,
    root_option,
    same_command,
    say_damaged,
    set_option,
    storage_address,
    storage_option,
    tracking_option,
    tracking_store,
    use_data_root,
    warm_start_option,
)
from equitune.cli.output import echo, echo_json, open_console
from equitune.cli.tools import register_models
from equitune.cli.trials import show_trial
from equitune.config.load import load_study
from equitune.errors import UserError
from equitune.records.folder import StudyFolder, named_trial, open_study, studies_root
from equitune.records.on_disk import written
from equitune.records.reader import StudyReader, StudyRecord

if TYPE_CHECKING:
    from equitune.config.study import StudySpec


@click.command()
@click.argument("file", type=StudyFile(), metavar="FILE")
@set_option
@root_option
@data_root_option
@tracking_option
@click.option("--address", help="Address of a running Ray cluster. [default: start a local one]")
@extend_option
@warm_start_option
@register_option
@storage_option
@click.option("--dry-run", is_flag=True, help="Show the trials and a guess at the cost; run nothing.")
def search(
    file: Path,
    overrides: tuple[str, ...],
    root: str | None,
    data_root: str | None,
    tracking_uri: str | None,
    address: str | None,
    extend: bool,
    warm_start: tuple[str, ...],
    register: bool,
    storage: str | None,
    dry_run: bool,
) -> None:
    """Run the study in FILE, or resume it where it was interrupted.

    FILE is a YAML file, or the name of a study that comes with equitune, such as `capacity`: `equitune catalog
    searchspace` lists them.
    """

    spec = load(file, overrides, root)
    use_data_root(data_root)
    if dry_run:
        _print_plan(spec)
        return
    require_lasting(root)
    folder = StudyFolder(studies_root(root) / spec.study)
    at = {"address": address, "storage": storage_address(storage)}
    how = {"overrides": overrides, "extend": extend, "warm_start": warm_start} | at
    uri = tracking_store(tracking_uri, folder.path.parent)
    outcome = _run(spec, folder, file, uri, **how)
    if register and outcome.state == "complete":
        _register(folder, uri)
    study = _print_answer(folder, root, draw=outcome.state != "halted")
    if outcome.state == "halted":
        raise UserError(outcome.reason or "the study was halted")
    if outcome.state == "interrupted":
        echo(f"Go on:   {same_command()}")
        sys.exit(INTERRUPTED)
    failed = [trial for trial in study.counted() if trial.state == "FAILED"]
    completed = any(trial.state == "COMPLETE" for trial in study.trials)
    if study.damaged:
        raise UserError("\n".join([*study.damaged, f"study {study.name} is not complete: files of it are damaged"]))
    sys.exit(DONE if completed and not failed else TRIALS_FAILED)


@click.command()
@click.argument("files", nargs=-1, required=True, type=StudyFile(), metavar="FILES")
@set_option
@root_option
def check(files: tuple[Path, ...], overrides: tuple[str, ...], root: str | None) -> None:
    """Say what is wrong with each of FILES, with line and column, without running anything."""
    mistakes = []
    for file in files:
        try:
            spec = load(file, overrides, root)
        except UserError as error:
            mistakes.append(str(error))
        else:
            echo(f"{file}: a study of {spec.search.trials} trials over {len(spec.parameters())} parameters")
    if mistakes:
        raise UserError("\n".join(mistakes))


@click.command()
@click.argument("study", metavar="STUDY[/NUMBER]")
@root_option
@click.option("--json", "as_json", is_flag=True, help="Print for machines.")
@click.option("--metric", "metrics", multiple=True, help="Show this metric, too. May be repeated.")
@click.option("--against", default=0, show_default=True, type=click.IntRange(min=0), help="The arm to compare with.")
def show(study: str, root: str | None, as_json: bool, metrics: tuple[str, ...], against: int) -> None:
    """Show STUDY: how its trials ended, and its front; its arms, where it has replicates. Or one trial, whole."""

    if named_trial(study):
        show_trial(study, studies_root(root), as_json)
        return
    folder = open_study(studies_root(root), study)
    if as_json:
        from equitune.report import machine

        record = StudyReader(folder).read()
        say_damaged(record)
        echo_json(machine.as_json(record, against))
    else:
        _print_answer(folder, root, metrics, against, draw=False)


def load(file: Path, overrides: tuple[str, ...], root: str | None) -> "StudySpec":
    """Return the study of a file, checked as far as that goes without its data; its notices are printed.

    Raises:
        UserError: every mistake in it, a line each.
    """
    from equitune.preflight.feasible import require_networks
    from equitune.search.recorded import recorded_params

    spec = load_study(file, overrides, require_networks, partial(recorded_params, studies_root(root)))
    for notice in spec.notices():
        echo(f"{file}: notice: {notice}", err=True)
    return spec


def _run(spec: "StudySpec", folder: "StudyFolder", file: Path, uri: str, **how: Any) -> Any:
    from equitune.driver.run_study import run_study
    from equitune.report.arms import write_answer
    from equitune.report.profile import write_profile
    from equitune.report.terminal import StudyView
    from equitune.tracking.live import projecting

    view = StudyView(folder, open_console())
    with view.showing(), projecting(folder, uri, write_answer, write_profile, view.say, view.reader) as hurry:
        outcome = run_study(spec, folder, source=file, say=view.say, **how)
        if outcome.state != "complete":
            hurry()
        return outcome


def _register(folder: "StudyFolder", uri: str) -> None:
    """Register the front's models; a store that does not answer is no reason to fail."""
    try:
        register_models(folder, uri, echo)
    except UserError as error:
        echo(f"{error}: `equitune mlflow sync {folder.name}` registers the models when it answers again", err=True)


def _print_answer(
    folder: "StudyFolder", root: str | None, metrics: tuple[str, ...] = (), against: int = 0, draw: bool = True
) -> "StudyRecord":
    """Return the front or the arms as a table, where everything lies, and the next command to type."""
    from equitune.report.arms import write_answer
    from equitune.report.terminal import answer, summary

    study = StudyReader(folder).read()
    console = open_console()
    for line in summary(study):
        console.print(line, markup=False, soft_wrap=True)
    if any(trial.state == "COMPLETE" for trial in study.trials):
        console.print(answer(study, metrics, against))
        if draw:
            with written(folder.path) as local:
                local.mkdir(exist_ok=True)
                write_answer(study, local)
    at_root = f" --root {root}" if root else ""
    echo(f"Folder:  {folder.path}")
    if (folder.path / "front.png").exists():
        echo(f"Picture: {folder.path / 'front.png'} (interactive: front.html, table: front.csv)")
    if (folder.path / "arms.csv").exists():
        echo(f"Arms:    {folder.path / 'arms.csv'}")
    echo(f"Next:    equitune ui{at_root}")
    return study


def _print_plan(spec: "StudySpec") -> None:
    from equitune.data.splits import load_splits
    from equitune.preflight.plan import plan
    from equitune.report.front import settings
    from equitune.report.terminal import duration

    planned = plan(spec, load_splits(spec.data, lambda sentence: echo(sentence, err=True)))
    for trial in planned.trials:
        if trial.config.number == planned.num_exact:
            echo("  those that follow depend on results; without any they would be:")
        values = settings(trial.config.params)
        size = f"infeasible: {trial.reason}" if trial.parameters is None else f"{trial.parameters:,} parameters"
        size += f" at width {trial.width}" if trial.width else ""
        of = f" (replicate {trial.config.replicate})" if spec.search.replicates > 1 else ""
        echo(f"  trial {trial.config.number}{of}: {values}: {size}")
    for line in planned.exactness():
        echo(line)
    first = planned.trials[0].parameters or 0
    echo(f"{spec.study}: {len(planned.trials)} trials, the first model has {first:,} parameters")
    at_once = spec.resources.concurrent or max(1, int((os.cpu_count() or 1) // spec.resources.cpu))
    where = "GPU" if spec.resources.gpu else "CPU core"
    echo(f"guess: {duration(planned.seconds)} of one {where}, {duration(planned.seconds / at_once)} with {at_once}")

"""The commands that read, run again or carry away what was recorded: list, trial, export; and show, of one trial."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from equitune.cli.options import (
    DONE,
    TRIALS_FAILED,
    data_root_option,
    made_folder,
    root_option,
    say_damaged,
    use_data_root,
)
from equitune.cli.output import WIDTH, echo, echo_json, open_console
from equitune.errors import UserError
from equitune.records.folder import TrialFolder, named_trial, open_study, open_trial, studies_root
from equitune.records.info import read_info
from equitune.records.reader import StudyReader, constraints_of, read_trial

if TYPE_CHECKING:
    from equitune.records.place import Place
    from equitune.results.values import Epoch
    from equitune.training.again import Comparison
    from equitune.training.epoch import OnEpoch

MOST_DIFFERENCES = 20  # that are listed


@click.command("list")
@root_option
@click.option("--json", "as_json", is_flag=True, help="Print for machines.")
def list_studies(root: str | None, as_json: bool) -> None:
    """List the studies under the root: how far each is, its front, the best value of each objective."""
    from equitune.report import listing

    place = studies_root(root)
    if as_json:
        echo_json(listing.as_json(place))
        return
    studies = listing.listed(place)
    if not studies:
        echo(f"there is no study in {place}: `equitune search FILE` begins one; --root names another place")
        return
    open_console(width=WIDTH).print(listing.list_table(studies))


def show_trial(text: str, root: "Place", as_json: bool) -> None:
    """Print what `equitune show STUDY/NUMBER` shows."""
    from equitune.report import trial

    study, number = _named(text)
    folder = open_trial(root, study, number)
    record = read_trial(folder)
    violates = record.violations(constraints_of(read_info(open_study(root, study).study)))
    for sentence in record.damaged:
        echo(sentence, err=True)
    if as_json:
        echo_json(trial.as_json(study, record, folder, violates))
        return
    console = open_console(width=WIDTH)
    for line in trial.lines(study, record, folder, violates):
        console.print(line, markup=False, soft_wrap=isinstance(line, str))


@click.command("trial")
@click.argument("trial", metavar="STUDY/NUMBER")
@root_option
@data_root_option
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="[default: as recorded]")
@click.option("--output", type=click.Path(path_type=Path), help="Folder that keeps the new files. [default: none does]")
def run_trial_again(
    trial: str, root: str | None, data_root: str | None, device: str | None, output: Path | None
) -> None:
    """Run a recorded trial again, in this process, and say whether its numbers are the same bit for bit.

    Nothing of the study is changed. Ends with code 0 where they are the same or the record has none, else with 1.
    """

    study, number = _named(trial)
    place = studies_root(root)
    recorded = open_trial(place, study, number)
    if output is not None:
        _require_empty(output)
    then = read_trial(recorded)
    use_data_root(data_root)

    from equitune.data.splits import recorded_data
    from equitune.training.again import compared, require_device, run_again

    asked = then.config.model_copy(update={"device": device or then.config.device})
    require_device(asked)
    info = read_info(open_study(place, study).study)
    splits = recorded_data(asked, info)
    keeping = made_folder(output) if output else nullcontext()
    with keeping, tempfile.TemporaryDirectory(prefix="equitune-") as temporary:
        folder = TrialFolder(Path(temporary), number)
        with _showing_epochs(trial, asked.training.epochs) as on_epoch:
            now = run_again(then, asked, splits, folder, on_epoch)
        assert now.result is not None
        found = compared(then, now, recorded.weights, folder.weights, info)
        if output is not None:
            shutil.copytree(temporary, output, dirs_exist_ok=True)
    seconds = sum(now.result.seconds.values())
    how = f"{now.state} after {seconds:.1f} s" + (f": {now.reason}" if now.reason else "")
    echo(f"{trial}: {how}")
    if output is not None:
        echo(f"Folder:  {output}")
    sys.exit(_say(trial, then.state, found))


@click.command()
@click.argument("study", metavar="STUDY[/NUMBER]")
@click.option("--front", is_flag=True, help="The networks of the front, too.")
@click.option(
    "--output", type=click.Path(path_type=Path), help="Folder of what is exported. [default: ./exports/STUDY]"
)
@click.option("--force", is_flag=True, help="Replace files of the same names in a folder that is not empty.")
@root_option
@data_root_option
def export(study: str, front: bool, output: Path | None, force: bool, root: str | None, data_root: str | None) -> None:
    """Write a study's trials as a table, and networks for use elsewhere: a trial's, or with --front each of the front.

    The table is trials.csv and trials.parquet. Of a network, in a folder named by its trial: model.safetensors, with
    its configuration as metadata and as config.json, and program.pt2, which torch alone can run, and which
    `equitune measure program.pt2 --data ...` measures.
    """
    from equitune.analysis.pareto import front as front_of
    from equitune.report.table import write_frame

    named = named_trial(study)
    if named and front:
        raise UserError(f"--front exports every trial of the front, but {study} is one trial: leave one of the two out")
    place = studies_root(root)
    name = named[0] if named else study
    folder = open_study(place, name)
    record = StudyReader(folder).read()
    say_damaged(record)
    chosen = front_of(record) if front else []
    if named:
        open_trial(place, *named)
        chosen = [trial for trial in record.trials if trial.number == named[1]]
        if not chosen:
            raise UserError(f"{study} cannot be exported: its record is damaged")
    if front and not chosen:
        raise UserError(f"study {name} has no front yet: none of its trials is COMPLETE with a value of each objective")
    target = output or Path("exports") / name
    if not force:
        _require_empty(target, ", or replace files of the same names with --force")
    use_data_root(data_root)
    if chosen:
        from equitune.data.splits import recorded_data
        from equitune.measuring.export import export_trial, require_weights

        for trial in chosen:
            require_weights(trial, folder.trial(trial.number))
        splits = recorded_data(chosen[0].config, record.info)
    with made_folder(target), tempfile.TemporaryDirectory(prefix="equitune-") as temporary:
        local = Path(temporary)  # all of it, or nothing
        paths = write_frame(record, local)
        exported = []
        for trial in chosen:
            source = folder.trial(trial.number)
            exported.append(export_trial(trial, source, splits, local / source.path.name))
        for trial in chosen:  # with --force, that of another network
            (target / folder.trial(trial.number).path.name / "program.pt2").unlink(missing_ok=True)
        shutil.copytree(local, target, dirs_exist_ok=True)
    echo(f"{len(record.trials)} trials: {', '.join(str(target / path.relative_to(local)) for path in paths)}")
    for done in exported:
        echo(f"trial {done.number}: {', '.join(str(target / path.relative_to(local)) for path in done.paths)}")
        for notice in done.notices:
            echo(f"  notice: {notice}")
    echo(f"Folder:  {target}")


def _named(text: str) -> tuple[str, int]:

    named = named_trial(text)
    if named is None:
        raise UserError(f"a trial is named STUDY/NUMBER, such as capacity/12, but got '{text}'")
    return named


def _require_empty(folder: Path, or_else: str = "") -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output: {folder} is a file: name a folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--output: {folder} is not empty: name another folder{or_else}")


@contextmanager
def _showing_epochs(what: str, epochs: int) -> "Iterator[OnEpoch]":
    """Return a bar on standard error for the training; nothing where that is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = open_console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"{what}: training", total=epochs)

        def show(epoch: "Epoch") -> None:
            doing = "measuring" if epoch.epoch == epochs else f"accuracy {epoch.validation_accuracy:.3f}"
            progress.update(task, description=f"{what}: {doing}", completed=epoch.epoch)

        yield show


def _say(trial: str, state_then: str, found: "Comparison | None") -> int:
    """How the new numbers stand beside the record; the code to end with."""
    if found is None:
        echo("there is nothing to compare with: the recorded trial has not ended")
        return DONE
    of = "metrics, profile and epochs" if state_then != "PRUNED" else "the epochs before it was stopped early"
    weights = " and the weights" if found.has_weights else ""
    if not found.differences:
        echo(f"the same bit for bit: {found.num_values} values of {of}{weights}")
        return DONE
    echo(f"not the same: {len(found.differences)} of {found.num_values} values of {of}{weights} differ")
    for difference in found.differences[:MOST_DIFFERENCES]:
        by = "" if difference.by is None else f" ({difference.by:+.3g})"
        echo(f"  {difference.what}: was {_short(difference.then)}, is {_short(difference.now)}{by}")
    if len(found.differences) > MOST_DIFFERENCES:
        echo(f"  and {len(found.differences) - MOST_DIFFERENCES} more")
    same = "nothing that is recorded explains it: program, torch, Python and device are as they were"
    echo(f"What may explain it: {'; '.join(found.causes)}" if found.causes else same)
    return TRIALS_FAILED


def _short(value: object) -> str:
    return f"{value!r}" if isinstance(value, float) else str(value) if value is not None else "none"

"""The shell: parses, calls, prints, exits. Each command imports what it needs, so that help is instant."""

import atexit
import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from equitune import __version__, catalog
from equitune.errors import UserError

if TYPE_CHECKING:
    from equitune.records.folder import StudyFolder
    from equitune.records.reader import StudyRecord
    from equitune.spec.study import StudySpec

DONE, TRIALS_FAILED, USERS_MISTAKE, INTERRUPTED = 0, 1, 2, 130

root_option = click.option(
    "--root", type=click.Path(path_type=Path), help="Where studies lie. [default: EQUITUNE_ROOT or ./studies]"
)
data_root_option = click.option(
    "--data-root", type=click.Path(path_type=Path), help="Where data sets lie. [default: EQUITUNE_DATA or ./data]"
)
tracking_option = click.option(
    "--tracking-uri", help="MLflow's tracking store. [default: MLFLOW_TRACKING_URI or mlflow.db under the root]"
)
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override one value of the file. May be repeated."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Which training choices make a network equivariant, and what does it cost in accuracy?"""


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@set_option
@root_option
@data_root_option
@tracking_option
@click.option("--address", help="Address of a running Ray cluster. [default: start a local one]")
@click.option("--dry-run", is_flag=True, help="Show the trials and a guess at the cost; run nothing.")
def search(
    file: Path,
    overrides: tuple[str, ...],
    root: Path | None,
    data_root: Path | None,
    tracking_uri: str | None,
    address: str | None,
    dry_run: bool,
) -> None:
    """Run the study in FILE, or go on with it where it was interrupted."""
    from equitune.records.folder import StudyFolder, studies_root

    spec = _load(file, overrides)
    _use_data_root(data_root)
    if dry_run:
        _print_plan(spec)
        return
    folder = StudyFolder(studies_root(root) / spec.study)
    outcome = _run(spec, folder, file, overrides, _tracking_uri(tracking_uri, folder.path.parent), address)
    study = _print_answer(folder, root)
    if outcome.state == "halted":
        raise UserError(outcome.reason or "the study was halted")
    if outcome.state == "interrupted":
        click.echo(f"Go on:   {_same_command()}")
        sys.exit(INTERRUPTED)
    failed = [trial for trial in study.trials if trial.state == "FAILED"]
    completed = any(trial.state == "COMPLETE" for trial in study.trials)
    sys.exit(DONE if completed and not failed else TRIALS_FAILED)


@cli.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@set_option
def check(files: tuple[Path, ...], overrides: tuple[str, ...]) -> None:
    """Say what is wrong with each of FILES, with line and column, without running anything."""
    mistakes = []
    for file in files:
        try:
            spec = _load(file, overrides)
        except UserError as error:
            mistakes.append(str(error))
        else:
            click.echo(f"{file}: a study of {spec.search.trials} trials over {len(spec.parameters())} parameters")
    if mistakes:
        raise UserError("\n".join(mistakes))


@cli.command()
@click.argument("study")
@root_option
@click.option("--json", "as_json", is_flag=True, help="Print for machines.")
def show(study: str, root: Path | None, as_json: bool) -> None:
    """Show STUDY: how its trials ended, and its front."""
    from equitune.records.folder import open_study, studies_root

    folder = open_study(studies_root(root), study)
    if as_json:
        from equitune.records.reader import StudyReader
        from equitune.report import machine

        click.echo(json.dumps(machine.as_json(StudyReader(folder).read()), indent=1))
    else:
        _print_answer(folder, root, draw=False)


@cli.command()
@root_option
@tracking_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=5000, show_default=True, help="Port to listen on.")
def ui(root: Path | None, tracking_uri: str | None, host: str, port: int) -> None:
    """Open the MLflow UI on the studies' runs, until Ctrl-C."""
    from equitune.records.folder import studies_root

    uri = _tracking_uri(tracking_uri, studies_root(root))
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"--port: {host}:{port} cannot be used ({error.strerror}): name another, such as --port {port + 1}"
            ) from None
    click.echo(f"MLflow UI on http://{host}:{port} (Ctrl-C ends it)")
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        uri,
        "--host",
        host,
        "--port",
        str(port),
    ]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen([*command, "--workers", "1"], env=environment, start_new_session=True)
    for number in (signal.SIGINT, signal.SIGTERM):  # the server takes one SIGTERM well, and Ctrl-C with a traceback
        signal.signal(number, lambda *_: server.terminate())
    sys.exit(server.wait())


@cli.group()
def mlflow() -> None:
    """MLflow, the projection of a study for people."""


@mlflow.command()
@click.argument("study")
@root_option
@tracking_option
def sync(study: str, root: Path | None, tracking_uri: str | None) -> None:
    """Project STUDY into MLflow again, from its folder."""
    from equitune.records.folder import open_study, studies_root
    from equitune.report.front import write_front
    from equitune.report.profile import write_profile
    from equitune.tracking.projector import sync as project

    folder = open_study(studies_root(root), study)
    uri = _tracking_uri(tracking_uri, folder.path.parent)
    project(folder, uri, write_front, write_profile)
    click.echo(f"{study} is in {uri}")


@cli.command("catalog")
@click.argument("kind", required=False, type=click.Choice(list(catalog.KINDS)))
def show_catalog(kind: str | None) -> None:
    """List the components that a study may name, with their arguments."""
    for each in [kind] if kind else catalog.KINDS:
        click.echo(f"{each}")
        for name in catalog.names(each):
            component = catalog.describe(each, name)
            click.echo(f"  {name}: {component.summary}")
            for parameter, (_, default) in component.parameters.items():
                given = "required" if default is ... else f"default {default!r}"
                click.echo(f"      {parameter}: {component.annotations[parameter]}, {given}")


@cli.command()
@click.argument("dataset")
@data_root_option
def download(dataset: str, data_root: Path | None) -> None:
    """Fetch DATASET into the data root."""
    from equitune.datasets._splits import data_root as resolved
    from equitune.spec.trial import DataConfig

    _use_data_root(data_root)
    module = catalog.module("dataset", dataset)
    if not hasattr(module, "download"):
        raise UserError(f"{dataset} is not fetched: it comes with the program, or from a folder of yours")
    root = resolved(DataConfig(name=dataset))
    try:
        module.download(root)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{dataset} cannot be fetched into {root}: {error}") from None
    click.echo(f"{dataset} is in {root}")


def main() -> NoReturn:
    """The program: a user's mistake ends in its sentence and code 2; a bug keeps its traceback."""
    code = _exit_code()
    if "ray" in sys.modules:  # taking Ray and torch apart, module by module, would last two seconds
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _exit_code() -> int:
    try:
        cli.main(standalone_mode=False)
    except SystemExit as end:
        return int(end.code or DONE)
    except UserError as error:
        click.echo(str(error), err=True)
        return USERS_MISTAKE
    except click.ClickException as error:
        error.show()
        return USERS_MISTAKE
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        click.echo(f"{error.filename or 'a file'} cannot be written: {error.strerror}", err=True)
        return USERS_MISTAKE
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    return DONE


def _load(file: Path, overrides: tuple[str, ...]) -> "StudySpec":
    from equitune.spec.load import load_study

    spec = load_study(file, overrides)
    for notice in spec.notices():
        click.echo(f"{file}: notice: {notice}", err=True)
    return spec


def _run(
    spec: "StudySpec", folder: "StudyFolder", file: Path, overrides: tuple[str, ...], uri: str, address: str | None
) -> Any:
    from rich.console import Console

    from equitune.report.front import write_front
    from equitune.report.profile import write_profile
    from equitune.report.terminal import StudyView
    from equitune.search.study import run_study
    from equitune.tracking.projector import projecting

    view = StudyView(folder, Console())
    with view.showing(), projecting(folder, uri, write_front, write_profile, view.say):
        return run_study(spec, folder, source=file, overrides=overrides, address=address, say=view.say)


def _print_answer(folder: "StudyFolder", root: Path | None, draw: bool = True) -> "StudyRecord":
    """The front as a table, where everything lies, and the next command to type."""
    from rich.console import Console

    from equitune.records.reader import StudyReader
    from equitune.report.front import write_front
    from equitune.report.terminal import front_table, summary

    study = StudyReader(folder).read()
    console = Console()
    for line in summary(study):
        console.print(line, markup=False, soft_wrap=True)
    if any(trial.state == "COMPLETE" for trial in study.trials):
        console.print(front_table(study))
        if draw:
            write_front(study, folder.path)
    at_root = f" --root {root}" if root else ""
    click.echo(f"Folder:  {folder.path}")
    if (folder.path / "front.png").exists():
        click.echo(f"Picture: {folder.path / 'front.png'} (interactive: front.html, table: front.csv)")
    click.echo(f"Next:    equitune ui{at_root}")
    return study


def _print_plan(spec: "StudySpec") -> None:
    from equitune.datasets._splits import load_splits
    from equitune.report.front import short
    from equitune.report.terminal import duration
    from equitune.search.plan import plan

    planned = plan(spec, load_splits(spec.data))
    for trial in planned.trials:
        if trial.config.number == planned.num_exact:
            click.echo("  those that follow depend on results; without any they would be:")
        values = ", ".join(f"{name} {short(value)}" for name, value in trial.config.params.items())
        size = f"infeasible: {trial.reason}" if trial.parameters is None else f"{trial.parameters:,} parameters"
        click.echo(f"  trial {trial.config.number}: {values}: {size}")
    first = planned.trials[0].parameters or 0
    click.echo(f"{spec.study}: {len(planned.trials)} trials, the first model has {first:,} parameters")
    at_once = spec.resources.concurrent or max(1, int((os.cpu_count() or 1) // spec.resources.cpu))
    where = "GPU" if spec.resources.gpu else "CPU core"
    click.echo(
        f"guess: {duration(planned.seconds)} of one {where}, {duration(planned.seconds / at_once)} with {at_once}"
    )


def _tracking_uri(given: str | None, root: Path) -> str:
    from equitune.tracking.store import default_tracking_uri

    return given or os.environ.get("MLFLOW_TRACKING_URI") or default_tracking_uri(root)


def _use_data_root(data_root: Path | None) -> None:
    if data_root is not None:
        os.environ["EQUITUNE_DATA"] = str(data_root)


def _same_command() -> str:
    import shlex

    return shlex.join(["equitune", *sys.argv[1:]])

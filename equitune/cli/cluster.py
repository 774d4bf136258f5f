"""The commands about a cluster, from the laptop: submit, logs, cancel; and watch, of what runs there."""

import os
import shlex
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

import click

from equitune.cli.options import (
    INTERRUPTED,
    TYPED,
    StudyFile,
    cluster_option,
    extend_option,
    register_option,
    same_command,
    set_option,
    storage_address,
    storage_option,
    token_option,
    warm_start_option,
)
from equitune.cli.output import echo
from equitune.cli.studies import load
from equitune.errors import UserError

if TYPE_CHECKING:
    from equitune.remote.jobs import Cluster, Job

START_S, RUNS_S = 15.0, 3.0  # how long `submit` looks at a new job, and at one that runs: most mistakes show by then
STOP_S = 75.0  # Ray kills a driver 45 s after it was asked

program_option = click.option(
    "--program",
    default="equitune",
    show_default=True,
    metavar="COMMAND",
    help="How equitune is called on the cluster's machines, such as /opt/venv/bin/equitune.",
)
driver_option = click.option(
    "--driver-on",
    default="driver",
    show_default=True,
    metavar="RESOURCE",
    help="Ray resource of the machines that may hold a driver, or `any`.",
)


@click.command()
@click.argument("file", type=StudyFile(), metavar="FILE")
@set_option
@cluster_option
@token_option
@click.option(
    "--root", metavar="DIR_OR_URL", help="Where studies lie, as the cluster sees it. [default: its EQUITUNE_ROOT]"
)
@click.option(
    "--data-root", metavar="DIR", help="Where data sets lie, as the cluster sees it. [default: its EQUITUNE_DATA]"
)
@click.option(
    "--tracking-uri", help="MLflow's tracking store, as the cluster sees it. [default: its MLFLOW_TRACKING_URI]"
)
@extend_option
@warm_start_option
@register_option
@storage_option
@click.option(
    "--ship",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Send this file or folder, too: the job finds it by its name in its working folder. May be repeated.",
)
@program_option
@driver_option
@click.option("--force", is_flag=True, help="Also where a job of this study seems to run.")
@click.option("--wait", is_flag=True, help="Watch it to its end, and end with its code.")
def submit(
    file: Path,
    overrides: tuple[str, ...],
    cluster: str | None,
    token_file: Path | None,
    root: str | None,
    data_root: str | None,
    tracking_uri: str | None,
    extend: bool,
    warm_start: tuple[str, ...],
    register: bool,
    storage: str | None,
    ship: tuple[Path, ...],
    program: str,
    driver_on: str,
    force: bool,
    wait: bool,
) -> None:
    """Search the study in FILE on a cluster, or go on with it there: send FILE, and nothing else, to Ray.

    FILE is checked first, on this machine. The same command goes on with a study, as `equitune search` does.
    """
    if root and "://" not in root and not root.startswith("/"):
        raise UserError(
            f"--root: a job's own folder goes with the job: name a folder that lasts, /..., but got '{root}'"
        )
    if tracking_uri and urlsplit(tracking_uri).password:
        raise UserError(
            "--tracking-uri: whoever sees the cluster's jobs can read their commands, so a password is not taken from "
            "there: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD on the cluster's machines"
        )
    storage_address(storage)
    spec = load(file, overrides, None)
    given = {"--root": root, "--data-root": data_root, "--tracking-uri": tracking_uri, "--storage": storage}
    command = [*shlex.split(program), "search", file.resolve().name, "--address", "auto"]
    command += [word for change in overrides for word in ("--set", change)]
    command += [word for study in warm_start for word in ("--warm-start", study)]
    command += [word for name, value in given.items() if value for word in (name, value)]
    command += ["--extend"] * extend + ["--no-register"] * (not register)

    from equitune.remote.submit import submit_study

    connection = connect(cluster, token_file)
    connection.require_same_version()
    typed = same_command()
    job = submit_study(
        connection,
        spec.study,
        command,
        driver_on=driver_on,
        ship=(file, *ship),
        environment={TYPED: typed},
        root=root,
        force=force,
    )
    at = _at(cluster, token_file)
    echo(f"{job.id}: {spec.search.trials} trials, on {connection.url}")
    echo(f"Watch:   equitune watch {job.id}{at}")
    echo(f"Stop:    equitune cancel {job.id}{at}")
    echo(f"Fetch:   equitune fetch {spec.study}{at}")
    if wait:
        follow(connection, job, at)
    _say_start(connection, job)


@click.command()
@click.argument("job", metavar="STUDY_OR_JOB")
@cluster_option
@token_option
@click.option("--follow", "following", is_flag=True, help="Go on until the job ends, as `watch` does.")
def logs(job: str, cluster: str | None, token_file: Path | None, following: bool) -> None:
    """Print what a job on a cluster has printed: the latest one of a study, or the one named."""
    from equitune.remote.submit import verdict

    connection = connect(cluster, token_file)
    found = connection.job(job)
    if following:
        follow(connection, found, _at(cluster, token_file))
    echo(connection.log(found), nl=False)
    sentence = verdict(found)[1] if found.has_ended else None
    if sentence:
        echo(sentence, err=True)


@click.command()
@click.argument("job", metavar="STUDY_OR_JOB")
@cluster_option
@token_option
def cancel(job: str, cluster: str | None, token_file: Path | None) -> None:
    """Stop a study on a cluster. Nothing is lost but an epoch of each trial that runs: submitted again, it goes on."""
    from equitune.remote.jobs import MachineGone
    from equitune.remote.submit import patient

    connection = connect(cluster, token_file)
    found = connection.job(job)
    if found.has_ended:
        echo(f"{found.id} has ended before: {found.status}")
        return
    before = ""
    with suppress(MachineGone):  # or it has none yet
        before = patient(lambda: connection.log(found))
    if not connection.stop(found):
        raise UserError(
            f"{found.id} has no driver any more, though Ray says {found.status}: there is nothing to stop. Submit the "
            "study again with --force: it goes on"
        )
    echo(f"stopping {found.id}")
    limit = time.monotonic() + STOP_S
    while not found.has_ended and time.monotonic() < limit:
        time.sleep(0.5)
        found = patient(partial(connection.job, found.id))
    if found.status == "PENDING":
        echo(f"{found.id} still waits for a machine: it stops when it gets one, or after Ray's 15 minutes")
        return
    if not found.has_ended:
        raise UserError(
            f"{found.id} was asked to stop {STOP_S:.0f} s ago, and Ray still says {found.status}: its machine may be "
            "gone. Submit the study again with --force: it goes on"
        )
    with suppress(MachineGone):
        echo(patient(lambda: connection.log(found)).removeprefix(before), nl=False)
    echo(f"{found.id} is {found.status}: what has ended is kept, and `equitune submit` goes on with the rest")


def connect(cluster: str | None, token_file: Path | None) -> "Cluster":
    """Return the cluster that was named.

    Raises:
        UserError: none was, or it cannot be reached; says why.
    """
    from equitune.remote.jobs import FORM, Cluster, read_token

    url = cluster or os.environ.get("EQUITUNE_CLUSTER")
    if not url:
        raise UserError(f"which cluster: give --cluster {FORM}, or set EQUITUNE_CLUSTER")
    return Cluster(url, read_token(token_file))


def watch_job(name: str, cluster: str | None, token_file: Path | None) -> NoReturn:
    """Do what `equitune watch STUDY_OR_JOB --cluster URL` promises."""
    connection = connect(cluster, token_file)
    follow(connection, connection.job(name), _at(cluster, token_file))


def follow(connection: "Cluster", job: "Job", at: str) -> NoReturn:
    """Show what a job prints until it ends, then ends as its study has."""
    from equitune.remote.submit import followed, verdict

    try:
        ended = followed(
            connection,
            job,
            show=lambda text: echo(text, nl=False),
            say=lambda sentence: echo(sentence, err=True),
        )
    except KeyboardInterrupt:
        echo(f"{job.id} goes on: equitune watch {job.id}{at}", err=True)
        sys.exit(INTERRUPTED)
    code, sentence = verdict(ended)
    if sentence:
        echo(sentence, err=True)
    sys.exit(code)


def _say_start(connection: "Cluster", job: "Job") -> None:
    """Look at a new job for a moment: most of what can be wrong with it shows at once."""
    from equitune.remote.submit import patient, verdict

    begun, running = time.monotonic(), None
    while not job.has_ended and time.monotonic() - begun < START_S:
        if job.status == "RUNNING":
            running = running or time.monotonic()
            if time.monotonic() - running > RUNS_S:
                break
        time.sleep(0.5)
        job = patient(partial(connection.job, job.id))
    if not job.has_ended:
        waits = "waits for a machine that may hold its driver: the cluster may be full, or growing"
        echo(f"{job.id} {'runs' if job.status == 'RUNNING' else waits}")
        return
    code, sentence = verdict(job)
    echo(sentence or f"{job.id} has ended: `equitune logs {job.id}` says how", err=bool(code))
    sys.exit(code)


def _at(cluster: str | None, token_file: Path | None) -> str:
    """Return what the next commands need to reach the same cluster."""
    given = {"--cluster": cluster, "--token-file": token_file}
    return "".join(f" {name} {shlex.quote(str(value))}" for name, value in given.items() if value)

"""The command that brings a study from a cluster to this machine, and its other end."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from equitune.cli.cluster import connect, driver_option, program_option
from equitune.cli.options import cluster_option, root_option, token_option
from equitune.cli.output import echo
from equitune.errors import StoreError, UserError
from equitune.records.folder import StudyFolder, open_study, studies_root

if TYPE_CHECKING:
    from equitune.remote.jobs import Cluster


@click.command()
@click.argument("study")
@cluster_option
@token_option
@root_option
@click.option("--weights", is_flag=True, help="The trained networks, too.")
@click.option(
    "--from",
    "source",
    metavar="URL",
    help="The cluster's root, where this machine can read it, as s3://BUCKET/studies.",
)
@click.option("--force", is_flag=True, help="Also over a study of this name that differs and did not come from there.")
@program_option
@driver_option
def fetch(
    study: str,
    cluster: str | None,
    token_file: Path | None,
    root: str | None,
    weights: bool,
    source: str | None,
    force: bool,
    program: str,
    driver_on: str,
) -> None:
    """Bring STUDY from a cluster to this machine: its records, its front, its reports; it may still run.

    Read from an object store where the study lies in one, else sent by a small job through its log.
    """
    from equitune.records.archive import keep, study_files

    folder = StudyFolder(studies_root(root) / study)
    if folder.is_remote:
        raise UserError(f"--root: {root} is no folder of this machine, where a study is fetched to: name one")
    if source:
        files = dict(study_files(open_study(studies_root(source), study), weights))
    else:
        connection = connect(cluster, token_file)
        files, source = _from_cluster(connection, folder, weights, shlex.split(program), driver_on)
    done = keep(folder, files, source, force)
    echo(f"{study}: {done.num_new} files are new, {done.num_changed} changed, {done.num_same} as before")
    echo(f"Folder:  {folder.path}")
    echo(f"Next:    equitune show {study}{f' --root {root}' if root else ''}")


def _from_cluster(
    connection: "Cluster", folder: "StudyFolder", weights: bool, program: list[str], driver_on: str
) -> tuple[dict[str, bytes], str]:
    """Return a study's files, and where they came from: its object store, where this machine reads it, or a job's log.

    Raises:
        UserError: a job says that it lies in a store that the user has not named: anybody with the cluster's token can
            add such a job.
    """
    from equitune.records.archive import fetched_from, study_files, unpacked
    from equitune.remote.submit import carried

    study = folder.name
    job = next((job for job in reversed(connection.jobs()) if job.study == study and job.root), None)
    place = job.root if job else None
    if job and place and "://" in place:
        if place not in (os.environ.get("EQUITUNE_ROOT"), fetched_from(folder)):
            raise UserError(
                f"job {job.id} of {job.by} says that study {study} lies in {place}, which is neither EQUITUNE_ROOT nor "
                f"where it was fetched from before: if that is where you keep your studies, fetch with --from {place}"
            )
        try:
            return dict(study_files(open_study(studies_root(place), study), weights)), place
        except (StoreError, UserError) as error:
            echo(f"{error}: fetching through the cluster", err=True)
    if job and place:
        echo(f"job {job.id} of {job.by} says that study {study} lies in {place} on the cluster", err=True)
    command = [*program, "pack", study, *(["--root", place] if place else []), *["--weights"] * weights]
    data = carried(connection, study, command, driver_on=driver_on, say=lambda line: echo(line, err=True))
    return unpacked(data), connection.url


@click.command(hidden=True)
@click.argument("study")
@click.option("--root", metavar="DIR_OR_URL")
@click.option("--weights", is_flag=True)
def pack(study: str, root: str | None, weights: bool) -> None:
    """Print STUDY as text that `fetch` reads."""
    from equitune.records.archive import as_text, packed, study_files

    data = packed(study_files(open_study(studies_root(root), study), weights))
    for line in as_text(study, data):
        echo(line)

"""The command that shows how a study goes, from another terminal."""

import os
import time
from pathlib import Path

import click

from equitune.cli.cluster import watch_job
from equitune.cli.options import cluster_option, root_option, token_option
from equitune.cli.output import echo, open_console
from equitune.records.folder import open_study, studies_root
from equitune.records.reader import StudyReader

POLL_S = 1.0


@click.command()
@click.argument("study")
@root_option
@cluster_option
@token_option
def watch(study: str, root: str | None, cluster: str | None, token_file: Path | None) -> None:
    """Show how STUDY goes, until it ends or Ctrl-C; the study itself goes on.

    With a cluster, STUDY may be a job there: what it prints is shown, and its end is this command's. The connection may
    drop and come back. --root looks at a study on this machine where EQUITUNE_CLUSTER is set.
    """
    if cluster or (root is None and os.environ.get("EQUITUNE_CLUSTER")):
        watch_job(study, cluster, token_file)
    from equitune.report.terminal import StudyView, summary

    folder = open_study(studies_root(root), study)
    reader = StudyReader(folder)
    try:
        with StudyView(folder, open_console(), "watching").showing():
            while reader.read().state == "running":
                time.sleep(max(POLL_S, folder.rest_s))
    except KeyboardInterrupt:
        pass  # the watcher goes, the study stays
    for line in summary(reader.read()):
        echo(line)

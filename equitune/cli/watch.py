"""The command that shows how a study goes, from another terminal."""

import time

import click

from equitune.cli.options import root_option

POLL_S = 1.0


@click.command()
@click.argument("study")
@root_option
def watch(study: str, root: str | None) -> None:
    """Show how STUDY goes, until it ends or Ctrl-C; the study itself goes on."""
    from rich.console import Console

    from equitune.records.folder import open_study, studies_root
    from equitune.records.reader import StudyReader
    from equitune.report.terminal import StudyView, summary

    folder = open_study(studies_root(root), study)
    reader = StudyReader(folder)
    try:
        with StudyView(folder, Console(), "watching").showing():
            while reader.read().state == "running":
                time.sleep(max(POLL_S, folder.rest_s))
    except KeyboardInterrupt:
        pass  # the watcher goes, the study stays
    for line in summary(reader.read()):
        click.echo(line)

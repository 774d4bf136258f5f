"""The command that analyses a study: from its records to conclusions."""

import click

from equitune.cli.options import root_option, say_damaged
from equitune.cli.output import echo_json, open_console


@click.command()
@click.argument("study")
@root_option
@click.option("--json", "as_json", is_flag=True, help="Print for machines.")
@click.option("--against", default=0, show_default=True, type=click.IntRange(min=0), help="The arm to compare with.")
def analyze(study: str, root: str | None, as_json: bool, against: int) -> None:
    """Say what STUDY has found: how its hypervolume grew and how sure its front is, which arms and factors have an
    effect and which have none, which parameters matter, and whether the more equivariant trials are more accurate.
    """
    from equitune.records.folder import open_study, studies_root
    from equitune.records.reader import StudyReader
    from equitune.report import analysis
    from equitune.report.terminal import summary

    found = StudyReader(open_study(studies_root(root), study)).read()
    say_damaged(found)
    if as_json:
        echo_json(analysis.as_json(found, against), allow_nan=False)
        return
    console = open_console()
    console.print(summary(found)[0], markup=False, soft_wrap=True)
    for line in analysis.lines(found, against):
        console.print(line)

"""The command that analyses a study: from its records to conclusions."""

import click

from equitune.cli.options import root_option, say_damaged
from equitune.cli.output import echo_json, open_console
from equitune.records.folder import open_study, studies_root
from equitune.records.reader import StudyReader


@click.command()
@click.argument("study")
@root_option
@click.option("--json", "as_json", is_flag=True, help="Print for machines.")
@click.option("--against", default=0, show_default=True, type=click.IntRange(min=0), help="The arm to compare with.")
def analyze(study: str, root: str | None, as_json: bool, against: int) -> None:
    """Say what STUDY has found: how its hypervolume grew and how sure its front is, which arms and factors have an
    effect and which have none, which parameters matter, and whether the more equivariant trials are more accurate.
    """
    from equitune.report import analysis
    from equitune.report.terminal import busy, summary

    found = StudyReader(open_study(studies_root(root), study)).read()
    doing = f"analysing {len(found.trials):,} trials"
    say_damaged(found)
    if as_json:
        with busy(doing, open_console(stderr=True)):
            said = analysis.as_json(found, against)
        echo_json(said, allow_nan=False)
        return
    console = open_console()
    console.print(summary(found)[0], markup=False, soft_wrap=True)
    with busy(doing, open_console(stderr=True)):
        lines = list(analysis.lines(found, against))
    for line in lines:
        console.print(line)

"""The command that writes a study's report."""

from pathlib import Path

import click

from equitune.cli.options import root_option, say_damaged
from equitune.cli.output import echo, open_console
from equitune.errors import StoreError, UserError
from equitune.records.folder import open_study, studies_root
from equitune.records.on_disk import written
from equitune.records.reader import StudyReader

FORMATS = ("html", "markdown", "png", "svg", "csv")


@click.command()
@click.argument("studies", nargs=-1, required=True, metavar="STUDY...")
@click.option("--format", "kind", type=click.Choice(FORMATS), default="html", show_default=True)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="The page, or the folder of the other formats. [default: report.html or report/ in the first study's folder]",
)
@root_option
def report(studies: tuple[str, ...], kind: str, output: Path | None, root: str | None) -> None:
    """Write what each STUDY found as one page that opens offline; several are compared.

    The other formats are files in a folder: Markdown with its pictures, the pictures alone, the tables alone.
    """
    from equitune.report import files, page
    from equitune.report.comparison import comparison
    from equitune.report.sections import chapter_of
    from equitune.report.terminal import busy

    folders = [open_study(studies_root(root), study) for study in dict.fromkeys(studies)]
    read = [(StudyReader(folder).read(), folder) for folder in folders]
    for study, _ in read:
        say_damaged(study)
    terminal = open_console(stderr=True)
    with busy(f"analysing {sum(len(study.trials) for study, _ in read):,} trials", terminal):
        chapters = [comparison([study for study, _ in read])] if len(read) > 1 else []
        chapters += [chapter_of(study, folder) for study, folder in read]
    target = output or folders[0].path / ("report.html" if kind == "html" else "report")
    try:
        with busy(f"drawing {target}", terminal), written(target) as local:
            if kind == "html":
                page.write_page(chapters, local)
                paths = [local]
            elif kind == "markdown":
                paths = files.write_markdown(chapters, local)
            elif kind == "csv":
                paths = files.write_tables(chapters, local)
            else:
                paths = files.write_pictures(chapters, local, kind)
    except StoreError:
        raise
    except OSError as error:
        raise UserError(f"--output: {target} cannot be written: {error.strerror}: name another place") from None
    one = target if paths == [local] else target / paths[0].name
    echo(f"Report:  {one if len(paths) == 1 else f'{target} ({len(paths)} files)'}")

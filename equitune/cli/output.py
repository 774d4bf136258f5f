"""The one door to the terminal: what others wrote (records, logs, jobs, file names) is shown, and never acts there."""

import json
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import click

from equitune.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 160  # of tables that go into a file, which has no right edge


def echo(text: str, *, nl: bool = True, err: bool = False) -> None:
    """Print a text. `nl`: end the line; `err`: to standard error."""
    click.echo(printable(text), nl=nl, err=err)


def echo_json(data: Any, allow_nan: bool = True) -> None:
    """Print plain data as JSON, for machines. Raises ValueError for NaN and infinities where they are not allowed."""
    text = json.dumps(data, indent=1, allow_nan=allow_nan)  # ASCII, with every control escaped but the last one
    click.echo(text.replace("\x7f", "\\u007f"))


def open_console(*, stderr: bool = False, width: int | None = None) -> "Console":
    """Return a console for tables, bars and live views, whose own colours are the only ones.

    Args:
        stderr: write to standard error.
        width: in columns, where the output is no terminal.
    """
    found: Console = _console_class()(stderr=stderr, markup=False, emoji=False)
    if width and not found.is_terminal:
        found.width = width
    return found


@cache
def _console_class() -> Any:
    """rich's console is a tenth of a second to import."""
    from rich.console import Console
    from rich.segment import Segment

    class SafeConsole(Console):
        """Every text that is drawn passes here, also of cells within tables; rich's own control codes stay."""

        def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                text, style, control = segment
                yield segment if control or (text.isascii() and text.isprintable()) else Segment(printable(text), style)

    return SafeConsole

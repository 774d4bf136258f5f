"""What a report is made of: chapters, sections, and in them sentences, tables and pictures."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_ROWS = 60  # of a table on a page; its file has all


@dataclass(frozen=True)
class Table:
    """A header and rows of text; a page shows the first MOST_ROWS, and its reader sorts them by the columns."""

    name: str
    header: list[str]
    rows: list[list[str]]
    caption: str = ""
    is_folded: bool = False  # on a page: shown once its reader asks for it
    links: dict[str, str] = field(default_factory=dict)  # of cells of the first column

    def shown(self) -> list[list[str]]:
        """Return the rows that a page shows."""
        return self.rows[:MOST_ROWS]

    def said(self) -> str:
        """Return the caption, and how many rows a page leaves out."""
        left_out = len(self.rows) - MOST_ROWS
        return self.caption + (f" {left_out:,} more: equitune report --format csv." if left_out > 0 else "")


@dataclass(frozen=True)
class Picture:
    """A picture that is drawn once it is asked for; `interactive` is plotly's, for who has a browser."""

    name: str
    caption: str
    draw: "Callable[[], Figure]"
    interactive: dict[str, Any] | None = None


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    key: str
    title: str
    parts: list[str | Table | Picture] = field(default_factory=list)


@dataclass(frozen=True)
class Chapter:
    """The report of one study, or of several beside each other."""

    title: str
    sections: list[Section]

    def parts(self) -> Iterator[str | Table | Picture]:
        return (part for section in self.sections for part in section.parts)

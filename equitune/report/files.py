"""The report as files: Markdown with its pictures, the pictures alone, or its tables as CSV."""

import csv
from collections.abc import Iterator
from pathlib import Path

from equitune.printable import printable
from equitune.report.figures import as_file
from equitune.report.front import plain
from equitune.report.parts import Chapter, Picture, Table


def write_markdown(chapters: list[Chapter], folder: Path) -> list[Path]:
    """Write `report.md` and the pictures it shows, as PNG; return the paths, the page first."""
    pictures = write_pictures(chapters, folder, "png")
    page = folder / "report.md"
    page.write_text(printable("\n".join(_markdown(chapters))) + "\n", encoding="utf-8")
    return [page, *pictures]


def write_pictures(chapters: list[Chapter], folder: Path, kind: str) -> list[Path]:
    """Write every picture as `png` or `svg`; return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, part in _named(chapters):
        if isinstance(part, Picture):
            paths.append(folder / f"{name}.{kind}")
            paths[-1].write_bytes(as_file(part.draw(), kind))
    return paths


def write_tables(chapters: list[Chapter], folder: Path) -> list[Path]:
    """Write every table as CSV; return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, part in _named(chapters):
        if isinstance(part, Table):
            paths.append(folder / f"{name}.csv")
            with paths[-1].open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                lines = [part.header, *part.rows] if any(part.header) else part.rows
                writer.writerows([plain(cell) for cell in line] for line in lines)
    return paths


def _named(chapters: list[Chapter]) -> Iterator[tuple[str, Picture | Table]]:
    """Every picture and table with the name of its file."""
    for chapter in chapters:
        for part in chapter.parts():
            if not isinstance(part, str):
                yield f"{_prefix(chapters, chapter)}{part.name}", part


def _markdown(chapters: list[Chapter]) -> Iterator[str]:
    for chapter in chapters:
        yield f"# {_escaped(chapter.title)}\n"
        for section in chapter.sections:
            yield f"## {_escaped(section.title)}\n"
            for part in section.parts:
                if isinstance(part, Picture):
                    yield f"![{_escaped(part.caption)}]({_prefix(chapters, chapter)}{part.name}.png)\n"
                elif isinstance(part, Table):
                    yield f"| {' | '.join(map(_escaped, part.header))} |"
                    yield f"|{'---|' * len(part.header)}"
                    yield from (f"| {' | '.join(map(_escaped, row))} |" for row in part.shown())
                    yield f"\n{_escaped(part.said())}\n" if part.said() else ""
                else:
                    yield f"{part if part.startswith('`') else _escaped(part)}\n"


def _prefix(chapters: list[Chapter], chapter: Chapter) -> str:
    """Return what keeps the files of several studies apart."""
    return f"{chapters.index(chapter) + 1}-" if len(chapters) > 1 else ""


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    for letter in "\\`*_[]<>|#":
        text = text.replace(letter, f"\\{letter}")
    return text.replace("\n", " ")

"""The report as one HTML page that opens offline: everything it needs lies in it."""

import base64
import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

from equitune.printable import printable
from equitune.report.figures import as_svg
from equitune.report.parts import Chapter, Picture, Table

TEMPLATE = Path(__file__).with_name("page.html")


def write_page(chapters: list[Chapter], path: Path) -> None:
    """Write the page, a chapter after the other. Whatever a study says is escaped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(chapters), encoding="utf-8")


def page(chapters: list[Chapter]) -> str:
    """Return the page as text."""
    from jinja2 import Environment, select_autoescape

    environment = Environment(autoescape=select_autoescape(default=True), trim_blocks=True, lstrip_blocks=True)
    environment.tests |= {
        "table": lambda part: isinstance(part, Table),
        "picture": lambda part: isinstance(part, Picture),
    }
    environment.filters |= {"svg": _svg, "inert": inert, "is_number": _is_number}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    pictures = [part for chapter in chapters for part in chapter.parts() if isinstance(part, Picture)]
    plotly = _packed_plotly() if any(picture.interactive for picture in pictures) else None
    return printable(template.render(chapters=chapters, plotly=plotly))


def inert(data: Any) -> str:
    """Plain data as JSON that cannot end the script that holds it, nor begin another one."""
    text = json.dumps(data, allow_nan=False)
    for letter in "<>&\x7f\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _svg(picture: Picture, key: str) -> str:
    return as_svg(picture.draw(), f"{key}-{picture.name}")


def _is_number(text: str) -> bool:
    return text[:1] in "0123456789+-−"


@cache
def _packed_plotly() -> str:
    """Return plotly's program, packed to a third; the page unpacks it."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()

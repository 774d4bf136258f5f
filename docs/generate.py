"""Writes what is read off the program itself: `docs/cli.md` and `docs/components.md`. A test holds them to it.

python docs/generate.py
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from equitune import catalog
from equitune.cli import cli
from equitune.config.objectives import TRIAL_METRICS
from equitune.config.resources import Resources
from equitune.config.search import SearchSpec
from equitune.config.trial import DataConfig, InputConfig, TrainingConfig

DOCS = Path(__file__).parent
ORIGIN = "<!-- written by docs/generate.py: edit the program, not this file -->\n"


def commands() -> Iterator[str]:
    """Yield the help of every command, as `equitune COMMAND --help` prints it."""
    yield ORIGIN
    yield "# The shell\n"
    yield "Exit codes: 0 done, 1 trials failed, 2 the user's mistake (said in one sentence), 130 interrupted.\n"
    for name, command in walk("equitune", cli):
        context = click.Context(command, info_name=name, max_content_width=100, terminal_width=100)
        context.help_option_names = ["-h", "--help"]
        yield f"## `{name}`\n\n```text\n{command.get_help(context)}\n```\n"


def walk(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        for each in sorted(command.commands):
            if not command.commands[each].hidden:
                yield from walk(f"{name} {each}", command.commands[each])


def components() -> Iterator[str]:
    """Everything that a study may name, with its settings."""
    yield ORIGIN
    yield "# What a study may name\n"
    yield "Every value below may be a constant or a distribution ([study.md](study.md)), but for `data`, `measures`,"
    yield "`search` and `resources`, which take constants.\n"
    for section, settings in (
        ("training", TrainingConfig),
        ("input", InputConfig),
        ("data", DataConfig),
        ("search", SearchSpec),
        ("resources", Resources),
    ):
        yield f"## `{section}`\n"
        yield from table(fields(settings))
    yield "The arguments of the data set stand beside those of `data`: `data: {name: digits, size: 12}`.\n"
    for kind in catalog.KINDS:
        yield f"## {kind.capitalize()}s\n"
        for name in catalog.names(kind):
            component = catalog.describe(kind, name)
            yield f"### `{name}`\n\n{component.summary}\n"
            constants = component.constants
            if kind == "model":
                yield from parts(name)
            if "METRICS" in constants:
                metrics = (f"`{metric}` ({direction})" for metric, direction in constants["METRICS"].items())
                yield f"Metrics: {', '.join(metrics)}.\n"
            for group, of_group in constants.get("GROUP_METRICS", {}).items():
                more = (f"`{metric}` ({direction})" for metric, direction in of_group.items())
                yield f"With group {group} also: {', '.join(more)}.\n"
            if component.parameters:
                yield from table(
                    (parameter, component.annotations[parameter], default)
                    for parameter, (_, default) in component.parameters.items()
                )
    yield "## Metrics of every trial\n"
    yield ", ".join(f"`{metric}` ({direction})" for metric, direction in TRIAL_METRICS.items()) + "."


def parts(model: str) -> Iterator[str]:
    """Yield what a model may be built of, its default first."""
    for part in catalog.PARTS:
        fitting = [f"`{name}`" for name in catalog.parts(model, part)]
        if fitting or part == "prior":
            yield f"{part.capitalize()}s: {', '.join(fitting) or 'its own layers'}.\n"


def fields(settings: type[BaseModel]) -> Iterator[tuple[str, str, Any]]:
    """Each setting, its values and its default; below one that is a mapping those that it holds."""
    for name, field in settings.model_fields.items():
        if name == "args":
            continue
        if get_origin(field.annotation) is tuple:
            inner = get_args(field.annotation)[0]
            yield name, f"list of {{{', '.join(inner.model_fields)}}}", field.default
            continue
        options = get_args(field.annotation) or (field.annotation,)
        nested = [get_args(option) if get_origin(option) is Literal else (option,) for option in options]
        options = [each for several in nested for each in several]
        yield name, " | ".join(readable(option, field.metadata) for option in options), field.default
        for option in options:
            kind = getattr(option, "__origin__", option)  # of Annotated
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from ((f"{name}.{inner}", values, default) for inner, values, default in fields(kind))


def readable(kind: Any, constraints: list[Any]) -> str:
    """Return a type and its bounds, such as `int >= 1`."""
    if hasattr(kind, "__metadata__"):  # Annotated
        kind, constraints = kind.__origin__, getattr(kind.__metadata__[0], "metadata", [])
    bounds = [
        f"{sign} {getattr(constraint, key)}"
        for constraint in constraints
        for key, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
        if getattr(constraint, key, None) is not None
    ]
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return f"{{{', '.join(kind.model_fields)}}}"
    if get_origin(kind) is dict:
        return "parameter: value, ..."
    name = "None" if kind is type(None) else getattr(kind, "__name__", str(kind))
    return f"{name} {', '.join(bounds)}".strip()


def table(rows: Any) -> Iterator[str]:
    yield "| setting | value | default |\n|---|---|---|"
    for name, kind, default in rows:
        shown = "required" if default in (..., PydanticUndefined) else f"`{default}`"
        kind = kind.replace("|", "\\|")
        yield f"| `{name}` | {kind} | {shown} |"
    yield ""


def texts() -> dict[Path, str]:
    """Return what each generated file should hold."""
    return {
        DOCS / "cli.md": "\n".join(commands()).rstrip() + "\n",
        DOCS / "components.md": "\n".join(components()).rstrip() + "\n",
    }


if __name__ == "__main__":
    for path, text in texts().items():
        path.write_text(text, encoding="utf-8")

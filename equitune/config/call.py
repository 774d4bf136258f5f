"""A component on the command line: `NAME[:KEY=VALUE,...]`, such as `digits:size=12`."""

import json
from typing import Any

from pydantic import ValidationError

from equitune.config.space import Call, filled
from equitune.config.strict import why_not_number, why_not_text
from equitune.errors import UserError


def parsed(text: str, where: str) -> tuple[str, dict[str, Any]]:
    """Return a component's name and what is said of its arguments.

    Args:
        text: `NAME` or `NAME:KEY=VALUE,...`; values are numbers, true, false, or text, which may stand in quotes.
        where: what the user typed it for, such as `--measure`; begins every sentence about it.

    Raises:
        UserError: what follows the name is something else.
    """
    name, _, settings = text.partition(":")
    arguments: dict[str, Any] = {}
    for setting in settings.split(",") if settings else []:
        key, equals, value = (part.strip() for part in setting.partition("="))
        if not (key and equals):
            raise UserError(f"{where}: arguments are KEY=VALUE, separated by commas, but got '{setting}'")
        if key in arguments:
            raise UserError(f"{where}: {key} is given twice")
        arguments[key] = _value(value, f"{where}: {key}")
    return name, arguments


def checked_call(kind: str, name: str, arguments: dict[str, Any], where: str) -> Call:
    """Return the component with its arguments checked and every default filled in.

    Raises:
        UserError: no such component or argument, or a value that does not fit; says which.
    """
    try:
        return filled(kind, Call(name=name, args=arguments))
    except ValidationError as error:
        sentences = (": ".join([*map(str, each["loc"]), each["msg"]]) for each in error.errors())
        raise UserError("\n".join(f"{where}: {sentence}" for sentence in sentences)) from None


def _value(text: str, where: str) -> Any:
    if reason := why_not_text(text):
        raise UserError(f"{where}: {reason}")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if isinstance(value, int | float) and (reason := why_not_number(value)):
        raise UserError(f"{where}: {reason}")
    return value if isinstance(value, int | float | bool | str) else text

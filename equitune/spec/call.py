"""A component on the command line: `NAME[:key=value,...]`, such as `digits:size=12`."""

import json
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from equitune.errors import UserError
from equitune.spec.space import Call, constant_call
from equitune.spec.strict import Mistakes


def read_call(kind: str, text: str, where: str, **more: Any) -> Call:
    """The component that a text names, every default filled in.

    Args:
        kind: of the catalogue.
        text: `NAME` or `NAME:key=value,...`; values are numbers, true, false or text.
        where: what the user typed it for, such as `--measure`.
        more: arguments that the text need not give.

    Raises:
        UserError: no such component or argument, or a value that does not fit; says which.
    """
    name, _, given = text.partition(":")
    arguments = dict(more)
    for pair in given.split(",") if given else []:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"{where} {text}: arguments are key=value, separated by commas, but got '{pair}'")
        arguments[key.strip()] = _value(value.strip())
    mistakes = Mistakes()
    try:
        call = mistakes.under((), lambda: constant_call(kind, {"name": name, **arguments}))
        mistakes.raise_any()
    except (ValidationError, PydanticCustomError) as error:
        details = error.errors() if isinstance(error, ValidationError) else []
        sentences = [": ".join([*map(str, each["loc"]), each["msg"]]) for each in details] or [str(error)]
        raise UserError("\n".join(f"{where} {text}: {sentence}" for sentence in sentences)) from None
    assert call is not None  # else it raised
    return call


def _value(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, int | float | bool) else text

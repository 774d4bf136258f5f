"""What a study takes over from a trial of another one."""

import re
from typing import Any

from equitune.errors import UserError
from equitune.records.checked import DamagedError, is_there
from equitune.records.folder import open_study, read_json
from equitune.records.place import Place


def recorded_params(root: Place, text: str) -> dict[str, Any]:
    """Return the parameters of a recorded trial, by its name STUDY/NUMBER.

    Raises:
        UserError: it names no trial, or there is none; says which there are.
    """
    named = re.fullmatch(r"([^/]+)/(\d{1,9})", text)
    if not named:
        raise UserError(f"must be parameters with their values, or a recorded trial, STUDY/NUMBER, but got {text!r}")
    folder, number = open_study(root, named[1]), int(named[2])
    if not is_there(folder.trial(number).config):
        numbers = folder.numbers()
        known = f"its trials are {min(numbers)} to {max(numbers)}" if numbers else "it has none"
        raise UserError(f"study {folder.name} has no trial {number}: {known}")
    path = folder.trial(number).config
    try:
        return dict(read_json(path)["params"])
    except (KeyError, TypeError, ValueError):
        raise DamagedError(path, "it names no parameters") from None

"""What a study takes over from a trial of another one."""

import re
from typing import Any

from equitune.errors import UserError
from equitune.records.folder import open_study, read_json
from equitune.records.place import Place


def recorded_params(root: Place, text: str) -> dict[str, Any]:
    """The parameters of a recorded trial, by its name STUDY/NUMBER.

    Raises:
        UserError: it names no trial, or there is none; says which there are.
    """
    named = re.fullmatch(r"([^/]+)/(\d{1,9})", text)
    if not named:
        raise UserError(f"must be parameters with their values, or a recorded trial, STUDY/NUMBER, but got {text!r}")
    folder, number = open_study(root, named[1]), int(named[2])
    if not folder.trial(number).config.is_file():
        numbers = [trial.number for trial in folder.trials()]
        known = f"its trials are {min(numbers)} to {max(numbers)}" if numbers else "it has none"
        raise UserError(f"study {folder.name} has no trial {number}: {known}")
    return dict(read_json(folder.trial(number).config)["params"])

"""Which names a study may have: a folder's on every file system, and an experiment's in MLflow."""

import re

from equitune.config.strict import rule, shown

_NAME = re.compile(r"\w(?:[\w.-]{0,62}[\w-])?")  # Windows drops a dot at the end
_DEVICE = re.compile(r"(?:con|prn|aux|nul|(?:com|lpt)[0-9¹²³])(?:\..*)?", re.IGNORECASE)  # Windows opens these


def study_name(name: str) -> str:
    """Return a study's name. Raises the rule that it breaks."""
    if not _NAME.fullmatch(name):
        raise rule(
            "a study's name has 1 to 64 letters, digits, '_', '-' or '.', begins with none of '-' and '.' and does not "
            f"end with '.', but got {shown(name)}"
        )
    if _DEVICE.fullmatch(name):
        raise rule(f"a study's name is a folder's on every machine, and Windows has a device of the name {shown(name)}")
    return name

"""The one door for names: what a study's folder may hold, and whether a name that came from elsewhere stays inside."""

import re
from pathlib import PurePosixPath

from equitune.errors import UserError

MOST_LETTERS, MOST_BYTES_A_PART = 512, 255  # of a name; file systems take no longer part

# Every file of a study that another machine may be given. Not among them: what only a driver needs (its lock, its
# heartbeat, Optuna's journal, checkpoints, Ray Tune's files), and whatever else somebody put there.
STUDY_FILES = (
    r"searchspace(\.\d{1,6})?\.yaml",
    r"(study|usage|mlflow)\.json",
    r"study\.log",
    r"front\.(png|html|csv)",
    r"arms\.csv",
    r"report\.html",
    r"report/[^/]+\.(md|png|svg|csv)",
    r"trials/\d{5,9}/(config|result|test|worker)\.json",
    r"trials/\d{5,9}/(epochs\.jsonl|log\.txt|weights\.safetensors)",
)
_STUDY_FILE = re.compile("|".join(f"(?:{pattern})" for pattern in STUDY_FILES))
# Controls, among them those of bidirectional text, and what Windows takes for a path.
_NEVER = re.compile(r'[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\\:*?"<>|]')


def is_inside(name: str) -> bool:
    """Return whether a name stays within the folder that it is joined to, on every file system."""
    path = PurePosixPath(name)
    parts = name.split("/")
    return (
        0 < len(name) <= MOST_LETTERS
        and not path.is_absolute()
        and not any(part in ("", ".", "..") or len(part.encode(errors="replace")) > MOST_BYTES_A_PART for part in parts)
        and not _NEVER.search(name)
        and name.isprintable()
    )


def is_study_file(name: str) -> bool:
    """Return whether a study has a file of this name, within its folder."""
    return is_inside(name) and not any(p.startswith(".") for p in name.split("/")) and bool(_STUDY_FILE.fullmatch(name))


def require_study_file(name: str, source: str) -> None:
    """Refuse a name that no study has.

    Args:
        name: of a file, as somebody else gave it.
        source: who gave it, for the sentence.

    Raises:
        UserError: names it, with its control characters as text.
    """
    if not is_study_file(name):
        raise UserError(f"{source} holds {name[:200]!r}, which no study does: nothing of it was taken")

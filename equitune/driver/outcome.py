"""How a search ended."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Outcome:
    """How a call of `run_study` ended; the study itself may go on with the next."""

    state: Literal["complete", "interrupted", "halted"]
    reason: str | None = None

"""The number that every file of a study's folder carries: the version of what its keys mean."""

from typing import Annotated

from pydantic import Field

from equitune.config.strict import Strict

FORMAT = 2  # a file without a number is of format 1, which has all the same keys: docs/compatibility.md


class Record(Strict):
    """Base of what is written into a study's folder and read again, perhaps by another version of the program."""

    format: Annotated[int, Field(ge=1, le=FORMAT)] = FORMAT

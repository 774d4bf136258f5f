"""The one door through which records are read: bounded, regular files alone, and a sentence for what is damaged."""

import errno
import json
import os
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from equitune.config.record import FORMAT, Record
from equitune.errors import StoreError, UserError
from equitune.records.durable import replace, write_whole
from equitune.records.place import Place
from equitune.records.regular import MOST_BYTES, read_regular

Kind = TypeVar("Kind", bound=Record)

OF_A_TRIAL = "`equitune search` with the study's file keeps it beside, and makes it again"
# What is no record at all; all other errors, such as a refusal, may pass, and are no reason to make a record again.
SOMETHING_ELSE = {errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.EFBIG, errno.ENXIO}
OF_THE_STUDY = "restore it from a copy, or move it elsewhere: `equitune search` makes it again, with all trials"


class DamagedError(UserError):
    """A record cannot be read. `path` is the file, `reason` says what is wrong with it."""

    def __init__(self, path: Place, reason: str) -> None:
        self.path, self.reason = path, reason
        advice = OF_A_TRIAL if path.parent.parent.name == "trials" else OF_THE_STUDY
        super().__init__(f"{path} is damaged ({reason}): {advice}")


class NewerError(UserError):
    """A record was written by a later version of the program, which alone knows what it means."""

    def __init__(self, path: Place, number: int) -> None:
        super().__init__(
            f"{path} was written by a newer equitune (format {number}, this one reads up to {FORMAT}): upgrade equitune"
        )


def read_bytes(path: Place) -> bytes:
    """Return the content of a file of a study's folder.

    Raises:
        DamagedError: it is missing or too large, or something else stands there: a folder, a link, a pipe.
        UserError: it cannot be read.
        StoreError: the object store refuses, or does not answer.
    """
    try:
        if isinstance(path, Path):
            return read_regular(path)
        size = path.stat().st_size  # of a study that is read as one listing shows it, no request
        if size > MOST_BYTES:
            raise DamagedError(path, f"it has {size:,} bytes, of at most {MOST_BYTES:,}")
        return path.read_bytes()
    except StoreError:
        raise
    except FileNotFoundError:
        raise DamagedError(path, "it is missing") from None
    except OSError as error:
        if error.errno in SOMETHING_ELSE:
            raise DamagedError(path, error.strerror or str(error)) from None
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def read_json(path: Place) -> Any:
    """Return what a file of JSON holds.

    Raises:
        DamagedError: it is missing, cannot be read, or is no JSON.
    """
    try:
        return json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:  # what is nested too deeply ends in the latter
        raise DamagedError(path, f"no JSON: {error}") from None


def read_record(kind: type[Kind], path: Place) -> Kind:
    """Return a record, checked.

    Raises:
        DamagedError: it is missing, not whole, or not what it should be; says what is wrong.
        NewerError: a later version of the program has written it.
    """
    data = read_bytes(path)
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise _unreadable(path, error) from None


def set_aside(path: Place) -> str:
    """Rename what stands there to NAME.broken, NAME.broken2 and so on; return the new name. Nothing is overwritten."""
    aside = unused(path.with_name(path.name + ".broken"))
    if isinstance(path, Path) and isinstance(aside, Path):
        replace(path, aside)
    else:
        write_whole(aside, path.read_bytes())
        path.unlink()
    return aside.name


def is_there(path: Place) -> bool:
    """Return whether anything stands there, a broken link included."""
    return os.path.lexists(path) if isinstance(path, Path) else path.exists()


def unused(path: Place) -> Place:
    """Return the path, or with a number behind it where something stands there."""
    number, free = 1, path
    while is_there(free):
        number += 1
        free = path.with_name(f"{path.name}{number}")
    return free


def _unreadable(path: Place, error: ValidationError) -> UserError:
    """Return the error of a record that its model refuses."""
    try:
        said = read_json(path)
    except DamagedError as damaged:
        return damaged
    number = said.get("format") if isinstance(said, dict) else None
    if isinstance(number, int) and number > FORMAT:
        return NewerError(path, number)
    wrong = error.errors()[0]
    at = ".".join(map(str, wrong["loc"]))
    if wrong["type"] == "extra_forbidden":
        return DamagedError(
            path, f"{at}: no key of format {number or 1}: another version wrote it, or somebody changed it"
        )
    return DamagedError(path, f"{at}: {wrong['msg']}" if at else wrong["msg"])

"""Failures that come from outside the program, as sentences. All others are bugs, and keep their tracebacks."""

import errno
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from types import FrameType

from equitune.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
# What the system says of a disk, a path, a device or a limit. The others (EBADF, EINVAL, EFAULT, EAGAIN, ENOTSOCK and
# such) say that the program has called it wrongly: they are bugs.
ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "allow this user to read and write it, or name another"),
    **dict.fromkeys((errno.EIO, errno.ENODEV, errno.ENXIO, errno.ESTALE), "mend the disk or mount it again"),
    **dict.fromkeys((errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN), "mend the disk or mount it again"),
    **dict.fromkeys((errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY), "move away what lies there instead"),
    **dict.fromkeys((errno.ENOENT, errno.EBUSY, errno.ETXTBSY), "let nothing else change these files meanwhile"),
    errno.ELOOP: "remove the link that leads to itself",
    errno.ENAMETOOLONG: "give it a shorter name",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit of open files (ulimit -n)"),
    errno.ENOMEM: "free some memory",
}


def require_text(arguments: Sequence[str]) -> None:
    """Raise UserError where an argument of the command line is not UTF-8: its bytes have become lone surrogates."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise UserError(f"command line: an argument must be text in UTF-8, but got {argument!r}") from None


def sentence(error: BaseException) -> str | None:
    """Return what to tell the user of a failure from outside; None for a bug.

    A file that is read is the nearest `path` or `self` in the calls that led there.
    """
    if isinstance(error, OSError):
        if error.errno not in ADVICE:
            return None
        name = error.filename or _file_of(error) or "a file"
        what = "written" if error.errno in FULL else "read or written"
        return f"{name} cannot be {what}: {error.strerror}: {ADVICE[error.errno]}, and run the same command again"
    name = _file_of(error)
    if name is None:
        return None
    if isinstance(error, UnicodeDecodeError):
        return f"{name}: must be text in UTF-8, but its byte {error.start} is none ({error.reason}): restore the file"
    if isinstance(error, RecursionError) and any(_is_of_parser(frame) for frame in _frames(error)):
        return f"{name}: its values are nested too deeply to be read: restore the file"
    return None


def _frames(error: BaseException) -> Iterator[FrameType]:
    """Give the calls that led to an error, the innermost last."""
    step = error.__traceback__
    while step is not None:
        yield step.tb_frame
        step = step.tb_next


def _is_of_parser(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] in ("json", "yaml", "pydantic")


def _file_of(error: BaseException) -> PurePath | None:
    """Return the file that was read when an error came up, if any was."""
    found = None
    for frame in _frames(error):
        for name in ("self", "path", "file"):
            if isinstance(value := frame.f_locals.get(name), PurePath):
                found = value
    return found

"""Ctrl-C and SIGTERM, from the program's first line to its last: a last sentence and code 130, never a traceback."""

import os
import shlex
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130
TYPED = "EQUITUNE_TYPED"  # tells a job what was typed to submit it
ENDED = "equitune ends with code {code}"  # the last line of a job
SHOW_CURSOR = b"\x1b[?25h"

_received = 0
_process = 0  # a fork of it inherits the handlers


def install() -> None:
    """Take the signals over from Python: the first raises KeyboardInterrupt, a second ends the program at once.

    Leave a signal alone that the program was started to ignore, or that has a handler.
    """
    global _process
    _process = os.getpid()
    for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) == default:
            signal.signal(number, _interrupt)


def received() -> bool:
    """Say whether a signal has come: what is raised afterwards may be its consequence."""
    return _received > 0


def go_on() -> str:
    """Return the command that was typed, to be typed again: on the laptop, where this is a job on a cluster."""
    return os.environ.get(TYPED) or shlex.join(["equitune", *sys.argv[1:]])


def last_words() -> str:
    """Return what an interrupted program says at last."""
    return f"interrupted\nGo on:   {go_on()}" if sys.argv[1:2] == ["search"] else "interrupted"


def ending(code: int) -> None:
    """Say that the program ends with this code: a signal only makes it end sooner."""

    def leave(signum: int, frame: FrameType | None) -> None:
        os._exit(code)

    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(ValueError):  # a thread's call
            signal.signal(number, leave)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    global _received
    if os.getpid() != _process:
        os._exit(128 + signum)
    _received += 1
    if _received == 1:
        raise KeyboardInterrupt
    leave()


def leave() -> NoReturn:
    """Say the last words and end the program at once, whatever it is doing: as safe as `kill -9`."""
    ending(INTERRUPTED)
    words = f"\n{last_words()}\n" + (f"{ENDED.format(code=INTERRUPTED)}\n" if TYPED in os.environ else "")
    with suppress(OSError):  # past Python's own buffers, which may be in use
        os.write(2, (SHOW_CURSOR if os.isatty(2) else b"") + words.encode(errors="backslashreplace"))
    os._exit(INTERRUPTED)

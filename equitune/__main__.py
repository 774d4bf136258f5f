"""The program: `equitune`, and `python -m equitune`. A Ctrl-C is obeyed while the rest is still imported."""

import atexit
import os
import sys
import threading
from contextlib import suppress
from typing import NoReturn

from equitune import interrupts

EXIT_S = 5.0  # that what libraries do at the end may take
NOT_WRITTEN = 2  # standard output takes no more


def main() -> NoReturn:
    """Run the program."""
    interrupts.install()
    try:
        from equitune import cli
    except BaseException:
        if not interrupts.received():  # an import that is interrupted may fail in any way
            raise
        interrupts.leave()
    try:
        cli.main()
    except SystemExit as end:
        leave(int(end.code or 0))


def leave(code: int) -> NoReturn:
    """End the process as it is: to take Ray and torch apart would last two seconds, in which a signal has its way."""
    last = threading.Thread(target=atexit._run_exitfuncs, daemon=True)
    last.start()
    last.join(EXIT_S)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:  # who reads has enough
        pass
    except OSError as error:
        with suppress(OSError):
            os.write(2, f"standard output cannot be written: {error.strerror}\n".encode())
        code = code or NOT_WRITTEN
    os._exit(code)


if __name__ == "__main__":
    main()

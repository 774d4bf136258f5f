"""Something done now and then beside a block of code, and once more at its end."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeating(call: Callable[[], None], every_s: float) -> Iterator[None]:
    """Call it every so many seconds while the block runs, in a thread of its own, and after that once more."""
    stop = threading.Event()

    def loop() -> None:
        while not stop.wait(every_s):
            call()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        call()

"""One driver a study: a lock the kernel frees when its holder dies, and a heartbeat that other programs can read."""

import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from equitune.errors import UserError
from equitune.records.folder import StudyFolder, write_json

HEARTBEAT_S = 5.0


@contextmanager
def driving(folder: StudyFolder) -> Iterator[None]:
    """Holds the study while the block runs.

    Raises:
        UserError: another driver holds it; says who.
    """
    lock = FileLock(folder.lock)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"study {folder.name} is being searched already ({_holder(folder)}): wait for it, or stop it first"
        ) from None
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(HEARTBEAT_S):
            try:
                folder.driver.touch()
            except OSError:
                continue  # a full disk is reported by what it stops

    try:
        write_json(folder.driver, {"pid": os.getpid(), "host": platform.node(), "since": time.time()})
        threading.Thread(target=beat, daemon=True).start()
        yield
    finally:
        stop.set()
        folder.driver.unlink(missing_ok=True)
        lock.release()


def _holder(folder: StudyFolder) -> str:
    try:
        driver = json.loads(folder.driver.read_text())
        return f"process {driver['pid']} on {driver['host']}"
    except (OSError, ValueError, KeyError):
        return "by another process"

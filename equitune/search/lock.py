"""One driver a study: a lock the kernel frees when its holder dies, and a heartbeat that other programs can read."""

import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from equitune.errors import UserError
from equitune.records.folder import StudyFolder, write_json
from equitune.records.reader import is_driven

HEARTBEAT_S = 5.0
ANOTHER_BEAT_S = 2.5 * HEARTBEAT_S  # in this time a living driver of another host has touched its file


@contextmanager
def driving(folder: StudyFolder, another_beat_s: float = ANOTHER_BEAT_S) -> Iterator[str]:
    """Holds the study while the block runs; gives the token that `driver.json` shows for as long.

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
    stop, token = threading.Event(), uuid.uuid4().hex

    def beat() -> None:
        while not stop.wait(HEARTBEAT_S):
            try:
                folder.driver.touch()
            except OSError:
                continue  # a full disk is reported by what it stops

    try:
        _require_no_other_host(folder, another_beat_s)
        write_json(folder.driver, {"pid": os.getpid(), "host": platform.node(), "since": time.time(), "token": token})
        threading.Thread(target=beat, daemon=True).start()
        try:
            yield token
        finally:
            stop.set()
            folder.driver.unlink(missing_ok=True)
    finally:
        lock.release()


def _require_no_other_host(folder: StudyFolder, another_beat_s: float) -> None:
    """Waits for a heartbeat where the lock may not reach: some network file systems lock within one host alone.

    One that comes is a living driver's. One that does not was a dead driver's, whose pod is another by now.
    """
    driver = folder.holder()
    if not is_driven(folder) or driver.get("host") in (None, platform.node()):
        return
    last, limit = _last_beat(folder), time.monotonic() + another_beat_s
    while time.monotonic() < limit:
        time.sleep(0.1)
        if _last_beat(folder) != last and folder.driver.exists():
            raise UserError(
                f"study {folder.name} is being searched already ({_holder(folder)}, whose file lock does not reach "
                "this machine): wait for it, or stop it first"
            )


def _last_beat(folder: StudyFolder) -> float:
    try:
        with folder.driver.open() as file:  # opened: a network file system may remember an older time
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return 0.0


def _holder(folder: StudyFolder) -> str:
    driver = folder.holder()
    return f"process {driver['pid']} on {driver['host']}" if {"pid", "host"} <= driver.keys() else "by another process"

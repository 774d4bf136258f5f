"""One driver a study: a lock that is freed when its holder dies, and a heartbeat that other programs can read."""

import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from filelock import FileLock, Timeout

from equitune.errors import StoreError, UserError
from equitune.records.folder import StudyFolder, write_json
from equitune.records.place import RemotePath
from equitune.records.reader import is_driven

HEARTBEAT_S = 5.0
ANOTHER_BEAT_S = 2.5 * HEARTBEAT_S  # in this time a living driver of another host has touched its file


@contextmanager
def driving(folder: StudyFolder, another_beat_s: float = ANOTHER_BEAT_S) -> Iterator[str]:
    """Hold the study while the block runs; give the token that `driver.json` shows for as long.

    An object store has no locks: of a study there the caller holds the lock in its database.

    Raises:
        UserError: another driver holds it; says who.
    """
    stop, token = threading.Event(), uuid.uuid4().hex

    def beat() -> None:
        while not stop.wait(HEARTBEAT_S):
            try:
                folder.heartbeat.touch()
            except OSError:
                continue  # a full disk is reported by what it stops

    with _locked(folder):
        _require_no_other(folder, another_beat_s)
        write_json(folder.driver, {"pid": os.getpid(), "host": platform.node(), "since": time.time(), "token": token})
        if folder.is_remote:
            folder.heartbeat.touch()
        beating = threading.Thread(target=beat, daemon=True)
        beating.start()
        try:
            yield token
        finally:
            stop.set()
            if folder.is_remote:
                beating.join(1.0)  # or a beat on its way would come after the end
            _leave(folder, token)


@contextmanager
def _locked(folder: StudyFolder) -> Iterator[None]:
    """Return a lock the kernel frees when its holder dies, where there is a kernel in between."""
    if isinstance(folder.lock, RemotePath):
        yield
        return
    lock = FileLock(folder.lock)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"study {folder.name} is being searched already ({_holder(folder)}): wait for it, or stop it first"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _leave(folder: StudyFolder, token: str) -> None:
    if not folder.is_remote:
        folder.driver.unlink(missing_ok=True)
        return
    with suppress(StoreError):  # who goes on finds a heart that has stopped
        if folder.holder().get("token") == token:
            folder.heartbeat.unlink(missing_ok=True)
            folder.driver.unlink(missing_ok=True)


def _require_no_other(folder: StudyFolder, another_beat_s: float) -> None:
    """Wait for a heartbeat where the lock may not reach: some network file systems lock within one host alone.

    One that comes is a living driver's. One that does not was a dead driver's, whose pod is another by now. In an
    object store this guards a study that just begins: one that has begun says which database, and lock, it has.
    """
    is_held_off = folder.study.exists if folder.is_remote else lambda: _is_of_this_host(folder)
    if not is_driven(folder) or is_held_off():
        return
    last, limit = _last_beat(folder), time.monotonic() + another_beat_s
    while time.monotonic() < limit:
        time.sleep(max(0.1, folder.rest_s))
        if _last_beat(folder) != last and folder.driver.exists():
            no_lock = "" if folder.is_remote else ", whose file lock does not reach this machine"
            raise UserError(
                f"study {folder.name} is being searched already ({_holder(folder)}{no_lock}): wait for it, or stop it "
                "first"
            )


def _is_of_this_host(folder: StudyFolder) -> bool:
    return folder.holder().get("host") in (None, platform.node())


def _last_beat(folder: StudyFolder) -> float:
    try:
        if isinstance(folder.heartbeat, RemotePath):
            return folder.heartbeat.stat().st_mtime
        with folder.heartbeat.open() as file:  # opened: a network file system may remember an older time
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return 0.0


def _holder(folder: StudyFolder) -> str:
    driver = folder.holder()
    return f"process {driver['pid']} on {driver['host']}" if {"pid", "host"} <= driver.keys() else "by another process"

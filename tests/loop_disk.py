"""An ext4 disk in a file, whose power can be cut: what was not flushed is gone. As root."""

import contextlib
import subprocess
import time
from pathlib import Path


class LoopDisk:
    """Mounted at `root` from its making to `close`."""

    def __init__(self, folder: Path, size_mb: int = 120) -> None:
        self.image, self.root = folder / "disk.img", folder / "disk"
        self.root.mkdir()
        with self.image.open("wb") as file:
            file.truncate(size_mb * 2**20)
        _call("mkfs.ext4", "-q", "-F", str(self.image))
        self.mount()

    def mount(self) -> None:
        _call("mount", "-o", "loop", str(self.image), str(self.root))

    def abort(self) -> None:
        """The disk takes nothing more: every write fails from now on, as on one that has become read-only."""
        _call("mount", "-o", "remount,abort", str(self.root))

    def repair(self, timeout_s: float = 60) -> None:
        """Mounts an aborted disk again, checked as at a start of the machine. Nobody may have a file open there."""
        limit = time.monotonic() + timeout_s
        while (said := subprocess.run(["umount", self.root], capture_output=True, text=True)).returncode:
            assert time.monotonic() < limit, said.stderr
            time.sleep(0.2)
        checked = subprocess.run(["fsck.ext4", "-fy", self.image], capture_output=True, text=True)
        assert checked.returncode in (0, 1), checked.stdout  # 1: mended
        self.mount()

    def close(self) -> None:
        for _ in range(50):  # a killed process lets go a moment later
            with contextlib.suppress(AssertionError):
                _call("umount", str(self.root))
                return
            time.sleep(0.2)


def torn(root: Path) -> list[str]:
    """The files of a study that are empty, or no JSON although they should be; not Ray's, nor a log."""
    return sorted(
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file()
        and path.suffix in (".json", ".jsonl", ".safetensors", ".pt", ".yaml")
        and not path.stat().st_size
        if "attempts" not in path.parts and not path.name.startswith(".")
    )


def why_not() -> str:
    """Why this machine has no such disk; empty where it has one. One is made and taken away to know."""
    import os
    import shutil
    import tempfile

    if os.geteuid() != 0:
        return "not run as root"
    if missing := [program for program in ("mkfs.ext4", "fsck.ext4", "mount", "umount") if not shutil.which(program)]:
        return f"no {' and no '.join(missing)} on this machine"
    with tempfile.TemporaryDirectory() as folder:
        try:
            disk = LoopDisk(Path(folder), size_mb=8)
        except AssertionError as error:
            return f"no file can be mounted as a disk here ({error})"
        try:
            disk.abort()
            disk.repair(5)
        except AssertionError as error:
            return f"a disk in a file cannot be aborted here ({error})"
        finally:
            disk.close()
    return ""


def _call(*command: str) -> None:
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 0, f"{' '.join(command)}: {said.stderr.strip()}"

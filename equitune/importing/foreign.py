"""Files of strangers, opened by a process of its own before this one looks at them: whatever they do, they do it there.

The line: a `.safetensors` file is names, shapes and bytes, which its library compares with the file's length; it is
mapped here. All others, state dicts that torch saved and exported programs, go through `opener.py` first.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from equitune.errors import UserError

# All that the process gets to know of this one's environment: no token, no password.
ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")


def read_foreign_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a state dict that torch saved.

    Raises:
        UserError: it is none, or has ended the process that opened it.
    """
    with tempfile.TemporaryDirectory(prefix="equitune-") as folder:
        clean = Path(folder) / "state.safetensors"
        _ask({"kind": "weights", "path": str(path), "to": str(clean)})
        return dict(load_file(clean))


def require_program(path: Path, shape: tuple[int, int, int]) -> None:
    """Refuse a program that cannot be opened and run once on images of a shape (C, H, W).

    Raises:
        UserError: it cannot, or has ended the process that opened it.
    """
    _ask({"kind": "program", "path": str(path), "shape": shape})


def close_opener() -> None:
    """End the process that opens files, where there is one."""
    while _kept:
        _kept.pop().close()


class Opener:
    """The process that opens files. It ends with this one, however it ends, for its input does."""

    def __init__(self) -> None:
        known = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", "-m", "equitune.importing.opener"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**known, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            start_new_session=True,
        )
        self.close = weakref.finalize(self, _end, self.process)

    def ask(self, task: dict[str, Any]) -> dict[str, Any]:
        """Have a file opened, and return the answer."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(task).encode() + b"\n")
        stdin.flush()
        answer: dict[str, Any] = json.loads(stdout.readline())
        return answer


_kept: list[Opener] = []


def _ask(task: dict[str, Any]) -> None:
    path = task["path"]
    if not _kept:
        _kept.append(Opener())
    try:
        answer = _kept[0].ask({**task, "path": os.path.abspath(path)})
    except (OSError, ValueError):  # its pipe is closed
        code = _kept[0].process.wait()
        close_opener()
        raise UserError(f"{path} was not opened: the process for it ended with code {code}: try again") from None
    except BaseException:  # its answer would be taken for that of the next file
        close_opener()
        raise
    if "died" in answer:
        raise UserError(f"{path} {_how(answer['died'])}: save it anew, or leave it alone")
    if "error" in answer:
        raise UserError(answer["error"].replace(os.path.abspath(path), str(path)))


def _how(status: int) -> str:
    """Return what a file did to the process that opened it, by that process's exit status."""
    if status == -signal.SIGALRM:
        return "took longer to open than a file of its size may"
    if status == -signal.SIGKILL:
        return "took more memory than there is"
    return f"crashed the process that opened it ({signal.Signals(-status).name if status < 0 else f'code {status}'})"


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with contextlib.suppress(OSError):  # what was never read
            pipe.close()

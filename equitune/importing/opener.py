"""Opens files of strangers in processes of their own. Run as a program, it does so for another process (`foreign.py`).

It imports torch once and forks a process for each file, so that a file costs milliseconds. What a file can still do to
torch, crash, swell or never end, it does to that process, whose memory and time are limited.
"""

import json
import os
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.nn.functional import batch_norm

from equitune.errors import UserError
from equitune.importing.exported import load_exported
from equitune.importing.weights import state_of

MIB = 2**20
# torch.load holds a file once and its clean copies once more; JSON takes some ten times its text, of which a program
# has little beside its weights. What a program computes of two images comes on top, and is no part of the file.
FILES_IN_MEMORY = 4
OVERHEAD_MIB = 2048
SECONDS = 60.0
SECONDS_PER_MIB = 0.2


def limit(num_bytes: int) -> None:
    """Limit the memory and the time of this process to what a file of this size can need."""
    # RLIMIT_DATA counts what a process may write to. RLIMIT_AS counts the libraries that torch maps, too: gigabytes.
    have = 0
    with suppress(OSError):  # there is no /proc
        have = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    most = have + FILES_IN_MEMORY * num_bytes + OVERHEAD_MIB * MIB
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # where the machine is out of memory all the same, this process goes first
        Path("/proc/self/oom_score_adj").write_text("1000")
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, whatever it does
    signal.setitimer(signal.ITIMER_REAL, SECONDS + SECONDS_PER_MIB * num_bytes / MIB)


def opened(task: dict[str, Any]) -> dict[str, Any]:
    """Open one file. Answer `{}` where all is well, and `{"error": SENTENCE}` where it is refused."""
    path = Path(task["path"])
    try:
        if task["kind"] == "program":
            model = load_exported(path, task["shape"])
            with torch.no_grad():  # find_layers has seen black images
                model(torch.rand(2, *task["shape"]))
        else:
            save_file(state_of(path), task["to"])
    except UserError as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": f"{path} takes more memory than a file of its size may: save it anew"}
    except Exception as error:
        return {"error": f"{path} cannot be opened: {type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    return {}


def _serve() -> None:
    """Do what each line of the standard input asks for, and answer with a line, until the input ends."""
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a library prints is no answer
    is_warm = False
    for line in sys.stdin.buffer:
        task = json.loads(line)
        if task["kind"] == "program" and not is_warm:
            _import_meta()
            is_warm = True
        answers.write(json.dumps(_in_a_process(task)).encode() + b"\n")


def _import_meta() -> None:
    """Have torch import what its meta device needs: seconds, which each forked process would spend again."""
    images = torch.zeros(1, 1, 1, 1, device="meta")
    batch_norm(images, images.flatten(), images.flatten())


def _in_a_process(task: dict[str, Any]) -> dict[str, Any]:
    """Open one file in a process of its own. Answer `{"died": STATUS}` where it did not end by itself."""
    reading, writing = os.pipe()
    process = os.fork()  # this process has one thread
    if process == 0:
        try:
            limit(os.stat(task["path"]).st_size)
            os.write(writing, json.dumps(opened(task)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    try:
        found: dict[str, Any] = json.loads(answer)
    except ValueError:
        return {"died": status}
    return {"died": status} if status else found


if __name__ == "__main__":
    _serve()

"""An image file -> square uint8 pixels. Run as a program, it does so for another process (`_decoders.py`).

It imports Pillow alone, so that such a process starts in a tenth of a second and takes little memory.
"""

import json
import mmap
import os
import signal
import sys
from typing import Any

from PIL import Image, UnidentifiedImageError

UNREADABLE = (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError)


def decoded(path: str, size: int, grey: bool) -> bytes:
    """The pixels (C, size, size) of an image, a byte each: its shorter side is resized, then its centre is cut out.

    Raises:
        OSError, ValueError, ...: one of UNREADABLE, where it is none, or is cut off.
    """
    with Image.open(path) as image:
        square = _square(image.convert("L" if grey else "RGB"), size)
    return b"".join(band.tobytes() for band in square.split())


def glanced(path: str) -> int:
    """The bytes of an image's file; its header is read and its pixels are not.

    Raises:
        OSError, ValueError, ...: one of UNREADABLE, where it is no image.
    """
    with Image.open(path):
        return os.stat(path).st_size


def why(path: str, error: BaseException) -> str:
    """What is wrong with an image, as a phrase."""
    return f"{path} ({type(error).__name__})"


def _square(image: Image.Image, size: int) -> Image.Image:
    factor = size / min(image.size)
    if factor != 1:
        resized = tuple(max(size, round(side * factor)) for side in image.size)
        image = image.resize(resized, Image.Resampling.BILINEAR, reducing_gap=2.0)  # type: ignore[arg-type]
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _serve(shared: int) -> None:
    """Does what each line of the standard input asks for, and answers with a line, until the input ends.

    Args:
        shared: the file descriptor of the memory that pixels are written to.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: it ends with its parent
    memory = mmap.mmap(shared, 0)
    for line in sys.stdin.buffer:
        task: dict[str, Any] = json.loads(line)
        answer: dict[str, Any] = {"broken": []}
        if "size" in task:
            size, grey, start = task["size"], task["grey"], task["start"]
            each = (1 if grey else 3) * size * size
            if start + len(task["paths"]) * each > len(memory):
                memory = mmap.mmap(shared, 0)
        else:
            answer["bytes"] = [0] * len(task["paths"])
        for index, path in enumerate(task["paths"]):
            try:
                if "size" in task:
                    memory[start + index * each : start + (index + 1) * each] = decoded(path, size, grey)
                else:
                    answer["bytes"][index] = glanced(path)
            except UNREADABLE as error:
                answer["broken"].append(why(path, error))
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))

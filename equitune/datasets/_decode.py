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
    """The pixels (C, size, size) of an image, a byte each: its shorter side is resized to `size`, its centre cut out.

    Raises:
        OSError, ValueError, ...: one of UNREADABLE, where it is none, or is cut off.
    """
    with Image.open(path) as image:
        mode = "L" if grey else "RGB"
        square = _square(image if image.mode == mode else image.convert(mode), size)
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
    image.load()  # what is wrong with it is raised here
    factor = size / min(image.size)
    width, height = (max(size, round(side * factor)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    if factor == 1:
        return image.crop((left, top, left + size, top + size))
    across, down = image.width / width, image.height / height
    box = (left * across, top * down, (left + size) * across, (top + size) * down)  # the rest need not be resized
    return image.resize((size, size), Image.Resampling.BILINEAR, box, reducing_gap=2.0)


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

"""An image file -> square uint8 pixels. Run as a program, it does so for another process (`decoders.py`).

It imports Pillow alone, so that such a process starts in a tenth of a second and takes little memory.
"""

import errno
import json
import mmap
import os
import signal
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image

# The formats that are decoded, whatever a file is called. Pillow tells the format from the content and knows some
# forty; for EPS it starts Ghostscript on what the file says. None of these starts a program.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
UNREADABLE = (Exception,)  # Pillow raises whatever a damaged file leads it to: struct.error, KeyError, EOFError, ...

_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B")
_BITS_PER_SAMPLE = 258  # TIFF's tag
_AS_BYTE = [round(value / 257) for value in range(1 << 16)]  # 65535 becomes 255; Pillow alone would cut off at 255


class NoRegularFile(OSError):
    """A named pipe, a device, a socket or a folder in the place of an image."""


@contextmanager
def opened(path: str) -> Iterator[tuple[Image.Image, int]]:
    """Open an image and yield it with the bytes of its file. Its header is read, its pixels are not.

    Every image of a data set is opened here. A link is followed, since data sets are often made of links, but it must
    lead to a regular file.

    Raises:
        NoRegularFile: the path leads to something that could block for ever or never end.
        OSError, ValueError, ...: it is gone, or is no image of one of FORMATS.
    """
    with open(path, "rb", opener=_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise NoRegularFile(errno.EINVAL, "no regular file", path)
        with Image.open(file, formats=FORMATS) as image:
            yield image, status.st_size


def _without_waiting(path: str, flags: int) -> int:
    """Open a file as `open` would; a named pipe is opened too, instead of waiting for whoever writes to it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def decoded(path: str, size: int, grey: bool) -> bytes:
    """Return the pixels (C, size, size) of an image, a byte each.

    Its shorter side is resized to `size`, and its centre is cut out. Of an animation the first frame is taken. Grey of
    16 bits is scaled to 8. Alpha is left out, and so is the orientation that a camera notes in EXIF, as torchvision
    and timm do.

    Raises:
        OSError, ValueError, ...: one of UNREADABLE, where it is no image, or is cut off.
    """
    with opened(path) as (image, _):
        mode = "L" if grey else "RGB"
        eight_bit = _with_eight_bits(image)
        square = _square(eight_bit if eight_bit.mode == mode else eight_bit.convert(mode), size)
    return b"".join(band.tobytes() for band in square.split())


def glanced(path: str) -> int:
    """Return the bytes of an image's file; its header is read and its pixels are not.

    Raises:
        OSError, ValueError, ...: one of UNREADABLE, where it is no image.
    """
    with opened(path) as (image, num_bytes):
        _require_known_range(image)
        return num_bytes


def why(path: str, error: BaseException) -> str:
    """Say what is wrong with an image, as a phrase."""
    return f"{path} ({'no regular file' if isinstance(error, NoRegularFile) else type(error).__name__})"


def _with_eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits scaled to 8; any other image as it is."""
    _require_known_range(image)
    if image.mode in (*_SIXTEEN_BIT, "I"):
        return image.convert("I").point(_AS_BYTE, "L")
    return image


def _require_known_range(image: Image.Image) -> None:
    """Raise ValueError for pixels of 32 or 12 bits: nothing in the file says, or Pillow does not, which value is white.

    Pillow gives grey of 16 bits as "I;16", but that of PGM as "I", scaled to 0 to 65535.
    """
    is_whole = image.mode not in ("F", "I") or (image.mode == "I" and image.format in ("PPM", "PNG"))
    tags = getattr(image, "tag_v2", {})
    if not is_whole or (image.mode in _SIXTEEN_BIT and tags.get(_BITS_PER_SAMPLE, (16,)) != (16,)):
        raise ValueError(f"pixels of mode {image.mode} have no known range")


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
    """Do what each line of the standard input asks for, and answers with a line, until the input ends.

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

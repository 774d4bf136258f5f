"""Any folder of images with one subfolder a class, decoded once, or with `stream` each time that an image is needed."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from equitune.data.cache import Source
from equitune.data.decode import UNREADABLE, decoded, why
from equitune.data.decoders import decoders, usable_cores
from equitune.data.files import Files, Pixels, cannot_be_decoded, glanced
from equitune.data.labelled import LabelledImages, Labels
from equitune.errors import UserError

SHAPE = (3, 32, 32)  # with other arguments: of the size asked for, and in grey

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


def load(
    root: Path,
    *,
    path: str,
    test_path: str | None = None,
    size: Annotated[int, Field(ge=1, le=1024)] = 32,
    grey: bool = False,
    stream: bool = False,
) -> LabelledImages:
    """`path` and `test_path` are relative to the data root, or absolute.

    The shorter side of an image is resized to `size`, then its centre is cut out. With `stream`, images stay in their
    files, of which the headers alone are read here; training decodes them as it needs them.

    Raises:
        UserError: no such folder, no classes, or images that cannot be decoded; names them.
    """
    read = _streamed if stream else _read
    files, labels, class_names = _listed(root / path)
    pixels = read(root / path, files, size, grey)
    if test_path is None:
        return LabelledImages(pixels, labels, class_names)
    test_files, test_labels, test_names = _listed(root / test_path)
    if test_names != class_names:
        raise UserError(f"{root / path} and {root / test_path} must have the same classes, but differ")
    return LabelledImages(pixels, labels, class_names, read(root / test_path, test_files, size, grey), test_labels)


def load_folder(folder: Path, size: int, grey: bool = False) -> LabelledImages:
    """All images of a folder; those of a folder without subfolders have no labels, which stand as -1.

    Raises:
        UserError: there are none, or some cannot be decoded; names them.
    """
    if any(sub.is_dir() and not sub.name.startswith(".") for sub in folder.iterdir()):
        files, labels, class_names = _listed(folder)
        return LabelledImages(_read(folder, files, size, grey), labels, class_names)
    files = _images_in(folder)
    return LabelledImages(_read(folder, files, size, grey), np.full(len(files), -1, np.int64), ())


def _images_in(folder: Path) -> list[str]:
    images = [
        os.path.join(where, name)
        for where, _, names in os.walk(folder)
        for name in names
        if os.path.splitext(name)[1].lower() in _SUFFIXES
    ]
    if not images:
        raise UserError(f"{folder} holds no image ({', '.join(sorted(_SUFFIXES))}): fill or remove it")
    return sorted(images, key=lambda path: path.split(os.sep))


def _listed(folder: Path) -> tuple[list[str], Labels, tuple[str, ...]]:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: set data.path to a folder with one subfolder a class")
    classes = sorted(sub.name for sub in folder.iterdir() if sub.is_dir() and not sub.name.startswith("."))
    if len(classes) < 2:
        raise UserError(f"{folder} must have one subfolder for each of two classes or more, but has {len(classes)}")
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = _images_in(folder / name)
        files += images
        labels += [label] * len(images)
    return files, np.array(labels, np.int64), tuple(classes)


def _read(folder: Path, files: list[str], size: int, grey: bool) -> Pixels:
    pixels = np.empty((len(files), 1 if grey else 3, size, size), np.uint8)
    flat = pixels.reshape(len(files), -1)

    def read(index: int) -> str | None:
        try:
            flat[index] = np.frombuffer(decoded(files[index], size, grey), np.uint8)
        except UNREADABLE as error:
            return why(files[index], error)
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        broken = [name for name in pool.map(read, range(len(files))) if name]
    if broken:
        raise cannot_be_decoded(broken)
    return pixels


def _streamed(folder: Path, files: list[str], size: int, grey: bool) -> Files:
    """Return the files, of each of which the header has been read."""
    names = [os.path.relpath(path, folder) for path in files]
    return glanced(Source("", str(folder)), str(folder), names, size, grey, decoders(usable_cores()))

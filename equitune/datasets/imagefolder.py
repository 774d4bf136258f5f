"""Any folder of images with one subfolder a class, decoded once, resized and cut to a square."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydantic import Field

from equitune.datasets._splits import LabelledImages, Labels, Pixels
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
) -> LabelledImages:
    """`path` and `test_path` are relative to the data root, or absolute.

    The shorter side of an image is resized to `size`, then its centre is cut out.

    Raises:
        UserError: no such folder, no classes, or images that cannot be decoded; names them.
    """
    files, labels, class_names = _listed(root / path)
    pixels = _decoded(files, size, grey)
    if test_path is None:
        return LabelledImages(pixels, labels, class_names)
    test_files, test_labels, test_names = _listed(root / test_path)
    if test_names != class_names:
        raise UserError(f"{root / path} and {root / test_path} must have the same classes, but differ")
    return LabelledImages(pixels, labels, class_names, _decoded(test_files, size, grey), test_labels)


def load_folder(folder: Path, size: int, grey: bool = False) -> LabelledImages:
    """All images of a folder; those of a folder without subfolders have no labels, which stand as -1.

    Raises:
        UserError: there are none, or some cannot be decoded; names them.
    """
    if any(sub.is_dir() and not sub.name.startswith(".") for sub in folder.iterdir()):
        files, labels, class_names = _listed(folder)
        return LabelledImages(_decoded(files, size, grey), labels, class_names)
    files = _images_in(folder)
    return LabelledImages(_decoded(files, size, grey), np.full(len(files), -1, np.int64), ())


def _images_in(folder: Path) -> list[Path]:
    images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not images:
        raise UserError(f"{folder} holds no image ({', '.join(sorted(_SUFFIXES))}): fill or remove it")
    return images


def _listed(folder: Path) -> tuple[list[Path], Labels, tuple[str, ...]]:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: set data.path to a folder with one subfolder a class")
    classes = sorted(sub.name for sub in folder.iterdir() if sub.is_dir() and not sub.name.startswith("."))
    if len(classes) < 2:
        raise UserError(f"{folder} must have one subfolder for each of two classes or more, but has {len(classes)}")
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = _images_in(folder / name)
        files += images
        labels += [label] * len(images)
    return files, np.array(labels, np.int64), tuple(classes)


def _decoded(files: list[Path], size: int, grey: bool) -> Pixels:
    pixels = np.empty((len(files), 1 if grey else 3, size, size), np.uint8)

    def decode(index: int) -> str | None:
        try:
            with Image.open(files[index]) as image:
                pixels[index] = _square(image.convert("L" if grey else "RGB"), size)
        except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return f"{files[index]} ({type(error).__name__})"
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        broken = [name for name in pool.map(decode, range(len(files))) if name]
    if broken:
        more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
        raise UserError(f"{len(broken)} images cannot be decoded: {', '.join(broken[:5])}{more}: mend or remove them")
    return pixels


def _square(image: Image.Image, size: int) -> Pixels:
    factor = size / min(image.size)
    if factor != 1:
        resized = tuple(max(size, round(side * factor)) for side in image.size)
        image = image.resize(resized, Image.Resampling.BILINEAR, reducing_gap=2.0)  # type: ignore[arg-type]
    left, top = (image.width - size) // 2, (image.height - size) // 2
    cut = np.asarray(image.crop((left, top, left + size, top + size)))
    return cut[None] if cut.ndim == 2 else np.moveaxis(cut, -1, 0)

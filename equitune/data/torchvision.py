"""What the data sets of torchvision share: found or fetched under the data root, read into arrays."""

from pathlib import Path
from typing import Any

import numpy as np

from equitune.data.labelled import LabelledImages
from equitune.errors import UserError


def load_torchvision(name: str, class_name: str, root: Path) -> LabelledImages:
    """Both splits of a torchvision data set.

    Raises:
        UserError: it is not under the root, or a file of it is corrupt.
    """
    kind = _kind(class_name)
    parts = []
    for train in (True, False):
        try:
            parts.append(kind(root=root, train=train, download=False))
        except Exception as error:  # of many kinds: torchvision and pickle trip over a corrupt file as they may
            missing = "not found" in str(error)
            problem = "is not complete in" if missing else f"cannot be read ({type(error).__name__}) from"
            raise UserError(_advice(name, root, kind, problem)) from None
    (pixels, labels), (test_pixels, test_labels) = (_arrays(part) for part in parts)
    return LabelledImages(pixels, labels, tuple(parts[0].classes), test_pixels, test_labels)


def download_torchvision(class_name: str, root: Path) -> None:
    """Fetch a torchvision data set into the root."""
    kind = _kind(class_name)
    for train in (True, False):
        kind(root=root, train=train, download=True)


def _kind(class_name: str) -> Any:
    from torchvision import datasets  # seconds to import

    return getattr(datasets, class_name)


def _arrays(part: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    pixels = np.asarray(part.data, np.uint8)
    pixels = pixels[:, None] if pixels.ndim == 3 else np.moveaxis(pixels, -1, 1)
    return np.ascontiguousarray(pixels), np.asarray(part.targets, np.int64)


def _advice(name: str, root: Path, kind: Any, problem: str) -> str:
    suspects = [str(path) for path in _files(root, kind) if not _is_whole(path)]
    named = f" (corrupt: {', '.join(suspects)}; remove it first)" if suspects else ""
    return f"{name} {problem} {root}{named}: get it with `equitune download {name} --data-root {root}`"


def _files(root: Path, kind: Any) -> list[Path]:
    folder = root / kind.__name__ / "raw" if hasattr(kind, "resources") else root / kind.base_folder
    return sorted(path for path in folder.glob("*") if path.is_file()) if folder.is_dir() else []


def _is_whole(path: Path) -> bool:
    """Whether an IDX file (MNIST's format) has the size its header promises; other files pass unless empty."""
    data = path.read_bytes()
    if not path.name.endswith("-ubyte"):
        return bool(data)
    if len(data) < 4 or data[:2] != b"\0\0":
        return False
    dims = data[3]
    sizes = np.frombuffer(data[4 : 4 + 4 * dims], ">u4")
    return len(sizes) == dims and len(data) == 4 + 4 * dims + int(sizes.prod())

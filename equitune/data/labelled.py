"""Labelled images as arrays, as a data set's file loads them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from equitune.data.files import Files, Pixels

Labels = npt.NDArray[np.int64]  # (N,)


@dataclass(frozen=True)
class LabelledImages:
    """What a data set's file loads. `test_*` is the data set's own test split, where it has one."""

    pixels: Pixels | Files
    labels: Labels
    class_names: tuple[str, ...]
    test_pixels: Pixels | Files | None = None
    test_labels: Labels | None = None

"""scikit-learn's handwritten digits, shipped with it: 1,797 images of 8 x 8, on a canvas with an empty margin.

At the default size of 12 the margin is 2 px on each side, so that shifts up to 2 px lose nothing of a digit.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from equitune.data.labelled import LabelledImages

SHAPE = (1, 12, 12)  # or of the size asked for
CLASSES = 10


def load(root: Path, *, size: Annotated[int, Field(ge=8, le=512)] = 12) -> LabelledImages:
    from sklearn.datasets import load_digits  # a second to import

    digits = load_digits()
    small = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # 17 grey levels, 0 to 16
    margin = (size - 8) // 2
    pixels = np.zeros((len(small), 1, size, size), np.uint8)
    pixels[:, 0, margin : margin + 8, margin : margin + 8] = small
    return LabelledImages(pixels, digits.target.astype(np.int64), tuple(map(str, digits.target_names)))

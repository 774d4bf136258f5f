"""What cases begin with, made once a worker and copied: a root with a whole study, a study's file."""

import functools
import shutil
import tempfile
from pathlib import Path

from invented import invent

from equitune.config.load import load_study

STUDY = """\
study: small
data: {name: digits, limit: 60}
model: {name: resnet, depth: 8, width: {int: [2, 4]}}
training: {epochs: 2, batch_size: 32, lr: {float: [1e-3, 1e-2], log: true}}
measures: [equivariance]
objectives: {accuracy: maximize, translation_error: minimize}
search: {trials: 4, seed: 7}
"""


def a_study_file(place: Path) -> Path:
    """Write a good study's file."""
    path = place / "good.yaml"
    path.write_text(STUDY, encoding="utf-8")
    return path


def a_root(place: Path) -> Path:
    """Make a root that holds `small`, a complete study of four trials, all of them tested."""
    shutil.copytree(_invented(), place, symlinks=True)
    return place


@functools.cache
def _invented() -> Path:
    place = Path(tempfile.mkdtemp(dir=_KEPT.name))
    invent(place / "small", load_study(a_study_file(place)), 4, tested=(0, 1, 2, 3))
    (place / "good.yaml").unlink()
    return place


_KEPT = tempfile.TemporaryDirectory(prefix="fuzz-templates-")  # for the life of the process

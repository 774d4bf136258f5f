"""equitune: which training choices make a network equivariant, and what does it cost in accuracy?"""

import importlib
from typing import Any

from equitune import torchvision_mend

__version__ = "0.1.0"

torchvision_mend.install()


def __getattr__(name: str) -> Any:
    """`equitune.load_study`, without making every import of the package as slow as pandas."""
    if name == "load_study":
        return importlib.import_module("equitune.notebook").load_study
    raise AttributeError(f"module 'equitune' has no attribute {name!r}")

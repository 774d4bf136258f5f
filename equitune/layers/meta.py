"""Networks without weights: shapes, sizes and rules are known before any number is."""

from collections.abc import Callable
from typing import TypeVar

import torch

Made = TypeVar("Made")


def on_meta(make: Callable[[], Made]) -> Made:
    """Return what `make` gives on torch's meta device, where tensors hold no numbers; on the CPU where
    it needs some.
    """
    try:
        with torch.device("meta"):
            return make()
    except (NotImplementedError, RuntimeError):
        with torch.device("cpu"):
            return make()

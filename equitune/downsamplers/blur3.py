"""BlurPool with the filter [1, 2, 1]: a low-pass filter, then every second value (1904.11486).

It commutes with quarter turns and flips on maps of odd side alone.
"""

from typing import Literal

from equitune.layers.blur import Blur


def build(*, padding: Literal["reflect", "circular"] = "reflect") -> Blur:
    return Blur(taps=3, padding=padding)

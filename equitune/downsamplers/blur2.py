"""BlurPool with the filter [1, 1]: a low-pass filter, then every second value (1904.11486).

It commutes with quarter turns and flips on maps of even side alone.
"""

from typing import Literal

from equitune.layers.blur import Blur


def build(*, padding: Literal["reflect", "circular"] = "reflect") -> Blur:
    return Blur(taps=2, padding=padding)

"""Rotations of colour about the grey axis of RGB: positions do not move."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from equitune.errors import Unmeasurable
from equitune.groups.element import Element
from equitune.groups.layout import Layout


@dataclass(frozen=True)
class Hue:
    """Turns hues by an angle, red towards green. Multiples of 120° exchange the three channels, exactly.

    Values may leave [0, 1]: clipping them would break the group.
    """

    angle_deg: float
    protocol = "none"

    @property
    def label(self) -> str:
        return f"hue by {self.angle_deg:g}°"

    def inverse(self) -> Self:
        return type(self)(-self.angle_deg)

    def after(self, first: Self) -> Self:
        return type(self)(self.angle_deg + first.angle_deg)

    def on_images(self, images_BCHW: Tensor) -> Tensor:
        """T_g x: the linear map of each pixel's colour (2310.19368).

        Raises:
            Unmeasurable: images that have not three channels.
        """
        if images_BCHW.shape[1] != 3:
            raise Unmeasurable("no_colour", f"a hue needs 3 channels, not {images_BCHW.shape[1]}")
        thirds = _whole(self.angle_deg / 120)
        if thirds is not None:
            return images_BCHW.roll(thirds, 1) if thirds % 3 else images_BCHW
        return torch.einsum("ij,bjhw->bihw", self._matrix().to(images_BCHW), images_BCHW)

    def on_features(self, features_BCGHW: Tensor, layout: Layout) -> Tensor:
        """rho(g) f: an axis of G steps of hue is rolled; all else stays.

        Raises:
            Unmeasurable: the angle is no multiple of the axis' step.
        """
        if layout.axis != "hue":
            return features_BCGHW
        entries = features_BCGHW.shape[2]
        steps = _whole(self.angle_deg * entries / 360)
        if steps is None:
            raise Unmeasurable("undefined", f"{self.label} is no multiple of the {360 / entries:g}° of its group axis")
        return features_BCGHW.roll(steps, 2) if steps % entries else features_BCGHW

    def permutes(self, layout: Layout, height: int, width: int) -> bool:
        return True

    def visible(self, layout: Layout, height: int, width: int) -> None:
        return None

    def _matrix(self) -> Tensor:
        """(3, 3), float64."""
        angle = math.radians(self.angle_deg)
        same, grey, turn = math.cos(angle), (1 - math.cos(angle)) / 3, math.sin(angle) / math.sqrt(3)
        first = torch.tensor([same + grey, grey - turn, grey + turn], dtype=torch.float64)
        return torch.stack([first, first.roll(1), first.roll(2)])


def sets(strides: list[int], side_px: int) -> dict[str, list[Element]]:
    """`third`: the two exact exchanges of channels; `angle`: ±30°."""
    return {"third": [Hue(120), Hue(240)], "angle": [Hue(30), Hue(-30)]}


def _whole(number: float) -> int | None:
    return int(number) if float(number).is_integer() else None

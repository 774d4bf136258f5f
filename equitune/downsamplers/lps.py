"""Learned polyphase sampling: a small network scores the four grids of every second pixel, for each image (2210.08001).

In training it mixes them by a Gumbel-softmax of the scores; otherwise it takes the one of the largest. With circular
padding the class scores do not change under any shift. Nothing makes the scores symmetric under turns.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from equitune.groups.grid import TURNS, Symmetry
from equitune.layers.downsampler import Halving
from equitune.layers.polyphase import components, half, taken


def build(
    *, hidden: Annotated[int, Field(ge=1, le=4096)] = 16, temperature: Annotated[float, Field(gt=0)] = 1.0
) -> "LPS":
    return LPS(hidden, temperature)


@dataclass(frozen=True)
class LPS:
    """A scored choice of grid behind the convolution, shared with the shortcut."""

    hidden: int
    temperature: float
    conv_stride = 1

    def halving(self, channels: int, side: int) -> Halving:
        return ScoredComponent(channels, self.hidden, self.temperature, side)


class ScoredComponent(Halving):
    """(B, C, G, H, W) -> (B, C, G, H / 2, W / 2): the grid is one for all channels and entries of G."""

    is_adaptive = True

    def __init__(self, channels: int, hidden: int, temperature: float, side: int) -> None:
        super().__init__(kernel=2, side=half("lps", side))
        self.temperature = temperature
        self.score = nn.Sequential(
            nn.Conv2d(channels, hidden, 3, padding=1, padding_mode="circular"),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1, padding_mode="circular", bias=False),  # one would move all scores
        )

    def forward(self, *maps: Tensor) -> tuple[Tensor, ...]:
        scores_B4 = self.scores(maps[0])
        if not self.training:
            return tuple(taken(each, scores_B4.argmax(1)) for each in maps)
        shares_B4 = functional.gumbel_softmax(scores_B4, self.temperature)
        shares = shares_B4.view(-1, 2, 2, 1, 1, 1, 1)
        return tuple((shares * components(each)).sum((1, 2)) for each in maps)

    def breaks(self, symmetry: Symmetry, side: int) -> str | None:
        return "the network that scores its grids is free to point anywhere" if symmetry in TURNS else None

    def scores(self, maps_BCGHW: Tensor) -> Tensor:
        """Return the mean score of each component, (B, 4)."""
        planes = components(maps_BCGHW).transpose(3, 4)  # (B, 2, 2, G, C, H / 2, W / 2)
        scored: Tensor = self.score(planes.flatten(0, 3)).mean((1, 2, 3))
        return scored.view(maps_BCGHW.shape[0], 4, -1).mean(2)

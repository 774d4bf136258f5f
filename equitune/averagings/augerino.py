"""Augerino: scores averaged over affine maps of the image, how far they reach being learned (2010.11882).

f_bar(x) = E f(g x), g = expm(sum_i eps_i G_i) with eps_i drawn from U(-w_i / 2, w_i / 2) and w = softplus(width): a
width of 0 is w = 0.69, one of -20 leaves images as they are. Training takes one g an image, drawn anew each time;
evaluation the mean log-softmax of `copies` of them, always the same. Images are sampled bilinearly, which has a slope
in w, with zeros outside. `copies` times the multiply-adds of the model in evaluation; only its scores become invariant.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from equitune.groups.resample import affine
from equitune.layers.averaging import Averaging

# The Lie algebra of the plane's affine maps; coordinates from the image's centre, in halves of its shorter side. After
# the paper, a shift is a tenth of what its coordinates say. Each with the unit of its full width, and that of w = 1.
GENERATORS: dict[str, tuple[list[list[float]], str, float]] = {
    "translation_x": ([[0, 0, 0.1], [0, 0, 0], [0, 0, 0]], "side", 0.05),
    "translation_y": ([[0, 0, 0], [0, 0, 0.1], [0, 0, 0]], "side", 0.05),
    "rotation": ([[0, -1, 0], [1, 0, 0], [0, 0, 0]], "rad", 1.0),
    "scale_x": ([[1, 0, 0], [0, 0, 0], [0, 0, 0]], "log", 1.0),
    "scale_y": ([[0, 0, 0], [0, 1, 0], [0, 0, 0]], "log", 1.0),
    "shear": ([[0, 1, 0], [1, 0, 0], [0, 0, 0]], "log", 1.0),
}
WIDEST = 10.0  # the penalty ends when a width has come so far


def average(
    model: nn.Module,
    *,
    acts: Literal["rotation", "translation", "scale", "affine"] = "affine",
    width: float = 0.0,
    learned: bool = True,
    copies: Annotated[int, Field(ge=1, le=1024)] = 4,
) -> "Augerino":
    names = [name for name in GENERATORS if acts == "affine" or name.startswith(acts)]
    return Augerino(model, names, width, learned, copies)


class Augerino(Averaging):
    """The average over the affine maps that these generators span.

    Attributes:
        reach: (generators,); softplus of it is w. A vector, which no weight decay pulls to 0.
        generators: (generators, 3, 3).
        draws: eps / w in evaluation, U(-1/2, 1/2), (copies, 1, generators).
    """

    generators: Tensor
    draws: Tensor

    def __init__(self, model: nn.Module, names: list[str], width: float, learned: bool, copies: int) -> None:
        super().__init__(model)
        self.names = names
        self.reach = nn.Parameter(torch.full((len(names),), float(width)), requires_grad=learned)
        self.register_buffer("generators", torch.tensor([GENERATORS[name][0] for name in names]), persistent=False)
        draws = torch.rand(copies, 1, len(names), generator=torch.Generator().manual_seed(0), device="cpu") - 0.5
        self.register_buffer("draws", draws.to(self.reach.device), persistent=False)

    def averaged(self, images: Tensor) -> Tensor:
        draws = torch.rand(1, len(images), len(self.names), device=images.device) - 0.5 if self.training else self.draws
        logs = [self.model(self.moved(images, draw)).log_softmax(1) for draw in draws]
        return torch.stack(logs).mean(0)

    def moved(self, images: Tensor, draws: Tensor) -> Tensor:
        """g x for each image, with zeros outside it; draws are (B, generators), or (1, generators) for all alike."""
        with torch.autocast(images.device.type, enabled=False):
            eps = draws.to(self.reach) * functional.softplus(self.reach)
            matrices = torch.linalg.matrix_exp((eps[:, :, None, None] * self.generators).sum(1))
            half_px = min(images.shape[-2:]) / 2
            # These take each pixel to its source, so they are the inverse of g, which is as likely as g.
            to_source = torch.cat([matrices[:, :2, :2], matrices[:, :2, 2:] * half_px], 2)
            return affine(images, to_source, fill="zero")

    def widths(self) -> dict[str, tuple[float, str]]:
        """Full widths: of the angle in radians, of shifts in sides of the image, of a factor's natural logarithm."""
        found = {}
        for name, width in zip(self.names, functional.softplus(self.reach.detach()).tolist(), strict=True):
            _, unit, scale = GENERATORS[name]
            found[name] = width * scale, unit
        return found

    def width_penalty(self) -> Tensor:
        """-|w| as long as every w is below 10, as in the paper."""
        widths = functional.softplus(self.reach)
        return torch.where((widths < WIDEST).all(), -widths.norm(), torch.zeros_like(widths[0]))

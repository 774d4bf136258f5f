"""What a Lie derivative is summed up as, image by image, and the statistics that follow from it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from equitune.evaluation.estimate import CLUSTERS, Estimate
from equitune.results.values import Status

MOTIONLESS = 1e-12  # relative to the energy of what should move: below it, a motion is rounding

Problem = tuple[Status, str]


@dataclass(frozen=True)
class LieSums:
    """What is summed over images, for one layer and one flow.

    Attributes:
        sums_Kk: float64, a row for each cluster of images: |L f|^2, |J_f dT x|^2 + |d rho f|^2, |f|^2, how many values;
            for the output also |f - centre|^2, and the sum of f - centre for each channel.
        centre_C: near the channels' means, against cancellation; of the output alone.
        moves: whether the flow prescribes a motion.
        dtype: of the features.
    """

    sums_Kk: Tensor
    centre_C: Tensor | None
    moves: bool
    dtype: str

    @classmethod
    def empty(
        cls, n: int, plain_BCP: Tensor, motion_BCP: Tensor, prescribed_BCP: Tensor | None, *, is_output: bool
    ) -> "LieSums":
        """No image of n yet, for features like these."""
        columns = 5 + plain_BCP.shape[1] if is_output else 4
        return cls(
            sums_Kk=torch.zeros(min(n, CLUSTERS), columns, dtype=torch.float64),
            centre_C=plain_BCP.double().mean((0, 2)) if is_output else None,
            moves=prescribed_BCP is not None,
            dtype=str(plain_BCP.dtype).removeprefix("torch."),
        )

    def state(self) -> dict[str, Tensor]:
        """Everything, as tensors: a flag is one number, a type that of an empty tensor."""
        centre = {} if self.centre_C is None else {"centre": self.centre_C}
        dtype = torch.empty(0, dtype=getattr(torch, self.dtype))
        return {"sums": self.sums_Kk, "moves": torch.tensor(self.moves), "dtype": dtype, **centre}

    @classmethod
    def of_state(cls, state: dict[str, Tensor], device: torch.device) -> "LieSums":
        """Return what to go on from."""
        centre = state["centre"].to(device) if "centre" in state else None
        return cls(state["sums"].clone(), centre, bool(state["moves"]), str(state["dtype"].dtype).split(".")[1])

    def add(self, plain_BCP: Tensor, motion_BCP: Tensor, prescribed_BCP: Tensor | None, start: int) -> None:
        """Add a batch of images, the first of which is number `start`, to the rows of their clusters."""
        plain, motion = plain_BCP.double(), motion_BCP.double()
        # The difference in the model's own precision, in which an exact layer's motions agree.
        failure = motion if prescribed_BCP is None else (motion_BCP - prescribed_BCP).double()
        motions = _square(motion) + (0 if prescribed_BCP is None else _square(prescribed_BCP.double()))
        count = torch.full_like(motions, plain[0].numel())
        columns = torch.stack([_square(failure), motions, _square(plain), count], 1)
        if self.centre_C is not None:
            centred = plain - self.centre_C[:, None]
            columns = torch.cat([columns, _square(centred)[:, None], centred.sum(2)], 1)
        clusters_B = torch.arange(start, start + len(columns)) % CLUSTERS
        self.sums_Kk.index_add_(0, clusters_B, columns.cpu())

    def error(self) -> Estimate:
        """rLEE: 0 exact, 1 no relation, at most 2."""
        return Estimate.ratio(self.sums_Kk[:, 0], self.sums_Kk[:, 1])

    def raw(self) -> Estimate:
        """LEE: E|L f|^2 / dim f."""
        return Estimate.ratio(self.sums_Kk[:, 0], self.sums_Kk[:, 3])

    def over_spread(self) -> Estimate:
        """E|L f|^2 / E|f - mean f|^2, of the output alone."""
        return Estimate.of(self.sums_Kk, lambda sums: sums[..., 0] / _spread(sums))

    def problem(self) -> Problem | None:
        """Why there is no number."""
        total = self.sums_Kk.sum(0)
        if len(self.sums_Kk) < 2:
            return "undefined", "needs two images or more"
        if not total.isfinite().all():
            return "undefined", "features are not finite"
        if self.moves and float(total[1]) <= MOTIONLESS * float(total[2]):
            return "collapsed", "features do not move, and have no pattern that should"
        if self.centre_C is not None and float(_spread(total)) <= MOTIONLESS * float(total[2]):
            return "collapsed", "all images have the same features"
        return None


def _square(values_BCP: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(values_BCP.flatten(1), dim=1)  # without a tensor of squares
    return norms.square_()


def _spread(sums: Tensor) -> Tensor:
    """Return the sum over images and positions of |f - mean f|^2, centred per channel, from the sums of an output."""
    centred_C = sums[..., 5:]
    per_channel = sums[..., 3] / centred_C.shape[-1]
    return sums[..., 4] - centred_C.square().sum(-1) / per_channel

"""The one place that averages: pairs of feature maps, streamed as sufficient statistics of a fixed size.

A pair is a = f(T_g x) and b = rho(g) f(x), beside y = f(x), each (B, C, P) with P positions. (a, b) tells
equivariance, (a, y) invariance. Suffixes name the axes: B images of a batch, K clusters of images, C channels.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from equitune.evaluation.estimate import CLUSTERS, Estimate
from equitune.evaluation.moments import COLLAPSED, Moments, Side, Unrelated, in_double, inverse_length, parts, scratch
from equitune.results.values import Status

# The numbers of an image that are summed over each cluster of images, a column each.
COLUMNS = [
    "images",  # 1
    "aa",  # |a|^2
    "bb",
    "yy",
    "ab",  # |a - b|^2, from the difference itself: expanded into its terms it would leave 1e-8
    "ay",
    "by",
    "ab_across",  # <a_i, mean b> + <b_i, mean a>, with the first batch's means
    "ay_across",
    "flat",  # the correlation of a and b, centred over channels and positions together
    "channel",  # the sum over channels of their correlations, each centred by itself
    "channels",  # the number of channels that have one
    "wrong",  # |a - rho(h) f(x)|^2 for an element h that is not g
]


CHANCE_IMAGES = 32  # so many give the chance levels of correlations that are centred within an image


class PairStatistics:
    """Accumulates pairs batch by batch; what it reports does not depend on their order or on the batches' size."""

    def __init__(self, clusters: int = CLUSTERS, chance_images: int = CHANCE_IMAGES) -> None:
        self._clusters = clusters
        self._chance_images = chance_images
        self._done = 0  # images
        self._table_Kk = torch.zeros(0)
        self._sides: dict[str, Side] = {}
        self._means: tuple[Tensor, ...] = ()  # of a, b and y over the first batch, flat
        self._unrelated: Unrelated | None = None
        self._summary: Summary | None = None

    @torch.inference_mode()
    def add(
        self,
        moved: Tensor,
        plain: Tensor,
        act: Callable[[Tensor], Tensor] = lambda features: features,
        *,
        view: Callable[[Tensor], Tensor] = lambda features: features,
        plain_moments: Moments | None = None,
        acted_moments: Moments | None = None,
        wrong: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Add a batch of any floating dtype, a few images at a time.

        Differences are taken, and squared over one channel's map, in the features' own precision, where nothing
        cancels; all other sums are in float64.

        Args:
            moved: f(T_g x), (B, ...).
            plain: f(x), (B, ...).
            act: makes rho(g) f(x), (B, C, P), of f(x); linear.
            view: makes (B, C, P) of features.
            plain_moments: the moments of f(x), where they are known already.
            acted_moments: those of rho(g) f(x), where they follow from them.
            wrong: acts like another element of the group, as a control.
        """
        if not self._sides:
            mean = plain.mean(0, keepdim=True)
            self._begin([view(moved.mean(0, keepdim=True)), act(mean), view(mean)])
        a_mean, b_mean, y_mean = self._means
        found: dict[str, list[Tensor]] = {name: [] for name in ("ab", "ay", "by", "ab_across", "ay_across", "wrong")}
        moments: dict[str, list[Moments]] = {"a": [], "b": [], "y": []}
        for part in parts(moved):
            a, b, y = view(moved[part]), act(plain[part]), view(plain[part])
            found["ab_across"].append(_dot(a, b_mean) + _dot(b, a_mean))
            found["ay_across"].append(_dot(a, y_mean) + _dot(y, a_mean))
            difference = torch.sub(a, b, out=scratch(a, a.dtype))
            found["ab"].append(_squares(difference))
            found["ay"].append(_squares(torch.sub(a, y, out=difference)).sum(1))
            found["by"].append(_squares(torch.sub(b, y, out=difference)).sum(1))
            if wrong is not None:
                found["wrong"].append(_squares(torch.sub(a, wrong(plain[part]), out=difference)).sum(1))
            moments["a"].append(Moments.of_part(in_double(a)))
            if acted_moments is None:
                moments["b"].append(Moments.of_part(in_double(b)))
            if plain_moments is None:
                moments["y"].append(Moments.of_part(in_double(y)))
        if (missing := self._chance_images - self._done) > 0:
            unrelated = Unrelated.of(view(moved[:missing]), act(plain[:missing]))
            self._unrelated = self._unrelated + unrelated if self._unrelated else unrelated
        self._accumulate(
            {name: torch.cat(sums) for name, sums in found.items() if sums},
            Moments.joined(moments["a"]),
            acted_moments or Moments.joined(moments["b"]),
            plain_moments or Moments.joined(moments["y"]),
        )

    def summary(self) -> "Summary":
        """Return what follows from the sums so far."""
        if self._summary is None:
            self._summary = Summary(self._table_Kk, self._sides, self._unrelated)
        return self._summary

    def state(self) -> dict[str, Tensor]:
        """Everything that was summed, to go on from later."""
        groups = self._sides | ({"unrelated": self._unrelated} if self._unrelated else {})
        means = {f"mean.{index}": mean for index, mean in enumerate(self._means)}
        sums = {f"{name}.{key}": value for name, each in groups.items() for key, value in vars(each).items()}
        return {"table": self._table_Kk, **means, **sums}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Goes on from a state."""

        def part(name: str) -> dict[str, Tensor]:
            prefix = f"{name}."
            return {key.removeprefix(prefix): value.clone() for key, value in state.items() if key.startswith(prefix)}

        self._table_Kk = state["table"].clone()
        self._done = int(self._table_Kk[:, 0].sum())
        self._means = tuple(part("mean").values())
        self._sides = {name: Side(**part(name)) for name in ("a", "b", "y")}
        self._unrelated = Unrelated(**found) if (found := part("unrelated")) else None
        self._summary = None

    def _begin(self, means_1CP: list[Tensor]) -> None:
        """Make room, and keep the first batch's means of a, b and y: view and rho(g) are linear."""
        self._means = tuple(mean[0].flatten().clone() for mean in means_1CP)
        (_, channels, positions), device = means_1CP[0].shape, means_1CP[0].device
        self._sides = {name: Side.empty(self._clusters, channels, positions, device) for name in ("a", "b", "y")}
        self._table_Kk = torch.zeros(self._clusters, len(COLUMNS), dtype=torch.float64, device=device)

    def _accumulate(self, found: dict[str, Tensor], a: Moments, b: Moments, y: Moments) -> None:
        channels, positions = self._sides["a"].map_CP.shape
        sums_BC = (a.squares_BC, b.squares_BC, (a.squares_BC + b.squares_BC - found["ab"]) / 2, a.sums_BC, b.sums_BC)
        by_channel, alive = _correlations(*sums_BC, count=positions)
        totals = [each.sum(1) for each in sums_BC]
        found |= {
            "images": torch.ones_like(totals[0]),
            "aa": totals[0],
            "bb": totals[1],
            "yy": y.squares_BC.sum(1),
            "ab": found["ab"].sum(1),
            "flat": _correlations(*totals, count=channels * positions)[0],
            "channel": by_channel.sum(1),
            "channels": alive.sum(1),
        }
        nothing = torch.zeros_like(totals[0])
        rows = torch.stack([found.get(name, nothing).double() for name in COLUMNS], 1)
        cluster_B = torch.arange(self._done, self._done + len(rows), device=rows.device) % self._clusters
        self._done += len(rows)
        self._table_Kk.index_add_(0, cluster_B, rows)
        for name, moments in (("a", a), ("b", b), ("y", y)):
            self._sides[name].add(cluster_B, moments)
        self._summary = None


class Summary:
    """The measures of a set of pairs. `other` is "b" for equivariance and "y" for invariance."""

    QUANTITIES = (
        "error",
        "correlation",
        "invariance_error",
        "invariance_correlation",
        "motion_error",
        "flat_correlation",
        "channel_correlation",
    )

    def __init__(self, table_Kk: Tensor, sides: dict[str, Side], unrelated: Unrelated | None) -> None:
        used = table_Kk[:, 0] > 0
        self._columns = dict(zip(COLUMNS, table_Kk[used].cpu().unbind(1), strict=True))
        self._totals: dict[str, float] = dict(zip(COLUMNS, table_Kk.sum(0).tolist(), strict=True))
        self._sums = {name: side.sums_KC[used].cpu() for name, side in sides.items()}
        self._sides = sides
        self._unrelated = unrelated
        self._kept_estimates: dict[str, Estimate] = {}
        self._kept_covariances: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self._kept_totals: dict[str, list[float]] = {}
        self._kept_products: dict[str, tuple[float, float]] = {}
        self.n = int(self._totals["images"])
        self.positions = sides["a"].map_CP.shape[1]  # of a map, that were compared

    def estimate(self, quantity: str) -> Estimate:
        """One of QUANTITIES; where `status` is not `ok` it has no meaning."""
        if quantity not in self._kept_estimates:
            self._kept_estimates[quantity] = self._computed(quantity)
        return self._kept_estimates[quantity]

    def _computed(self, quantity: str) -> Estimate:
        c, other = self._columns, "y" if quantity.startswith("invariance") else "b"
        match quantity:
            case "error" | "invariance_error":  # M2, M3
                return self._error(other)
            case "correlation" | "invariance_correlation":  # M1, M3
                return Estimate.correlation(*self._covariances(other))
            case "motion_error":  # M4
                return Estimate.ratio(c["ab"], c["ay"] + c["by"])
            case "flat_correlation":
                return Estimate.ratio(c["flat"], c["images"])
            case "channel_correlation":
                return Estimate.ratio(c["channel"], c["channels"])
        raise ValueError(quantity)

    def chance(self, quantity: str) -> float | None:
        """Return what unrelated images score, averaged over pairs i != j: a shared positional pattern, and no more."""
        match quantity:
            case "error" | "invariance_error":
                return 1.0
            case "correlation" | "invariance_correlation":
                return self._chance_correlation("b" if quantity == "correlation" else "y")
            case "flat_correlation" if self._unrelated:
                return self._unrelated.flat()
            case "channel_correlation" if self._unrelated:
                return self._unrelated.channel()
        return None

    def status(self, quantity: str) -> tuple[Status, str | None]:
        """`ok`, or why a quantity has no value."""
        if self.n < 2:
            return "undefined", "needs two images or more"
        if not all(math.isfinite(self._totals[name]) for name in ("aa", "bb", "ab")):
            return "undefined", "features are not finite"
        other = "y" if quantity.startswith("invariance") else "b"
        energy = self._totals["aa"] + self._totals[other * 2]
        if self._chance_distance(other) <= COLLAPSED * energy / self.n:
            return "collapsed", "all images have the same features"
        if min(self._total_covariances(other)[1:]) <= COLLAPSED * energy:
            return "collapsed", "features do not vary"
        if quantity == "motion_error" and self._totals["ay"] + self._totals["by"] <= COLLAPSED * energy:
            return "undefined", "neither the features nor their moved copies change"
        if quantity == "channel_correlation" and not self._totals["channels"]:
            return "dead_channels", "no channel varies within an image"
        return "ok", None

    def relative_distance(self) -> float:
        """Return |a - b| / (|a| + |b|) over all images: 0.707 for independent vectors without a mean."""
        lengths = math.sqrt(self._totals["aa"]) + math.sqrt(self._totals["bb"])
        return math.sqrt(self._totals["ab"]) / lengths

    def wrong_error(self) -> float | None:
        """Return the error with rho(h) for another element h, in units of the right one's chance; None: not
        measured.
        """
        wrong = self._totals["wrong"]
        return wrong / self.n / self._chance_distance("b") if wrong else None

    def dead_channels(self) -> float:
        """Return the share of channels that never vary over all images."""
        a = self._sides["a"]
        variance_C = a.squares_C - a.sums_KC.sum(0).square() / (self.n * self.positions)
        return float((variance_C <= COLLAPSED * a.squares_C).double().mean())

    def dropped_channels(self) -> float:
        """Return the share of (image, channel) pairs without variance, which `channel_correlation` leaves out."""
        return 1 - self._totals["channels"] / (self.n * len(self._sides["a"].squares_C))

    def _error(self, other: str) -> Estimate:
        """E|a_i - b_i|^2 over E|a_i - b_j|^2 of unrelated images."""
        c, images = self._columns, self._columns["images"]
        # How much each image moves the mean over all pairs i != j, to first order.
        moves = c["aa"] + c[other * 2] - 2 * c[f"a{other}_across"]
        chance = images * (self._chance_distance(other) - moves.sum() / self.n) + moves
        return Estimate.ratio(c[f"a{other}"], chance)

    def _covariances(self, other: str) -> tuple[Tensor, Tensor, Tensor]:
        """Of a with b, of a, and of b: summed over channels and positions, centred at the data set's channel means."""
        if other not in self._kept_covariances:
            c, positions = self._columns, self.positions
            count = c["images"] * positions
            a_KC, b_KC = self._sums["a"], self._sums[other]
            a_mean, b_mean = (sums.sum(0) / (self.n * positions) for sums in (a_KC, b_KC))
            product = (c["aa"] + c[other * 2] - c[f"a{other}"]) / 2
            self._kept_covariances[other] = (
                product - b_KC @ a_mean - a_KC @ b_mean + count * (a_mean @ b_mean),
                c["aa"] - 2 * (a_KC @ a_mean) + count * (a_mean @ a_mean),
                c[other * 2] - 2 * (b_KC @ b_mean) + count * (b_mean @ b_mean),
            )
        return self._kept_covariances[other]

    def _total_covariances(self, other: str) -> list[float]:
        if other not in self._kept_totals:
            self._kept_totals[other] = torch.stack(self._covariances(other)).sum(1).tolist()
        return self._kept_totals[other]

    def _products(self, other: str) -> tuple[float, float]:
        """Return the products of the two sides' total maps, and of their totals by channel over the positions."""
        if other not in self._kept_products:
            a, b = self._sides["a"], self._sides[other]
            centres = torch.dot(a.sums_KC.sum(0), b.sums_KC.sum(0)) / self.positions
            maps = torch.dot(a.map_CP.flatten(), b.map_CP.flatten())
            self._kept_products[other] = float(maps), float(centres)
        return self._kept_products[other]

    def _chance_correlation(self, other: str) -> float:
        covariance, a_variance, b_variance = self._total_covariances(other)
        maps, centres = self._products(other)
        return (maps - centres - covariance) / (self.n - 1) / math.sqrt(a_variance * b_variance)

    def _chance_distance(self, other: str) -> float:
        """E|a_i - b_j|^2 over all pairs i != j."""
        energy = self._totals["aa"] + self._totals[other * 2]
        product = (energy - self._totals[f"a{other}"]) / 2
        return energy / self.n - 2 * (self._products(other)[0] - product) / max(self.n * (self.n - 1), 1)


def _correlations(aa: Tensor, bb: Tensor, ab: Tensor, a: Tensor, b: Tensor, *, count: int) -> tuple[Tensor, Tensor]:
    """Pearson's, from sums over `count` entries, and where there is one; 0 where one of the two does not vary."""
    scale = inverse_length(aa, a, count) * inverse_length(bb, b, count)
    return (ab - a * b / count) * scale, scale > 0


def _dot(values_BCP: Tensor, mean: Tensor) -> Tensor:
    """<v_i, mean> of each image, in the features' own precision: it enters standard errors alone."""
    return torch.mv(values_BCP.flatten(1), mean)


def _squares(values_BCP: Tensor) -> Tensor:
    """Return sums of squares over positions, (B, C) in float64."""
    lengths: Tensor = torch.linalg.vector_norm(values_BCP, dim=2)
    return lengths.double().square_()

"""The one place that averages, against definitions written out, resampling and each other."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from equitune.evaluation import moments as _moments
from equitune.evaluation.estimate import Estimate
from equitune.evaluation.moments import Moments
from equitune.evaluation.pair_statistics import PairStatistics, Summary

settings.register_profile("fast", deadline=None, max_examples=25)
settings.load_profile("fast")


def pairs_of(a: Tensor, b: Tensor, batch: int = 7, clusters: int = 1024) -> Summary:
    pairs = PairStatistics(clusters)
    for start in range(0, len(a), batch):
        pairs.add(a[start : start + batch], b[start : start + batch])
    return pairs.summary()


def features(
    n: int = 40, channels: int = 5, positions: int = 12, noise: float = 0.5, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Related maps with offsets, gains and a positional pattern, so that nothing cancels by luck."""
    draw = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, channels, positions, generator=draw, dtype=torch.float64)
    pattern = torch.randn(1, channels, positions, generator=draw, dtype=torch.float64)
    a = shared + pattern + noise * torch.randn(shared.shape, generator=draw, dtype=torch.float64) + 3
    b = shared + 0.5 * pattern + noise * torch.randn(shared.shape, generator=draw, dtype=torch.float64) + 2
    return a * torch.arange(1, channels + 1)[:, None], b * torch.arange(1, channels + 1)[:, None]


def correlation_written_out(a: Tensor, b: Tensor) -> float:
    a, b = a - a.mean((0, 2), keepdim=True), b - b.mean((0, 2), keepdim=True)
    return float((a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt())


def error_written_out(a: Tensor, b: Tensor) -> float:
    n = len(a)
    distances = (a[:, None] - b[None]).square().sum((2, 3))
    return float(distances.diagonal().mean() / (distances.sum() - distances.diagonal().sum()) * n * (n - 1))


def chance_written_out(a: Tensor, b: Tensor) -> float:
    n = len(a)
    a, b = a - a.mean((0, 2), keepdim=True), b - b.mean((0, 2), keepdim=True)
    products = torch.einsum("icp,jcp->ij", a, b)
    return float((products.sum() - products.trace()) / (n - 1) / ((a * a).sum() * (b * b).sum()).sqrt())


def test_each_statistic_is_its_definition() -> None:
    a, b = features()
    pairs = pairs_of(a, b)
    assert pairs.n == 40
    assert pairs.estimate("correlation").value == pytest.approx(correlation_written_out(a, b), rel=1e-12)
    assert pairs.estimate("error").value == pytest.approx(error_written_out(a, b), rel=1e-12)
    assert pairs.chance("correlation") == pytest.approx(chance_written_out(a, b), rel=1e-10)
    per_image = torch.stack(
        [torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1] for x, y in zip(a, b, strict=True)]
    )
    assert pairs.estimate("flat_correlation").value == pytest.approx(float(per_image.mean()), rel=1e-10)
    per_channel = [
        torch.corrcoef(torch.stack([u, v]))[0, 1] for x, y in zip(a, b, strict=True) for u, v in zip(x, y, strict=True)
    ]
    assert pairs.estimate("channel_correlation").value == pytest.approx(
        float(torch.stack(per_channel).mean()), rel=1e-10
    )
    assert pairs.relative_distance() == pytest.approx(float((a - b).norm() / (a.norm() + b.norm())), rel=1e-12)


def test_the_definitions_themselves_can_fail() -> None:
    a, b = features()
    assert correlation_written_out(a, b) != pytest.approx(correlation_written_out(a, b.roll(1, 0)), rel=1e-3)
    assert error_written_out(a, b) != pytest.approx(error_written_out(a, 1.1 * b), rel=1e-3)


@pytest.mark.parametrize("images_at_once", [1, 5, 1000])
def test_summing_in_parts_changes_neither_value_nor_standard_error(
    images_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large maps are summed an image at a time: the standard error must still be that of the jackknife."""
    a, b = features(n=40, channels=4, positions=200)
    monkeypatch.setattr(_moments, "PART", images_at_once * a[0].numel())
    found = pairs_of(a, b, batch=40).estimate("error")
    left_out = [error_written_out(*(x[torch.arange(40) != image] for x in (a, b))) for image in range(40)]
    jackknife = math.sqrt(39 / 40 * sum((value - sum(left_out) / 40) ** 2 for value in left_out))
    assert found.value == pytest.approx(error_written_out(a, b), rel=1e-12)
    assert found.stderr == pytest.approx(jackknife, rel=0.1)


@pytest.mark.parametrize("quantity", ["correlation", "error"])
def test_the_standard_error_is_that_of_a_bootstrap_over_images(quantity: str) -> None:
    a, b = features(n=80, noise=1.0)
    written_out = {"correlation": correlation_written_out, "error": error_written_out}[quantity]
    draw = torch.Generator().manual_seed(0)
    resampled = []
    for _ in range(400):
        index = torch.randint(0, 80, (80,), generator=draw)
        # Resampled copies of one image are no unrelated pair; n - 1 times 1 / n of them is a small bias, not spread.
        resampled.append(written_out(a[index], b[index]))
    bootstrap = float(torch.tensor(resampled).std())
    estimate = pairs_of(a, b).estimate(quantity)
    assert estimate.stderr == pytest.approx(bootstrap, rel=0.15)  # 400 resamples know a spread to 3.5 %


def test_the_mean_of_dependent_statistics_keeps_their_covariance() -> None:
    a, b = features(n=100)
    one = pairs_of(a, b).estimate("correlation")
    assert Estimate.average([one, one]).stderr == pytest.approx(one.stderr)
    other = pairs_of(*features(n=100, seed=5)).estimate("correlation")
    independent = Estimate.average([one, other]).stderr
    assert independent == pytest.approx(math.hypot(one.stderr, other.stderr) / 2, rel=0.25)


@given(st.integers(1, 40), st.integers(0, 5))
def test_batches_do_not_matter(batch: int, seed: int) -> None:
    a, b = features(seed=seed)
    whole, parts = pairs_of(a, b, len(a)), pairs_of(a, b, batch)
    for quantity in ("correlation", "error"):
        assert parts.estimate(quantity).value == pytest.approx(whole.estimate(quantity).value, rel=1e-11)
    assert parts.chance("correlation") == pytest.approx(whole.chance("correlation"), rel=1e-9)


@given(st.randoms(use_true_random=False))
def test_order_does_not_matter(random: object) -> None:
    a, b = features()
    order = list(range(len(a)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert pairs_of(a[order], b[order]).estimate("error").value == pytest.approx(
        pairs_of(a, b).estimate("error").value, rel=1e-11
    )
    channels = torch.randperm(a.shape[1])
    permuted = pairs_of(a[:, channels], b[:, channels])
    assert permuted.estimate("correlation").value == pytest.approx(
        pairs_of(a, b).estimate("correlation").value, rel=1e-11
    )


@given(st.floats(0.01, 100), st.floats(-1000, 1000))
def test_gain_and_offset(gain: float, offset: float) -> None:
    a, b = features()
    offset *= gain  # an offset of 1,000 spreads costs 1e6 of float64's 1e16: 1e-10
    before, after = pairs_of(a, b), pairs_of(gain * a + offset, gain * b + offset)
    assert after.estimate("correlation").value == pytest.approx(before.estimate("correlation").value, abs=1e-9)
    assert after.estimate("error").value == pytest.approx(before.estimate("error").value, abs=1e-9)
    one_sided = pairs_of(gain * a + offset, b)
    assert one_sided.estimate("correlation").value == pytest.approx(before.estimate("correlation").value, abs=1e-9)
    if abs(gain - 1) > 0.5:  # M2 sees what M1 cannot
        assert one_sided.estimate("error").value != pytest.approx(before.estimate("error").value, abs=1e-3)


def test_known_moments_are_those_of_a_permuted_side() -> None:
    a, y = features()
    order = torch.randperm(y.shape[2])

    def act(maps: Tensor) -> Tensor:  # sums over positions have a single one
        return maps[:, :, order] if maps.shape[2] > 1 else maps

    plain = Moments.of(y)
    known, computed = PairStatistics(), PairStatistics()
    known.add(a, y, act, plain_moments=plain, acted_moments=plain.moved(act))
    computed.add(a, y, act)
    for quantity in Summary.QUANTITIES:
        left, right = known.summary(), computed.summary()
        assert left.estimate(quantity).value == pytest.approx(right.estimate(quantity).value, rel=1e-12)
        if quantity != "motion_error":  # has no chance level
            assert left.chance(quantity) == pytest.approx(right.chance(quantity), rel=1e-10)
    assert known.summary().estimate("error").value != pytest.approx(pairs_of(a, y).estimate("error").value, rel=1e-2)


def test_invariance_motion_and_the_wrong_element_are_their_definitions() -> None:
    a, y = features()
    pairs = PairStatistics()
    for part in (slice(0, 13), slice(13, 40)):
        pairs.add(a[part], y[part], lambda maps: maps.roll(1, 2), wrong=lambda maps: maps.roll(5, 2))
    found, b = pairs.summary(), y.roll(1, 2)
    assert found.estimate("invariance_error").value == pytest.approx(error_written_out(a, y), rel=1e-12)
    assert found.estimate("invariance_correlation").value == pytest.approx(correlation_written_out(a, y), rel=1e-12)
    assert found.chance("invariance_correlation") == pytest.approx(chance_written_out(a, y), rel=1e-10)
    squares = [float((left - right).square().sum()) for left, right in ((a, b), (a, y), (b, y))]
    assert found.estimate("motion_error").value == pytest.approx(squares[0] / (squares[1] + squares[2]), rel=1e-12)
    chance = float((a - b).square().sum()) / error_written_out(a, b)
    assert found.wrong_error() == pytest.approx(float((a - y.roll(5, 2)).square().sum()) / chance, rel=1e-12)
    assert found.wrong_error() != pytest.approx(found.estimate("error").value, rel=1e-2)


@pytest.mark.parametrize("quantity", ["flat_correlation", "channel_correlation"])
def test_chance_levels_are_those_of_all_unrelated_pairs(quantity: str) -> None:
    a, b = features(n=12)
    a[:, 1] = 2.0  # a channel that never varies is left out
    found = pairs_of(a, b)
    values = []
    for i in range(12):
        for j in range(12):
            if i != j and quantity == "flat_correlation":
                values.append(torch.corrcoef(torch.stack([a[i].flatten(), b[j].flatten()]))[0, 1])
            elif i != j:
                values += [torch.corrcoef(torch.stack([a[i, c], b[j, c]]))[0, 1] for c in (0, 2, 3, 4)]
    assert found.chance(quantity) == pytest.approx(float(torch.stack(values).mean()), rel=1e-9)
    assert found.dropped_channels() == pytest.approx(1 / 5)


def test_memory_is_bounded_and_clusters_of_images_keep_value_and_spread() -> None:
    a, b = features(n=600, noise=1.0)
    each, clusters = pairs_of(a, b, batch=64), pairs_of(a, b, batch=64, clusters=200)
    for quantity in Summary.QUANTITIES:
        if quantity != "motion_error":  # b is y here
            assert clusters.estimate(quantity).value == pytest.approx(each.estimate(quantity).value, rel=1e-12)
            # A spread from 200 clusters is known to 1 / sqrt(400) = 5 %.
            assert clusters.estimate(quantity).stderr == pytest.approx(each.estimate(quantity).stderr, rel=0.2)
    few, many = PairStatistics(64), PairStatistics(64)
    few.add(a[:64], b[:64])
    many.add(a, b)
    size = [sum(value.numel() for value in pairs.state().values()) for pairs in (few, many)]
    assert size[0] == size[1]


def test_a_state_goes_on_as_if_it_had_never_stopped() -> None:
    a, b = features()
    first, second = PairStatistics(16), PairStatistics(16)
    first.add(a[:20], b[:20])
    second.restore(first.state())
    for pairs in (first, second):
        pairs.add(a[20:], b[20:])
    assert all(torch.equal(first.state()[name], value) for name, value in second.state().items())


def test_dead_channels_are_counted_and_weigh_nothing() -> None:
    a, b = features()
    dead = torch.full_like(a[:, :2], 4.0)
    pairs = pairs_of(torch.cat([a, dead], 1), torch.cat([b, dead], 1))
    assert pairs.dead_channels() == pytest.approx(2 / 7)
    assert pairs.estimate("correlation").value == pytest.approx(pairs_of(a, b).estimate("correlation").value, rel=1e-10)


def test_what_cannot_be_measured_says_so() -> None:
    a, b = features()
    assert pairs_of(a, b).status("error") == ("ok", None)
    assert pairs_of(a[:1], b[:1]).status("error")[0] == "undefined"
    assert pairs_of(a * float("nan"), b).status("error") == ("undefined", "features are not finite")
    assert pairs_of(a[:1].expand_as(a), a[:1].expand_as(a)).status("error")[0] == "collapsed"
    assert pairs_of(a * 0, b * 0).status("error")[0] == "collapsed"

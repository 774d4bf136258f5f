"""Known-answer tests of the measures, through the path that trials use; each with a twin that must fail.

The ids K1 to K14 and their constructions are those of the project's reference on measures. Random weights differ from
generator to generator, so such values are asserted as bands. n = 16 images of side 32 unless a test says otherwise.
"""

import math

import pytest
import torch
from fields import Net, Pointwise, cnn, evaluation, images, lowpass, mlp, p4_net
from torch import Tensor, nn

from equitune.evaluation.pair_statistics import PairStatistics, Summary
from equitune.evaluation.pairs import Plan, compare, match
from equitune.groups.d4 import Turn
from equitune.groups.element import Element
from equitune.groups.layout import Grid, Layout, Vector
from equitune.groups.translation import Shift
from equitune.measures.equivariance import measure

# float64 rounding through three layers, and float32's; the reference asserts the same.
EXACT = {torch.float64: 1e-12, torch.float32: 1e-5}
both_dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


def under(net: Net, field: Tensor, *elements: Element) -> list[Summary]:
    """What follows for each element."""
    validation = evaluation(field)
    plan = Plan(net, net.layers, validation, {"set": list(elements)})
    assert not plan.problems, plan.problems
    pairs = compare(net, validation, plan)
    return [pairs["body", "set", index].summary() for index in range(len(elements))]


def between(a: Tensor, b: Tensor) -> Summary:
    """What follows for features (B, C, ...) of two kinds."""
    pairs = PairStatistics()
    pairs.add(a.flatten(2), b.flatten(2))
    return pairs.summary()


def nmse(pairs: Summary) -> float:
    """mean_i |a_i - b_i|^2 / (0.5 (|a_i|^2 + |b_i|^2)), from the same sums."""
    columns = pairs._columns
    return float((columns["ab"] / (0.5 * (columns["aa"] + columns["bb"]))).mean())


@both_dtypes
def test_k1_a_circular_network_is_exact(dtype: torch.dtype) -> None:
    field = images(16, 3, 32, dtype=dtype)
    exact = under(cnn([3, 16, 16, 16], "circular", dtype=dtype), field, Shift(1, 3))[0]
    assert exact.relative_distance() <= EXACT[dtype]
    assert exact.estimate("correlation").value == pytest.approx(1, abs=1e-9)
    assert exact.estimate("error").value <= EXACT[dtype] ** 2
    twin = under(cnn([3, 16, 16, 16], "zeros", dtype=dtype), field, Shift(1, 3))[0]
    assert twin.relative_distance() > 0.01


@both_dtypes
def test_k2_zero_padding_breaks_the_border_alone(dtype: torch.dtype) -> None:
    field, net = images(16, 3, 32, dtype=dtype), cnn([3, 16, 16, 16], dtype=dtype)
    assert under(net, field, Shift(2, 5))[0].relative_distance() > 0.01  # measured: 0.187
    with torch.inference_mode():
        a, b = net(field.roll((2, 5), (2, 3))), net(field).roll((2, 5), (2, 3))
    inside = between(a[:, :, 5:29, 8:29].flatten(2), b[:, :, 5:29, 8:29].flatten(2))  # the receptive field has radius 3
    too_far = between(a[:, :, 4:29, 8:29].flatten(2), b[:, :, 4:29, 8:29].flatten(2))
    # In float32 a kernel may sum another order elsewhere on the map: rounding, no more.
    assert inside.relative_distance() <= (0 if dtype == torch.float64 else 1e-6)
    assert too_far.relative_distance() > 1e-3


@both_dtypes
def test_k3_strides_are_exact_on_their_lattice_only(dtype: torch.dtype) -> None:
    field = images(16, 3, 36, dtype=dtype)
    net = cnn([3, 16, 16, 16], "circular", [2, 2, 1], dtype)
    lattice = under(net, field, Shift(4, 0), Shift(0, 8))
    assert max(pairs.relative_distance() for pairs in lattice) <= EXACT[dtype]
    substride = under(net, field, Shift(1, 0), Shift(2, 0), Shift(3, 0))
    assert max(pairs.estimate("channel_correlation").value for pairs in substride) < 0.9  # measured: .417, .259, .405
    wrong_stride = Net(net.body, Grid(2))
    assert under(wrong_stride, field, Shift(4, 0))[0].relative_distance() > 0.01


@both_dtypes
def test_k4_a_p4_network_is_exact_under_its_own_action_alone(dtype: torch.dtype) -> None:
    field, turn = images(16, 3, 32, dtype=dtype), Turn(1)
    net = p4_net([3, 8, 8], dtype=dtype)
    assert under(net, field, turn)[0].relative_distance() <= EXACT[dtype]
    naive = Net(net.body, Grid(1))  # the grid turns, the group axis does not
    assert under(naive, field, turn)[0].relative_distance() > 0.1  # measured: .381
    invariant = Net(nn.Sequential(net.body, Pointwise(lambda maps: maps.mean((3, 4)).amax(2))), Vector())
    assert under(invariant, field, turn)[0].relative_distance() <= EXACT[dtype]
    flat = Net(nn.Sequential(net.body, Pointwise(lambda maps: maps.mean((3, 4)).flatten(1))), Vector())
    assert under(flat, field, turn)[0].relative_distance() > 0.01


class OnWholeMaps(Turn):
    """A quarter turn that refuses any map but a whole one, as a group that needs even sides refuses a grid of one."""

    def on_features(self, features_BCGHW: Tensor, layout: Layout) -> Tensor:
        assert not layout.is_spatial or features_BCGHW.shape[-1] == 16
        return super().on_features(features_BCGHW, layout)


def test_an_element_is_asked_to_move_whole_maps_and_group_axes_alone() -> None:
    net, field = p4_net([3, 8, 8]), images(4, 3, 16, dtype=torch.float64)
    whole, turn = under(net, field, OnWholeMaps(1), Turn(1))
    assert whole.estimate("correlation").value == turn.estimate("correlation").value == pytest.approx(1, abs=1e-9)
    with pytest.raises(AssertionError):
        OnWholeMaps(1).on_features(torch.zeros(1, 8, 4, 1, 1), Grid(1, axis="c4"))


@both_dtypes
def test_k4_subsampling_breaks_a_p4_network_on_even_sides(dtype: torch.dtype) -> None:
    for side, is_exact in ((32, False), (33, True)):  # (side + 2 - 3) mod 2 = 0
        net = p4_net([3, 8, 8], stride2=True, dtype=dtype)
        distance = under(net, images(16, 3, side, dtype=dtype), Turn(1))[0].relative_distance()
        assert distance <= EXACT[dtype] if is_exact else distance > 0.1  # measured: 2e-16 and .343


@both_dtypes
def test_k4b_a_random_network_is_far_from_exact(dtype: torch.dtype) -> None:
    pairs = under(cnn([3, 8, 8], dtype=dtype), images(16, 3, 32, dtype=dtype), Turn(1))[0]
    assert 0.2 < pairs.estimate("correlation").value < 0.6  # measured over 8 seeds: .379 +- .030
    assert 0.4 < pairs.estimate("flat_correlation").value < 0.75  # .552 +- .033
    assert 0.1 < pairs.estimate("channel_correlation").value < 0.5  # .283 +- .027
    assert 0.4 < pairs.estimate("error").value < 0.85  # .63


@both_dtypes
def test_k5_an_mlp_is_not_invariant_but_looks_so_on_smooth_images(dtype: torch.dtype) -> None:
    net = mlp(3 * 32 * 32, 512, dtype)
    shifts = [Shift(0, 1), Shift(0, 4), Shift(0, 16)]
    white = [pairs.estimate("error").value for pairs in under(net, images(64, 3, 32, 0.0, dtype=dtype), *shifts)]
    assert all(0.9 < value < 1.1 for value in white)  # measured: .99, 1.02, .98
    smooth = under(net, images(64, 3, 32, dtype=dtype), *shifts)
    errors = [pairs.estimate("error").value for pairs in smooth]
    assert errors[0] < 0.7 < errors[1] < 1.05  # measured: .48, .90, 1.02
    assert 0.5 < smooth[0].estimate("flat_correlation").value < 0.8  # measured: .64, though nothing is invariant here
    with torch.inference_mode():
        features = net(images(64, 3, 32, dtype=dtype))[:, :, None]
    shuffled = between(features, features.roll(1, 0))
    assert 0.15 < shuffled.estimate("flat_correlation").value < 0.4  # measured: .25 to .28, for unrelated images


@both_dtypes
def test_k6_unrelated_images_correlate_unless_centred_over_the_data(dtype: torch.dtype) -> None:
    def unrelated(padding_mode: str) -> tuple[Summary, Tensor]:
        net = cnn([3, 32, 32, 32], padding_mode, dtype=dtype)
        for layer in net.body:
            if hasattr(layer, "bias"):
                torch.nn.init.normal_(layer.bias)
        with torch.inference_mode():
            features = net(images(16, 3, 32, dtype=dtype)).flatten(2)
        pairs = between(features, features.roll(1, 0))
        return pairs, features

    pairs, features = unrelated("circular")
    assert abs(pairs.estimate("correlation").value) < 0.1  # measured: .006
    assert abs(pairs.estimate("channel_correlation").value) < 0.1  # measured: .005
    assert pairs.estimate("error").value == pytest.approx(1, abs=0.1)  # measured: .994
    assert pairs.estimate("flat_correlation").value > 0.9  # the twin: centring per image leaves the channels' offsets
    assert torch.cosine_similarity(features.flatten(1), features.roll(1, 0).flatten(1)).mean() > 0.9  # so does none
    # Zero padding marks the border of every map alike: the chance level says how much correlation that alone gives.
    bordered, _ = unrelated("zeros")
    assert bordered.estimate("correlation").value > 0.3
    assert bordered.estimate("correlation").value == pytest.approx(bordered.chance("correlation"), abs=0.05)
    same = between(features, features)
    assert abs(same.chance("correlation")) < 0.05


@both_dtypes
def test_k7_features_that_do_not_vary_have_a_status_and_no_value(dtype: torch.dtype) -> None:
    field = images(16, 3, 32, dtype=dtype)
    pattern = images(1, 3, 32, seed=9, dtype=dtype)
    constant = Net(Pointwise(lambda x: torch.full_like(x, 7.3)), Grid(1))
    fixed = Net(Pointwise(lambda x: pattern.expand_as(x)), Grid(1))
    for net in (constant, fixed):
        report = measure(net, net, evaluation(field))
        metric = report.metrics["translation_error"]
        if net is constant:
            assert (metric.value, metric.status) == (None, "collapsed")
            assert report.profile[0]["status"] == "collapsed"
            assert "error" not in report.profile[0]
    shifted = under(fixed, field, Shift(1, 3))[0]
    assert shifted.relative_distance() > 0.1  # measured: .687; the pattern does not move with the image
    invariant = between(pattern.expand(16, -1, -1, -1).flatten(2), pattern.expand(16, -1, -1, -1).flatten(2))
    assert invariant.status("error")[0] == "collapsed"
    alive = between(field.flatten(2), field.flatten(2))
    assert alive.status("error")[0] == "ok"


@both_dtypes
@pytest.mark.parametrize("d", [8, 16, 32])
def test_k8_a_window_of_known_contrast(d: int, dtype: torch.dtype) -> None:
    side, contrast = 64, 0.8
    window = 1 + contrast * torch.cos(2 * math.pi * torch.arange(side, dtype=dtype) / side)
    net = Net(Pointwise(lambda x: window * x), Grid(1))
    pairs = under(net, images(256, 1, side, 0.0, dtype=dtype), Shift(0, d))[0]
    phi, power = 2 * math.pi * d / side, contrast**2
    # NMSE = A^2 (1 - cos phi) / (1 + A^2 / 2), r = (1 + A^2 / 2 cos phi) / (1 + A^2 / 2); +-.003 at n = 256.
    assert nmse(pairs) == pytest.approx(power * (1 - math.cos(phi)) / (1 + power / 2), abs=3e-3)
    expected = (1 + power / 2 * math.cos(phi)) / (1 + power / 2)
    assert pairs.estimate("correlation").value == pytest.approx(expected, abs=3e-3)
    other = under(net, images(256, 1, side, 0.0, dtype=dtype), Shift(0, d - 6))[0]
    assert other.estimate("correlation").value != pytest.approx(expected, abs=3e-3)


@both_dtypes
@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_k9_the_calibration_curve_of_a_scrambled_network(t: float, dtype: torch.dtype) -> None:
    side = 64
    order = torch.randperm(side * side, generator=torch.Generator().manual_seed(1))

    def mixed(x: Tensor) -> Tensor:
        return (1 - t) * x + t * x.flatten(2)[:, :, order].view_as(x)

    pairs = under(Net(Pointwise(mixed), Grid(1)), images(256, 1, side, 0.0, dtype=dtype), Shift(3, 7))[0]
    expected = (1 - t) ** 2 / ((1 - t) ** 2 + t**2)
    assert pairs.estimate("correlation").value == pytest.approx(expected, abs=3e-3)
    assert nmse(pairs) == pytest.approx(2 * (1 - expected), abs=3e-3 * 2)
    assert pairs.estimate("error").value == pytest.approx(1 - expected, abs=3e-3)
    if t == 0:  # the twin: compared with features that did not move, even the identity scores nothing
        field = images(256, 1, side, 0.0, dtype=dtype)
        still = between(field.roll((3, 7), (2, 3)).flatten(2), field.flatten(2))
        assert still.estimate("correlation").value == pytest.approx(0, abs=0.01)


@both_dtypes
@pytest.mark.parametrize("shift", [Shift(3, -2), Shift(0.37, 0.5), Shift(-1.5, 4)])
def test_k12_the_identity_network_is_exactly_zero(shift: Shift, dtype: torch.dtype) -> None:
    field = lowpass(images(16, 3, 31, dtype=dtype), 0.49)
    pairs = under(Net(torch.nn.Identity(), Grid(1)), field, shift)[0]
    assert pairs.relative_distance() == 0
    assert pairs.estimate("error").value == 0
    twin = under(Net(Pointwise(lambda x: x * torch.linspace(0.9, 1.1, 31, dtype=dtype)), Grid(1)), field, shift)[0]
    assert twin.estimate("error").value > 0


@both_dtypes
def test_k10_a_lowpass_makes_subsampling_exact_under_fractional_shifts(dtype: torch.dtype) -> None:
    field, shift = images(16, 3, 62, dtype=dtype), Shift(0.37, 0.37)
    net = Net(Pointwise(lambda x: lowpass(x, 0.24)[:, :, ::2, ::2]), Grid(2))
    assert under(net, field, shift)[0].relative_distance() <= EXACT[dtype]
    aliased = Net(Pointwise(lambda x: x[:, :, ::2, ::2]), Grid(2))
    assert under(aliased, field, shift)[0].relative_distance() > 0.1  # measured: .386


@both_dtypes
@pytest.mark.parametrize(
    ("name", "band", "low", "high"),
    [
        ("square", 0.24, 0.0, 0.0),  # twice the band is still below Nyquist
        ("square", 0.49, 0.1, 0.7),  # measured: .486
        ("relu", 0.24, 0.01, 0.2),  # .072
        ("relu", 0.49, 0.1, 0.5),  # .260
        ("gelu", 0.24, 0.01, 0.2),  # .049
        ("gelu", 0.49, 0.1, 0.5),  # .286
    ],
)
def test_k11_pointwise_functions_alias(name: str, band: float, low: float, high: float, dtype: torch.dtype) -> None:
    function = {"square": torch.square, "relu": torch.relu, "gelu": torch.nn.functional.gelu}[name]
    field = lowpass(images(16, 3, 63, 0.0, dtype=dtype), band)
    distance = under(Net(Pointwise(function), Grid(1)), field, Shift(0.5, 0.5))[0].relative_distance()
    assert low <= distance <= max(high, EXACT[dtype])


@both_dtypes
def test_k13_mirrored_filters_swap_their_channels(dtype: torch.dtype) -> None:
    kernel = torch.randn(8, 3, 3, 3, dtype=dtype)
    convolution = nn.Conv2d(3, 16, 3, padding=1, bias=False).to(dtype)
    with torch.no_grad():
        convolution.weight.copy_(torch.cat([kernel, kernel.flip(3)]))
    net, field, mirror = (
        Net(nn.Sequential(convolution, nn.ReLU()), Grid(1)),
        images(32, 3, 32, dtype=dtype),
        Turn(0, True),
    )
    assert under(net, field, mirror)[0].relative_distance() > 0.1  # measured: .389
    with torch.inference_mode():
        moved, plain = net(field.flip(3)), net(field).flip(3)
    assert between(moved, plain.roll(8, 1)).relative_distance() <= EXACT[dtype]
    rows = {row["set"]: row for row in measure(net, None, evaluation(field), group="flip", action="matched").profile}
    assert rows["flip/unmatched"]["correlation"] < 0.9
    # Only the horizontal mirror is in the filters: the vertical one finds no partner.
    horizontal = match(net, evaluation(field), Plan(net, net.layers, evaluation(field), {"set": [mirror]}))
    order = horizontal["body", "set", 0].permutation()
    assert order.tolist() == [*range(8, 16), *range(8)]
    assert between(moved, plain[:, order]).estimate("correlation").value == pytest.approx(1, abs=1e-6)


@both_dtypes
def test_k14_matching_few_images_fits_noise(dtype: torch.dtype) -> None:
    class Classifier(Net):
        """A random network's pooled features, and two classes."""

        def __init__(self) -> None:
            super().__init__(nn.Sequential(cnn([3, 32, 64]).body, nn.AdaptiveAvgPool2d(1), nn.Flatten()), Vector())
            self.output = nn.Linear(64, 2)
            self.layers["output"] = Vector()

        def forward(self, x: Tensor) -> Tensor:
            return self.output(self.body(x))  # type: ignore[no-any-return]

    net = Classifier().to(dtype)

    def row(n: int) -> dict[str, float]:
        report = measure(net, None, evaluation(images(n, 3, 32, dtype=dtype)), group="rotation", action="matched")
        found = next(row for row in report.profile if (row["layer"], row["set"]) == ("body", "quarter"))
        assert (found["n"], found["action"]) == (n // 2, "matched")
        return found

    few, many = row(8), row(128)
    assert few["correlation_fitted"] - few["correlation"] > 0.3  # measured: .919 and .054, 4 images to fit
    assert many["correlation_fitted"] - many["correlation"] < 0.2  # .443 and .329, 64 images

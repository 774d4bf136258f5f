"""Known-answer tests of the measures, through the path that trials use; each with a twin that must fail.

The ids K1 to K12 and their constructions are those of the project's reference on measures. Random weights differ from
generator to generator, so such values are asserted as bands. n = 16 images of side 32 unless a test says otherwise.
"""

import math

import pytest
import torch
from fields import Net, Pointwise, cnn, evaluation, images, lowpass, mlp
from torch import Tensor

from equitune.groups.element import Element
from equitune.groups.layout import Grid
from equitune.groups.translation import Shift
from equitune.measures._compare import Plan, compare
from equitune.measures._statistics import PairStatistics, Summary
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

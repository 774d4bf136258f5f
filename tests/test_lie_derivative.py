"""The Lie derivative against answers that are known, K15 and closed forms among them; each with a twin that must fail.

Exact layers agree to rounding: in float64 squares of 1e-16 times what a few layers add, in float32 of 1e-7.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from fields import Net, Pointwise, cnn, evaluation, images, lowpass, mlp
from torch import Tensor, nn

from equitune import catalog
from equitune.errors import Unmeasurable
from equitune.evaluation.image_set import EvaluationSet
from equitune.evaluation.motion import Difference, Differentiation, Jvp
from equitune.evaluation.report import Report
from equitune.groups.flow import Flow, Hue, Linear, Translation, flows
from equitune.groups.layout import Grid, Layout, Tokens, Vector
from equitune.groups.resample import affine, derivative_circular, gradient, shift_circular
from equitune.measures.lie_derivative import differentiate, measure

EXACT = {torch.float64: 1e-24, torch.float32: 1e-10}
both_dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
both_methods = pytest.mark.parametrize("method", ["jvp", "difference"])


def rows(net: nn.Module, field: Tensor, **options: object) -> dict[str, dict[str, object]]:
    """The rows of a network's only layer, by flow."""
    return {row["set"]: row for row in measure(net, None, evaluation(field), **options).profile}  # type: ignore[arg-type]


def errors(net: nn.Module, field: Tensor, **options: object) -> list[float]:
    return [row["lie_error"] for row in rows(net, field, **options).values()]  # type: ignore[misc]


def error_under(net: nn.Module, field: Tensor, flow: Flow) -> float:
    return differentiate(net, evaluation(field), [flow], [Jvp()]).sums["body", flow.label].error().value


def failure(body: nn.Module, field: Tensor, how: Differentiation, flow: Flow) -> Tensor:
    """L f(x), value by value."""
    with torch.no_grad(), how.passing():
        plain, motion = how.read(Grid(1).read(body(how.moving(flow, field))))
        return motion - how.prescribed(flow, plain, Grid(1))


def linear_cnn(dtype: torch.dtype = torch.float64, padding_mode: str = "circular") -> nn.Sequential:
    convs = (nn.Conv2d(i, o, 3, 1, 1, padding_mode=padding_mode) for i, o in ((3, 16), (16, 16)))
    return nn.Sequential(*convs).to(dtype)


def fixed(kernel: list[list[float]], dtype: torch.dtype = torch.float64) -> Net:
    """One 3 x 3 circular kernel for each of three channels."""
    conv = nn.Conv2d(3, 3, 3, 1, 1, groups=3, bias=False, padding_mode="circular", dtype=dtype)
    conv.weight.data[:] = torch.tensor(kernel)
    return Net(conv, Grid(1))


# --- derivatives and flows


@pytest.mark.parametrize("side", [7, 8])
def test_the_spectral_derivative_is_that_of_each_sine(side: int) -> None:
    place = torch.arange(side, dtype=torch.float64)
    for cycles in range((side + 1) // 2):
        rate = 2 * math.pi * cycles / side
        field = torch.sin(rate * place + 0.3)
        torch.testing.assert_close(
            derivative_circular(field, 0), rate * torch.cos(rate * place + 0.3), atol=1e-13, rtol=0
        )
    neighbours = (field.roll(-1) - field.roll(1)) / 2
    assert float((neighbours - derivative_circular(field, 0)).abs().max()) > 0.1
    checkers = 1 - 2 * (place % 2)
    if side == 8:  # the Nyquist frequency, which a shift begins to move only in second order
        assert float(derivative_circular(checkers, 0).abs().max()) < 1e-14


@pytest.mark.parametrize("side", [9, 10])
def test_the_spectral_derivative_is_that_of_the_fourier_shift(side: int) -> None:
    field, t = images(2, 2, side), 1e-4
    ahead, behind = shift_circular(field, t, -2), shift_circular(field, -t, -2)
    # A central difference of step t is off by (pi t)^2 / 6 at most, relative to pi per pixel, times values below 5.
    torch.testing.assert_close((ahead - behind) / (2 * t), -derivative_circular(field, -2), atol=1e-6, rtol=0)


def test_the_gradient_is_exact_for_quadratics_up_to_the_border() -> None:
    y, x = torch.meshgrid(torch.arange(5.0), torch.arange(7.0), indexing="ij")
    along_rows, along_cols = gradient(2 * y**2 - x * y + 3 * x**2 + x - 4)
    torch.testing.assert_close(along_rows, 4 * y - x)
    torch.testing.assert_close(along_cols, 6 * x - y + 1)
    assert not torch.allclose(gradient(x**3)[1], 3 * x**2)


def per_radian(field: Tensor, flow: Linear) -> Tensor:
    return flow.on_features(field[None, None, None], Grid(1))[0, 0, 0] * flow.side_px / 2


def test_analytic_controls_of_rotation_on_64_x_64_points() -> None:
    axis = torch.linspace(-1, 1, 64, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    (rotation,) = flows("rotation", 64)
    assert isinstance(rotation, Linear)
    wrong = replace(rotation, matrix=((0, 1), (1, 0)))

    def per_point(field: Tensor, flow: Linear) -> float:
        return float(per_radian(field, flow).square().mean().sqrt())

    assert per_point(x**2 - y**2, rotation) == pytest.approx(1.3756613756613754, rel=1e-12)  # 4 x y: 260 / 189
    assert per_point(x, rotation) == pytest.approx(0.5864429587908292, rel=1e-12)  # y: sqrt(65 / 189)
    assert per_point(x**2 + y**2, rotation) < 1e-14
    assert per_point(x**2 + y**2, wrong) > 1
    assert per_point(x**2 - y**2, wrong) < 1e-14
    inside = x**2 + y**2 < 0.8
    for angle in (0.1, 0.01):  # what a finite turn adds: half the angle, relative to the motion
        turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]])
        turned = affine(x[None, None], turn[None])[0, 0]  # bilinear sampling is exact for a coordinate
        remainder = ((turned - x) / angle - per_radian(x, rotation))[inside]
        assert float(remainder.norm() / per_radian(x, rotation)[inside].norm()) == pytest.approx(angle / 2, rel=0.01)


@pytest.mark.parametrize(("group", "fields"), [("rotation", 1), ("scale", 1), ("shear", 2)])
def test_flows_of_the_plane_move_coordinates_by_their_matrix(group: str, fields: int) -> None:
    axis = torch.arange(10.0) - 4.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    found = flows(group, 10)
    assert len(found) == fields
    for flow in found:
        assert isinstance(flow, Linear)
        (xx, xy), (yx, yy) = flow.matrix
        disc = x**2 + y**2 <= 25  # outside it there is no image
        for field, expected in [(x, -(xx * x + xy * y) / 5), (y, -(yx * x + yy * y) / 5)]:
            moved = flow.on_images(field[None, None])[0, 0]
            torch.testing.assert_close(moved, expected * disc, atol=1e-5, rtol=0)
            assert torch.equal(flow.images_at(field[None, None], 0)[0, 0], field * disc)
            ahead = flow.images_at(field[None, None], 0.5)[0, 0]
            torch.testing.assert_close(ahead, field * disc + 0.5 * moved, atol=1e-5, rtol=0)
        central = flow.visible(Grid(1), 10, 10)
        assert central is not None
        assert torch.equal(central, x**2 + y**2 <= 9)


def test_hue_goes_round_by_way_of_the_primary_colours() -> None:
    colours = torch.eye(3, dtype=torch.float64)[:, :, None, None]
    turned = Hue().images_at(colours, 2 * math.pi / 3)
    torch.testing.assert_close(turned, colours.roll(1, 1), atol=1e-14, rtol=0)  # red becomes green
    assert not torch.allclose(Hue().images_at(colours, -2 * math.pi / 3), colours.roll(1, 1))
    torch.testing.assert_close(Hue().images_at(colours, 1e-7), colours + 1e-7 * Hue().on_images(colours))


# --- K15 and other closed forms


@both_dtypes
def test_k15_linear_layers_are_exact_and_a_relu_is_not(dtype: torch.dtype) -> None:
    field = lowpass(images(16, 3, 31, dtype=dtype), 0.49)
    for row in rows(Net(linear_cnn(dtype), Grid(1)), field).values():
        assert row["lie_derivative"] < {torch.float64: 1e-20, torch.float32: 1e-10}[dtype]  # type: ignore[operator] # measured: 2.9e-31
    for row in rows(cnn([3, 16, 16], "circular", dtype=dtype), field).values():
        assert 1e-3 < row["lie_derivative"] < 1  # type: ignore[operator] # measured: 9.8e-2
        assert (row["method"], row["dtype"], row["unit"]) == ("jvp", str(dtype)[6:], "px^-2")
    for row in rows(Net(linear_cnn(dtype, "zeros"), Grid(1)), field).values():
        assert row["lie_derivative"] > 1e-3  # type: ignore[operator]


def test_k15_differences_converge_to_the_derivative_like_the_root_of_the_step() -> None:
    field, (flow, _) = lowpass(images(16, 3, 31), 0.49), flows("translation", 31)
    kinked, straight = cnn([3, 16, 16], "circular").body, linear_cnn()
    exact = failure(kinked, field, Jvp(), flow)
    for epsilon, low, high in [(1e-1, 0.18, 0.35), (1e-2, 0.05, 0.12), (1e-3, 0.015, 0.04), (1e-4, 0.004, 0.012)]:
        by_difference = failure(kinked, field, Difference(epsilon), flow)
        assert low < float((by_difference - exact).norm() / exact.norm()) < high  # measured: 25 %, 8 %, 2 %, 0.7 %
        assert float(failure(straight, field, Difference(epsilon), flow).abs().max()) < 1e-10
    assert float(failure(straight, field, Jvp(), flow).abs().max()) < 1e-10


@both_dtypes
def test_the_identity_is_exactly_zero_and_other_motions_have_known_errors(dtype: torch.dtype) -> None:
    field, (flow, _) = images(16, 3, 31, dtype=dtype), flows("translation", 31)
    identity = nn.Identity()
    assert errors(Net(identity, Grid(1)), field) == [0, 0]
    assert max(errors(Net(identity, Grid(1)), field, method="difference")) < EXACT[dtype]

    class WrongSign(Translation):
        def on_features(self, features_BCGHW: Tensor, layout: Layout) -> Tensor:
            return -super().on_features(features_BCGHW, layout)

    assert error_under(Net(identity, Grid(1)), field, WrongSign("shift y", -2)) == pytest.approx(2, rel=1e-6)
    # Half the motion that it makes: (1 - 1/2)^2 / (1 + 1/4).
    assert error_under(Net(identity, Grid(2)), field, flow) == pytest.approx(0.2, rel=1e-6)


@both_methods
@both_dtypes
def test_a_window_of_known_contrast(dtype: torch.dtype, method: str) -> None:
    side, contrast = 31, 0.8
    rate = 2 * math.pi / side
    window = 1 + contrast * torch.cos(rate * torch.arange(side, dtype=dtype))
    field = lowpass(images(256, 1, side, 0.0, dtype=dtype), 0.4)  # the product stays below the Nyquist frequency
    net = Net(Pointwise(lambda x: window * x), Grid(1))
    found = rows(net, field, method=method, epsilon_px=0.01, most_images=256)
    # f = w x moves by w x', and should by (w x)': the failure is w' x. White noise below 12 of 15 frequencies.
    speed = rate**2 * sum(k**2 for k in range(-12, 13)) / 25
    failure, power = contrast**2 * rate**2 / 2, 1 + contrast**2 / 2
    assert found["shift x"]["lie_error"] == pytest.approx(failure / (2 * power * speed + failure), rel=0.02)  # n = 256
    scale = field.double().square().mean()
    assert found["shift x"]["lie_derivative"] == pytest.approx(float(failure * scale), rel=0.02)
    # The window is constant along y. Differences of a float32 lose 1e-7 / 0.01.
    assert found["shift y"]["lie_error"] < max(EXACT[dtype], 1e-9 * (method == "difference"))  # type: ignore[operator]


@both_dtypes
def test_a_stride_is_exact_below_half_its_frequency_and_aliases_above(dtype: torch.dtype) -> None:
    half = Net(Pointwise(lambda x: x[..., ::2, ::2]), Grid(2))
    field = images(16, 3, 62, dtype=dtype)
    assert max(errors(half, lowpass(field, 0.24))) < EXACT[dtype]
    assert min(errors(half, field)) > 0.1
    assert errors(Net(half.body, Grid(1)), lowpass(field, 0.24)) == pytest.approx(
        [0.2, 0.2], rel=1e-5
    )  # twice its motion


@both_dtypes
@both_methods
def test_features_that_do_not_move_when_they_should(dtype: torch.dtype, method: str) -> None:
    field, pattern = images(16, 3, 31, dtype=dtype), images(1, 3, 31, seed=9, dtype=dtype)
    assert errors(Net(Pointwise(lambda x: pattern.expand_as(x)), Grid(1)), field, method=method) == [1, 1]
    assert errors(Net(Pointwise(lambda x: pattern + 0 * x), Grid(1)), field, method=method) == [1, 1]
    report = measure(Net(Pointwise(lambda x: torch.full_like(x, 7.3)), Grid(1)), None, evaluation(field), method=method)
    assert {row["status"] for row in report.profile} == {"collapsed"}
    assert not any("lie_error" in row for row in report.profile)
    assert [(metric.value, metric.status) for metric in report.metrics.values()] == [(None, "collapsed")] * 2


@both_dtypes
def test_neither_number_depends_on_a_layers_gain_and_offset(dtype: torch.dtype) -> None:
    field, net = images(16, 3, 31, dtype=dtype), cnn([3, 16, 16], "zeros", dtype=dtype)
    plain = measure(net, None, evaluation(field))
    louder = measure(Net(Pointwise(lambda x: 3 * net(x) + 5), Grid(1)), None, evaluation(field))
    for name, metric in plain.metrics.items():
        assert louder.metrics[name].value == pytest.approx(metric.value, rel=1e-4)
    for row, loud in zip(plain.profile, louder.profile, strict=True):
        assert loud["lie_derivative"] == pytest.approx(9 * row["lie_derivative"], rel=1e-4)  # the twin: LEE does


# --- the output


def output_derivative(net: nn.Module, field: Tensor, **options: object) -> float | None:
    (name,) = (f"{options.get('group', 'translation')}_output_lie_derivative",)
    return measure(net, None, evaluation(field), **options).metrics[name].value  # type: ignore[arg-type]


@both_dtypes
@both_methods
def test_scores_that_are_waves_change_at_the_rate_of_the_wave(dtype: torch.dtype, method: str) -> None:
    place = 2 * math.pi * torch.arange(16, dtype=dtype) / 16
    phase = torch.arange(8, dtype=dtype)[:, None, None, None] * 2 * math.pi / 8  # evenly spread: a mean of 0
    waves = torch.sin(2 * place[:, None] + 3 * place + phase)
    report = measure(Net(nn.Flatten(), Vector()), None, evaluation(waves), method=method, epsilon_px=0.001)
    for row, cycles in zip(report.profile, (2, 3), strict=True):
        # Differences of step 0.001 lose 1e-7 / 0.001 in float32.
        assert row["output_lie_derivative"] == pytest.approx((2 * math.pi * cycles / 16) ** 2, rel=1e-4)
    metric = report.metrics["translation_output_lie_derivative"]
    assert (metric.value, metric.unit) == (pytest.approx((math.pi / 8) ** 2 * 13 / 2, rel=1e-4), "px^-2")
    assert all("lie_error" not in row for row in report.profile)  # it would be 1, whatever the scores do
    assert report.metrics["translation_lie_error"].status == "non_spatial"


@both_dtypes
def test_pooled_linear_features_are_invariant(dtype: torch.dtype) -> None:
    field = images(16, 3, 31, dtype=dtype)
    pooled = Net(nn.Sequential(linear_cnn(dtype), nn.AdaptiveAvgPool2d(1), nn.Flatten()), Vector())
    # The field's own mean is 0: scores that vary need one.
    field = field + torch.arange(16, dtype=dtype)[:, None, None, None]
    value = output_derivative(pooled, field)
    assert value is not None
    assert value < EXACT[dtype]
    dependent = output_derivative(mlp(3 * 31 * 31, 32, dtype), field)
    assert dependent is not None
    assert dependent > 1e-4
    collapsed = measure(pooled, None, evaluation(torch.cat([field[:1]] * 4))).metrics
    assert collapsed["translation_output_lie_derivative"].status == "collapsed"


# --- rotation, scale, shear


@both_dtypes
def test_a_star_of_equal_arms_commutes_with_the_rotation_of_central_differences(dtype: torch.dtype) -> None:
    field, (rotation,) = images(16, 3, 32, dtype=dtype), flows("rotation", 32)
    assert isinstance(rotation, Linear)
    star = [[0, 0.3, 0], [0.3, -0.7, 0.3], [0, 0.3, 0]]
    assert errors(fixed(star, dtype), field, group="rotation")[0] < EXACT[dtype]
    assert errors(fixed([[0, 0, 0], [0.3, -0.7, 0.3], [0, 0, 0]], dtype), field, group="rotation")[0] > 1e-3
    assert errors(fixed(star, dtype), field, group="shear")[0] > 1e-3
    assert errors(fixed(star, dtype), field, group="scale")[0] > 1e-3

    class WrongSign(Linear):
        def on_features(self, features_BCGHW: Tensor, layout: Layout) -> Tensor:
            return -super().on_features(features_BCGHW, layout)

    wrong = WrongSign("rotation", rotation.matrix, 32)
    assert error_under(fixed(star, dtype), field, wrong) == pytest.approx(2, rel=1e-4)


@both_dtypes
@both_methods
@pytest.mark.parametrize("group", ["rotation", "scale", "shear"])
def test_planes_are_exact_at_any_stride(group: str, method: str, dtype: torch.dtype) -> None:
    # The mean of 2 x 2 pixels of a plane is a plane on the coarser grid, about the same centre.
    slopes = torch.randn(16, 1, 1, 2, dtype=dtype, generator=torch.Generator().manual_seed(0))
    axis = torch.arange(32, dtype=dtype) - 15.5
    planes = slopes[..., :1] * axis[:, None] + slopes[..., 1:] * axis
    pooled = Net(nn.AvgPool2d(2), Grid(2))
    found = errors(pooled, planes[:, None, 0], group=group, method=method)
    assert max(found) < max(EXACT[dtype], 1e-9 * (method == "difference"))
    decentred = Net(Pointwise(lambda x: nn.functional.avg_pool2d(x.roll(1, 3), 2)), Grid(2))
    assert max(errors(decentred, planes[:, None, 0], group=group, method=method)) > 1e-4


def test_the_border_does_not_reach_the_disc() -> None:
    field, inner = images(16, 3, 32), torch.zeros(32, 32)
    inner[4:-4, 4:-4] = 1
    star = fixed([[0, 0.3, 0], [0.3, -0.7, 0.3], [0, 0.3, 0]])
    framed = Net(Pointwise(lambda x: star(x) * inner + 100 * (1 - inner)), Grid(1))
    assert errors(framed, field, group="rotation") == pytest.approx(errors(star, field, group="rotation"), abs=1e-24)
    assert max(errors(framed, field)) > 0.5  # translation compares the whole map


# --- group axes


class Turned(nn.Module):
    """One circular convolution of each image turned back r times: an orbit, whose planes do not move under turns."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = linear_cnn()

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.conv(x.rot90(-r, (2, 3))) for r in range(4)], 2)


@both_methods
def test_the_planes_of_an_orbit_move_each_in_its_direction(method: str) -> None:
    field, orbit = images(16, 3, 31), Turned()
    assert torch.allclose(orbit(field.rot90(1, (2, 3))), orbit(field).roll(1, 2))
    assert max(errors(Net(orbit, Grid(1, axis="orbit_c4")), field, method=method)) < EXACT[torch.float64]
    assert min(errors(Net(orbit, Grid(1)), field, method=method)) > 0.5
    orbit.conv = nn.Sequential()
    for group in ("scale", "shear"):
        found = errors(Net(orbit, Grid(1, axis="orbit_c4")), field, group=group, method=method)
        assert max(found) < EXACT[torch.float64]
    assert min(errors(Net(orbit, Grid(1)), field, group="shear", method=method)) > 0.3


class Hued(nn.Module):
    """A convolution of each image with its hue turned back by r of G steps."""

    def __init__(self, steps: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.conv, self.steps = linear_cnn(dtype), steps

    def forward(self, x: Tensor) -> Tensor:
        turns = [-2 * math.pi * r / self.steps for r in range(self.steps)]
        return torch.stack([self.conv(Hue().images_at(x, turn)) for turn in turns], 2)


@both_dtypes
@both_methods
@pytest.mark.parametrize("steps", [3, 4])
def test_colours_that_are_lifted_linearly_turn_exactly_with_the_hue(
    steps: int, method: str, dtype: torch.dtype
) -> None:
    field, lifted = images(16, 3, 12, dtype=dtype), Hued(steps, dtype)
    found = errors(Net(lifted, Grid(1, axis="hue")), field, group="hue", method=method)
    assert max(found) < max(EXACT[dtype], 1e-9 * (method == "difference"))
    rectified = nn.Sequential(lifted, nn.ReLU())
    assert errors(Net(rectified, Grid(1, axis="hue")), field, group="hue", method=method)[0] > 1e-3
    backwards = Net(Pointwise(lambda x: lifted(x).flip(2)), Grid(1, axis="hue"))
    assert errors(backwards, field, group="hue", method=method)[0] > 0.5


def test_hue_leaves_grey_features_alone_and_has_no_error_where_it_prescribes_nothing() -> None:
    field = images(16, 3, 12) + torch.arange(16)[:, None, None, None]
    grey = Net(nn.Sequential(Pointwise(lambda x: x.mean(1)), nn.Flatten()), Vector())
    red = Net(nn.Sequential(Pointwise(lambda x: x[:, 0]), nn.Flatten()), Vector())
    values = [output_derivative(net, field, group="hue") for net in (grey, red)]
    assert values[0] is not None
    assert values[1] is not None
    assert values[0] < EXACT[torch.float64] < 1e-3 < values[1]
    metrics = measure(Net(nn.Identity(), Grid(1)), None, evaluation(field), group="hue").metrics
    assert metrics["hue_lie_error"].status == "undefined"
    assert "prescribes no motion" in str(metrics["hue_lie_error"].reason)
    assert metrics["hue_output_lie_derivative"].unit == "rad^-2"


# --- what cannot be measured


def status(net: nn.Module, field: Tensor, **options: object) -> set[tuple[object, bool]]:
    return {(row["status"], "lie_error" in row) for row in rows(net, field, **options).values()}


@pytest.mark.parametrize(
    ("layout", "body", "shape", "group", "expected"),
    [
        (Grid(4), nn.AvgPool2d(4), (3, 8, 8), "translation", "too_small"),
        (Grid(4), nn.AvgPool2d(4), (3, 28, 28), "rotation", "too_small"),
        (Grid(14), nn.AvgPool2d(14), (3, 28, 28), "scale", "too_small"),
        (Grid(1), nn.Identity(), (3, 16, 12), "rotation", "non_square"),
        (Grid(1), Pointwise(lambda x: x[..., :12]), (3, 16, 16), "shear", "non_square"),
        (Tokens(1, 8, 8), nn.Identity(), (3, 8, 8), "translation", "non_spatial"),
        (Grid(1, axis="c4"), Turned(), (3, 16, 16), "rotation", "undefined"),
        (Grid(1, axis="orbit_c4"), Turned(), (3, 16, 16), "rotation", "undefined"),
        (Grid(1, axis="hue"), Hued(2, torch.float64), (3, 16, 16), "hue", "undefined"),
        (Grid(1), nn.Identity(), (1, 16, 16), "hue", "no_colour"),
        (Grid(1), Pointwise(lambda x: x / 0), (3, 16, 16), "translation", "undefined"),
    ],
)
def test_what_cannot_be_measured_has_a_status_and_no_number(
    layout: Layout, body: nn.Module, shape: tuple[int, int, int], group: str, expected: str
) -> None:
    field = images(4, shape[0], 28)[:, :, : shape[1], : shape[2]]
    assert status(Net(body, layout), field, group=group) == {(expected, False)}
    metric = measure(Net(body, layout), None, evaluation(field), group=group).metrics[f"{group}_lie_error"]  # type: ignore[arg-type]
    assert metric.value is None
    assert metric.reason
    assert status(Net(nn.Identity(), Grid(1)), images(4, 3, 28), group="translation") == {("ok", True)}


def test_only_a_rotation_contradicts_the_quarter_turns_of_a_group_axis() -> None:
    for group in ("translation", "scale", "shear"):
        assert all(flow.moves(Grid(1, axis="c4")) for flow in flows(group, 16))
    with pytest.raises(Unmeasurable, match="group axis c4"):
        flows("rotation", 16)[0].moves(Grid(1, axis="c4"))


@pytest.mark.parametrize(("group", "what"), [("translation", "constant"), ("hue", "grey")])
def test_images_that_do_not_move_measure_nothing(group: str, what: str) -> None:
    grey = images(4, 1, 16).expand(-1, 3, -1, -1)
    field = torch.full_like(grey, 0.4) if what == "constant" else grey
    report = measure(Net(nn.Flatten(), Vector()), None, evaluation(field), group=group)  # type: ignore[arg-type]
    assert {(row["status"], row["reason"]) for row in report.profile} == {
        ("undefined", f"{flow.label} does not move these images") for flow in flows(group, 16)
    }


# --- the way there


class Doubled(torch.autograd.Function):
    """A function without a forward-mode rule."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return 2 * grad


@pytest.mark.parametrize("opaque", [Doubled.apply, lambda x: 2 * x.detach()], ids=["no rule", "detached"])
def test_without_a_forward_mode_rule_differences_are_taken_and_said(opaque: Callable[[Tensor], Tensor]) -> None:
    field, conv = images(16, 3, 31), cnn([3, 8], "zeros").body
    net = Net(nn.Sequential(conv, Pointwise(opaque)), Grid(1))
    fallen, asked = measure(net, net, evaluation(field)), measure(net, net, evaluation(field), method="difference")
    for row, other in zip(fallen.profile, asked.profile, strict=True):
        assert row["method"] == other["method"] == "difference"
        assert "jvp is impossible" in row["reason"]
        assert other["reason"] is None
        assert row["lie_error"] == other["lie_error"] == row["untrained_lie_error"]
    assert {metric.reason for metric in fallen.metrics.values()} == {fallen.profile[0]["reason"]}
    one_at_a_time = measure(net, None, evaluation(field, batch_size=1))
    assert {row["method"] for row in one_at_a_time.profile} == {"difference"}
    transparent = Net(nn.Sequential(conv, Pointwise(lambda x: 2 * x)), Grid(1))
    assert {row["method"] for row in rows(transparent, field).values()} == {"jvp"}


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.layers: dict[str, Layout] = {"block": Tokens(2, 4, 4)}

    def forward(self, x: Tensor) -> Tensor:
        return self.block(nn.functional.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)).mean(1)


def test_attention_is_differentiated_though_its_fused_kernels_are_not() -> None:
    vit = catalog.entry("model", "vit")((2, 8, 8), 4, catalog.entry("prior", "attention")(), depth=1, width=8, patch=2)
    field = images(8, 2, 8, dtype=torch.float32)
    for net in (vit, Attends()):
        by_jvp = measure(net, None, evaluation(field))
        assert {row["method"] for row in by_jvp.profile} == {"jvp"}
        close = measure(net, None, evaluation(field), method="difference", epsilon_px=0.01)
        for row, other in zip(by_jvp.profile, close.profile, strict=True):
            assert row["lie_derivative"] == pytest.approx(other["lie_derivative"], rel=0.02)
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()


def test_it_works_in_every_mode_and_leaves_the_network_as_it_was() -> None:
    field, net = images(16, 3, 31), cnn([3, 8, 8], "zeros", [2, 1])
    net.body[0].weight.requires_grad_(False)
    outside = errors(net, field)
    with torch.inference_mode():
        inside = errors(net, images(16, 3, 31))
    with torch.enable_grad():
        recording = errors(net, field.requires_grad_())
    assert outside == inside == recording
    assert [weight.requires_grad for weight in net.parameters()] == [False, True, True, True]
    assert all(weight.grad is None for weight in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())


def resnet(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return catalog.entry("model", "resnet")((1, 16, 16), 10, catalog.entry("prior", "conv")(), depth=8, width=4)  # type: ignore[no-any-return]


def resnet_report(**options: object) -> Report:
    pixels = (images(20, 1, 16) * 40 + 128).clamp(0, 255).to(torch.uint8)
    held_out = EvaluationSet(pixels, torch.zeros(20, dtype=torch.int64), "validation", batch_size=7)
    return measure(resnet(0), resnet(1), held_out, **options)  # type: ignore[arg-type]


def test_the_metric_is_the_mean_over_flows_and_over_quarters_of_the_spatial_depth() -> None:
    report = resnet_report()
    at = [row for row in report.profile if row["layer"] in ("stages.0.0", "stages.1.0", "stages.2.0", "last")]
    metric = report.metrics["translation_lie_error"]
    assert metric.value == pytest.approx(sum(row["lie_error"] for row in at) / len(at))
    assert len(at) == 8
    assert metric.untrained == pytest.approx(sum(row["untrained_lie_error"] for row in at) / len(at))
    assert metric.chance == 1
    assert metric.value != pytest.approx(sum(row.get("lie_error", 0) for row in report.profile) / 10, rel=1e-3)
    reported = {name: (metric.value, metric.stderr) for name, metric in report.metrics.items()}
    for row in report.profile:
        for quantity in ("lie_error", "lie_derivative", "output_lie_derivative"):
            if quantity in row:
                number = (row[quantity], row[f"{quantity}_stderr"])
                reported[f"{row['layer']}/{row['set']}/{quantity}"] = number
    assert {name: (estimate.value, estimate.stderr) for name, estimate in report.estimates.items()} == reported
    for estimate in report.estimates.values():
        low, high = estimate.interval()
        assert low < estimate.value < high


def test_beyond_so_many_images_memory_is_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    each = resnet_report()
    monkeypatch.setattr("equitune.evaluation.lie_sums.CLUSTERS", 6)
    in_clusters = resnet_report()
    for name, estimate in in_clusters.estimates.items():
        assert len(estimate.sums_Kk) == 6
        assert estimate.value == pytest.approx(each.estimates[name].value, rel=1e-12)
        assert estimate.stderr == pytest.approx(each.estimates[name].stderr, rel=0.9)


def test_a_sample_of_the_images_is_the_same_for_every_network() -> None:
    few = resnet_report(most_images=8)
    assert {row["n"] for row in few.profile} == {8}
    assert few.metrics == resnet_report(most_images=8).metrics
    assert few.metrics["translation_lie_error"].value != resnet_report().metrics["translation_lie_error"].value

"""Behaviour (M5) and relative stability (M6) against answers that are known; each with a twin that must fail."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from fields import Pointwise, evaluation, images, lowpass
from torch import Tensor, nn

from equitune.errors import Unmeasurable, UserError
from equitune.evaluation.estimate import Estimate
from equitune.evaluation.image_set import EvaluationSet
from equitune.evaluation.proportion import Proportion
from equitune.evaluation.report import Report
from equitune.groups.resample import shift_each, warp
from equitune.measures import consistency, stability
from equitune.measures.stability import displacement_fields, mode_deviations, slope
from equitune.results.values import Measurement

# float64 rounding of a softmax over a handful of classes; the reference asserts the same for exact networks.
EXACT = 1e-12


@dataclass(frozen=True)
class Turn:
    """A quarter turn, as much of an element as behaviour needs."""

    quarters: int

    def inverse(self) -> "Turn":
        return Turn(-self.quarters % 4)

    def after(self, first: "Turn") -> "Turn":
        return Turn((self.quarters + first.quarters) % 4)

    def on_images(self, batch: Tensor) -> Tensor:
        if batch.shape[2] != batch.shape[3]:
            raise Unmeasurable("undefined", "quarter turns need square images")
        return batch.rot90(self.quarters, (2, 3))


class Mirror(Turn):
    """Of order two; the identity is Mirror(0)."""

    def inverse(self) -> "Mirror":
        return self

    def after(self, first: Turn) -> "Mirror":
        return Mirror((self.quarters + first.quarters) % 2)

    def on_images(self, batch: Tensor) -> Tensor:
        return batch.flip(3) if self.quarters else batch


@pytest.fixture
def finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotation is the quarter turns, flip the mirror, and hue has no element."""
    known = {
        "rotation": {"quarter": [Turn(1), Turn(2), Turn(3)], "fine": []},
        "flip": {"mirror": [Mirror(1)]},
        "d4": {"all": [Turn(0), Turn(1), Turn(2), Turn(3)]},  # lists the identity, which counts once
        "hue": {"steps": []},
    }
    monkeypatch.setattr(consistency, "sets", lambda group, strides, side_px: known[group])


def labelled(field: Tensor, labels: list[int] | Tensor, batch_size: int = 7) -> EvaluationSet:
    return EvaluationSet(field, torch.as_tensor(labels), "validation", batch_size, dtype=field.dtype)


def values(report: Report) -> dict[str, float | None]:
    """By the metric's name without its group."""
    return {name.split("_", 1)[1]: metric.value for name, metric in report.metrics.items()}


def behaviour(model: nn.Module, shown: EvaluationSet, **options: object) -> dict[str, float | None]:
    return values(consistency.measure(model, None, shown, **options))  # type: ignore[arg-type]


def linear(inputs: int, classes: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes)).double()


def constant(x: Tensor) -> Tensor:
    return torch.tensor([0.0, 3.0, 1.0], dtype=x.dtype).expand(len(x), 3)


@pytest.mark.usefixtures("finite")
@pytest.mark.parametrize("group", ["translation", "rotation"])
def test_a_constant_classifier_is_consistent_and_as_right_as_its_class_is_common(group: str) -> None:
    shown = labelled(images(20, 1, 8), [1] * 6 + [0] * 9 + [2] * 5)
    found = behaviour(Pointwise(constant), shown, group=group)
    assert (found["consistency"], found["consistent_and_correct"], found["orbit_accuracy"]) == (1, 0.3, 0.3)
    assert found["softmax_deviation"] == pytest.approx(0, abs=EXACT)
    assert found.get("pixel_change", 0) == 0
    assert ("pixel_change" in found) == (group == "translation")
    twin = behaviour(linear(64, 3), shown, group=group)
    assert twin["consistency"] < 1
    assert twin["softmax_deviation"] > 1e-3


@pytest.mark.usefixtures("finite")
def test_a_classifier_averaged_over_quarter_turns_is_exact() -> None:
    field, plain = images(40, 2, 8), linear(128, 5)
    invariant = Pointwise(lambda x: torch.stack([plain(x.rot90(k, (2, 3))) for k in range(4)]).mean(0))
    labels = torch.arange(40) % 5
    accuracy = float((invariant(field).argmax(1) == labels).double().mean())
    found = behaviour(invariant, labelled(field, labels), group="rotation")
    assert found["consistency"] == 1
    assert found["softmax_deviation"] == pytest.approx(0, abs=EXACT)
    assert found["orbit_accuracy"] == found["consistent_and_correct"] == accuracy  # the same under every turn
    twin = behaviour(plain, labelled(field, labels), group="rotation")
    assert twin["consistency"] < 0.9
    assert twin["softmax_deviation"] > 1e-2


def sees_impulse(x: Tensor) -> Tensor:
    """The class is the pixel where the image is brightest, all but surely."""
    return 1000 * x.flatten(1)


@pytest.mark.usefixtures("finite")
@pytest.mark.parametrize("group", ["rotation", "d4"])
def test_a_classifier_of_position_on_an_orbit_of_four(group: str) -> None:
    n = 800
    impulse = torch.zeros(n, 1, 5, 5, dtype=torch.float64)
    impulse[:, :, 0, 1] = 1
    found = behaviour(Pointwise(sees_impulse), labelled(impulse, [1] * n, 100), group=group)
    # Two of four places are drawn independently: they agree in 1/4, and are both the right one in 1/16, of the
    # images, to four standard deviations of n draws. The other two numbers do not depend on the draws.
    assert found["consistency"] == pytest.approx(1 / 4, abs=4 * math.sqrt(3 / 16 / n))
    assert found["consistent_and_correct"] == pytest.approx(1 / 16, abs=4 * math.sqrt(15 / 256 / n))
    assert found["orbit_accuracy"] == 1 / 4
    assert found["softmax_deviation"] == pytest.approx(math.log(4), abs=EXACT)
    assert behaviour(Pointwise(sees_impulse), labelled(impulse, [1] * n, 37), group=group) == found


def test_pairs_of_shifts_are_independent_and_uniform() -> None:
    n = 900
    impulse = torch.zeros(n, 1, 7, 7, dtype=torch.float64)
    impulse[:, :, 3, 3] = 1
    shown = labelled(impulse, [24] * n, 100)

    def agreement(max_shift_px: int) -> float:
        found = behaviour(Pointwise(sees_impulse), shown, max_shift_px=max_shift_px)
        places = (2 * max_shift_px + 1) ** 2
        # Both shifts are drawn: the pair stays in its place once in places^2. Of the orbit's eight, one is the identity.
        assert found["consistent_and_correct"] == pytest.approx(places**-2, abs=4 / places / math.sqrt(n))
        assert found["orbit_accuracy"] == pytest.approx((1 + 7 / places) / 8, abs=4 * math.sqrt(7 / places / 64 / n))
        return found["consistency"] or 0.0

    four_deviations = 4 * math.sqrt(8 / 81 / n)
    assert agreement(1) == pytest.approx(1 / 9, abs=four_deviations)
    assert agreement(2) != pytest.approx(1 / 9, abs=four_deviations)
    assert agreement(2) == pytest.approx(1 / 25, abs=4 * math.sqrt(24 / 625 / n))


def reads_one_pixel(x: Tensor) -> Tensor:
    return torch.stack([x[:, 0, 2, 3], -x[:, 0, 2, 3]], 1)


@pytest.mark.parametrize("protocol", ["roll", "crop"])
def test_the_pixel_change_of_a_classifier_that_reads_one_pixel(protocol: str) -> None:
    rows, cols = torch.arange(8)[:, None], torch.arange(8)
    boards = torch.where((rows + cols) % 2 == 0, 1.0, -1.0).double().expand(12, 1, 8, 8)
    flat = torch.ones(18, 1, 8, 8, dtype=torch.float64)
    shown = labelled(torch.cat([boards, flat]), [0] * 30)
    found = behaviour(Pointwise(reads_one_pixel), shown, protocol=protocol)
    assert found["pixel_change"] == pytest.approx(12 / 30)  # on a checkerboard every step changes the pixel's sign
    blind = behaviour(Pointwise(lambda x: reads_one_pixel(x.mean((2, 3), keepdim=True).expand_as(x))), shown)
    assert blind["pixel_change"] == 0


def test_the_protocol_decides_what_enters_at_the_border() -> None:
    torch.manual_seed(0)
    shown = evaluation(images(30, 2, 9))

    def pooled(padding_mode: str) -> nn.Module:
        conv = nn.Conv2d(2, 8, 3, padding=1, padding_mode=padding_mode)
        return nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).double()

    circular = pooled("circular")
    exact = behaviour(circular, shown)
    assert (exact["consistency"], exact["pixel_change"]) == (1, 0)
    assert exact["softmax_deviation"] == pytest.approx(0, abs=EXACT)
    for twin in (behaviour(circular, shown, protocol="crop"), behaviour(pooled("zeros"), shown)):
        assert twin["softmax_deviation"] > 1e-5
    wide = images(30, 2, 9) * 50  # scores that spread over the classes, so that the class itself moves
    assert behaviour(circular, evaluation(wide), protocol="crop", max_shift_px=6)["consistency"] < 1
    assert behaviour(circular, evaluation(wide), max_shift_px=6)["consistency"] == 1


@pytest.mark.usefixtures("finite")
def test_softmax_deviation_on_an_orbit_of_two_is_the_jensen_shannon_divergence() -> None:
    p, q = [0.7, 0.2, 0.1], [0.1, 0.5, 0.4]

    def knows_its_side(x: Tensor) -> Tensor:
        is_left = (x[:, 0, 0, 0] > x[:, 0, 0, -1])[:, None]
        return torch.where(is_left, x.new_tensor(p).log(), x.new_tensor(q).log())

    def divergence(a: list[float], b: list[float]) -> float:
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))

    middle = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
    expected = (divergence(p, middle) + divergence(q, middle)) / 2
    report = consistency.measure(Pointwise(knows_its_side), None, labelled(images(12, 1, 6), [0] * 12), group="flip")
    metric = report.metrics["flip_softmax_deviation"]
    assert metric.value == pytest.approx(expected, abs=EXACT)
    assert metric.unit == "nat"
    assert expected != pytest.approx((divergence(middle, p) + divergence(middle, q)) / 2, rel=0.01)  # the other order


def test_a_sure_network_has_a_finite_softmax_deviation() -> None:
    scores = torch.tensor([[[4000.0, 0.0, 0.0]], [[0.0, 4000.0, 0.0]]], dtype=torch.float64)
    assert float(consistency.softmax_deviation(scores)) == pytest.approx(math.log(2), abs=EXACT)
    p = scores.softmax(2)  # the twin: written out with probabilities it is not a number
    assert not (p * (p.log() - p.mean(0).log())).sum(2).mean(0).isfinite().any()


@pytest.mark.parametrize("labels", [[-1] * 12, [0] * 11 + [-1], [1] * 11 + [7]])
def test_labels_that_are_no_class_leave_what_needs_none(labels: list[int]) -> None:
    report = consistency.measure(linear(36, 3), linear(36, 3, 1), labelled(images(12, 1, 6), labels))
    for name, metric in report.metrics.items():
        if name in ("translation_consistent_and_correct", "translation_orbit_accuracy"):
            assert (metric.value, metric.status) == (None, "undefined")
            assert "have no label among the model's classes" in (metric.reason or "")
            assert name not in report.estimates
        else:
            assert (metric.status, metric.reason) == ("ok", None)
            assert metric.untrained is not None
    fitting = consistency.measure(linear(36, 3), None, labelled(images(12, 1, 6), [2] * 12))
    assert {metric.status for metric in fitting.metrics.values()} == {"ok"}


@pytest.mark.usefixtures("finite")
@pytest.mark.parametrize(
    ("model", "group", "shape", "reason"),
    [
        (linear(36, 3), "hue", (12, 12), "hue has no element for images of shape (1, 12, 12)"),
        (linear(24, 3), "rotation", (12, 8), "quarter turns need square images"),
        (Pointwise(lambda x: x), "translation", (12, 12), "class scores have shape (images, classes)"),
        (Pointwise(lambda x: x.flatten(1) / 0), "translation", (12, 12), "class scores are not finite"),
    ],
)
def test_what_has_no_value_says_why(model: nn.Module, group: str, shape: tuple[int, int], reason: str) -> None:
    field = images(9, 1, 12)[:, :, : shape[0], : shape[1]]
    for report in (
        consistency.measure(model, model, labelled(field, [0] * 9), group=group),  # type: ignore[arg-type]
        *([stability.measure(model, model, evaluation(field))] if group == "translation" else []),
    ):
        assert report.metrics
        assert not report.estimates
        for metric in report.metrics.values():
            assert (metric.value, metric.status) == (None, "undefined")
            assert reason in (metric.reason or "")


def test_a_control_without_a_value_is_left_out() -> None:
    broken = Pointwise(lambda x: x.flatten(1) / 0)
    shown = labelled(images(9, 1, 12), [0] * 9)
    for measure in (consistency.measure, stability.measure):
        for metric in measure(linear(144, 3), broken, shown).metrics.values():  # type: ignore[operator]
            assert (metric.status, metric.untrained) == ("ok", None)


@pytest.mark.parametrize("measure", [consistency, stability])
def test_no_images_is_one_sentence(measure: object) -> None:
    name = measure.__name__.split(".")[-1]  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=f"^{name} needs at least one image, but the validation split is empty"):
        measure.measure(linear(36, 3), None, evaluation(images(4, 1, 6)[:0]))  # type: ignore[attr-defined]


def test_images_too_small_for_the_setting_are_a_status_and_one_sentence() -> None:
    model, field = linear(64, 3), images(4, 1, 8)
    found = [
        consistency.measure(model, None, evaluation(field), max_shift_px=8).metrics["translation_consistency"],
        stability.measure(model, None, evaluation(field)).metrics["diffeomorphism_relative_stability"],
    ]
    assert [(metric.value, metric.status, metric.reason) for metric in found] == [
        (None, "too_small", "consistency.max_shift_px: must be smaller than the images' side of 8 px, but got 8"),
        (
            None,
            "too_small",
            "stability.displacement_px: must be <= 0.85 with cut_off 3 on images of 8 x 8 px, or the fields fold them, "
            "but got 1",
        ),
    ]
    assert consistency.measure(model, None, evaluation(field), max_shift_px=7).estimates
    assert stability.measure(model, None, evaluation(field), displacement_px=0.85).estimates


class Recorder(nn.Module):
    """A linear classifier that keeps what it is shown."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.body = linear(144, 3, seed)
        self.shown: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.shown.append(x)
        return self.body(x)  # type: ignore[no-any-return]


@pytest.mark.usefixtures("finite")
@pytest.mark.parametrize(
    ("measure", "options", "passes"),
    [
        (consistency.measure, {}, 9),
        (consistency.measure, {"num_shifts": 2}, 4),
        (consistency.measure, {"group": "rotation"}, 4),
        (consistency.measure, {"group": "flip"}, 2),
        (stability.measure, {}, 3),
        (stability.measure, {"kind": "translation"}, 3),
    ],
)
def test_every_model_sees_the_same_images_in_few_passes_batch_by_batch(
    measure: Callable[..., Report], options: dict[str, object], passes: int
) -> None:
    model, untrained, other = Recorder(0), Recorder(1), Recorder(2)
    shown = labelled(images(12, 1, 12), [0] * 12, batch_size=5)
    measure(model, untrained, shown, **options)
    measure(other, None, labelled(images(12, 1, 12), [1] * 12, batch_size=12), **options)
    assert [len(batch) for batch in model.shown] == [5] * passes + [5] * passes + [2] * passes
    assert all(torch.equal(a, b) for a, b in zip(model.shown, untrained.shown, strict=True))
    whole = torch.cat([torch.stack(model.shown[start : start + passes]) for start in range(0, 3 * passes, passes)], 1)
    torch.testing.assert_close(whole, torch.stack(other.shown), atol=EXACT, rtol=0)


def test_more_shifts_leave_the_pair_and_the_neighbour_as_they_are() -> None:
    shown = labelled(images(40, 1, 6), torch.arange(40) % 3)
    few, many = (behaviour(linear(36, 3), shown, num_shifts=num) for num in (2, 12))
    for name in ("consistency", "consistent_and_correct", "pixel_change"):
        assert few[name] == many[name]
    assert few["softmax_deviation"] != many["softmax_deviation"]


def test_what_is_reported_follows_from_its_estimates() -> None:
    shown = labelled(images(40, 1, 12), torch.arange(40) % 3)
    for report in (
        consistency.measure(linear(144, 3), linear(144, 3, 1), shown),
        stability.measure(linear(144, 3), linear(144, 3, 1), shown),
    ):
        assert set(report.estimates) == set(report.metrics)
        for name, metric in report.metrics.items():
            estimate = report.estimates[name]
            assert (metric.value, metric.stderr) == (estimate.value, estimate.stderr)
            low, high = estimate.interval()
            assert low < estimate.value < high
            assert estimate.minus(estimate).stderr == pytest.approx(0, abs=EXACT)  # paired: the same images


def test_wilsons_errors_are_those_of_the_records() -> None:
    for hits, n in [(0, 9), (9, 9), (31, 50), (1900, 2000)]:  # the last is kept in clusters of images
        share = Proportion.of_images(torch.arange(n) < hits)
        expected = Measurement.proportion(hits, n, "test")
        assert share.value == pytest.approx(expected.value)
        assert share.stderr == pytest.approx(expected.stderr, rel=1e-9)
    low, high = Proportion.of_images(torch.ones(20)).interval()
    assert (low, high) == (pytest.approx(20 / (20 + 1.959964**2)), pytest.approx(1))  # Wilson's, at n of n
    assert Estimate.mean(torch.ones(20)).interval() == (1, 1)  # the twin: as if 20 images proved it


def test_wilsons_interval_covers_where_the_normal_one_does_not() -> None:
    n, p = 50, 0.98
    chance = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    intervals = [Proportion.of_images(torch.arange(n) < k).interval() for k in range(n + 1)]
    wilson = sum(weight for weight, (low, high) in zip(chance, intervals, strict=True) if low <= p <= high)
    half = [1.96 * math.sqrt(k / n * (1 - k / n) / n) for k in range(n + 1)]
    normal = sum(chance[k] for k in range(n + 1) if abs(k / n - p) <= half[k])
    assert wilson > 0.9  # exact sums: no draws; 95 % is meant, and hits are discrete
    assert normal < 0.7


def test_images_hit_in_part_are_surer_than_hits_and_misses() -> None:
    draw = torch.Generator().manual_seed(0)
    parts = torch.rand(400, generator=draw).round(decimals=1)
    assert Proportion.of_images(parts).stderr == pytest.approx(float(parts.double().std()) / 20, rel=0.01)
    assert Proportion.of_images(parts).stderr < 0.7 * Proportion.of_images(parts > 0.5).stderr


kinds = pytest.mark.parametrize("kind", ["diffeomorphism", "translation"])


def relative(model: nn.Module, field: Tensor, kind: str) -> Measurement:
    report = stability.measure(model, None, evaluation(field), kind=kind)  # type: ignore[arg-type]
    return report.metrics[f"{kind}_relative_stability"]


@kinds
def test_the_identity_is_as_stable_to_the_deformation_as_to_noise_image_by_image(kind: str) -> None:
    report = stability.measure(nn.Flatten(), None, evaluation(images(16, 2, 12)), kind=kind)  # type: ignore[arg-type]
    estimate = report.estimates[f"{kind}_relative_stability"]
    moved_K, shaken_K = estimate.sums_Kk.unbind(1)  # 16 images: one each
    torch.testing.assert_close(moved_K, shaken_K, rtol=EXACT, atol=0)
    assert estimate.value == pytest.approx(1, abs=EXACT)
    square = relative(Pointwise(lambda x: x.square().flatten(1)), images(16, 2, 12), kind)
    assert square.value != pytest.approx(1, abs=1e-3)


@kinds
def test_a_random_linear_map_has_no_preferred_direction(kind: str) -> None:
    # n = 64, 512 outputs: the norm of a random projection is known to sqrt(2 / 512) = 6 % where all the images move
    # in one direction, and to less as they do not. The band is three times that.
    model = Pointwise(lambda x: x.flatten(1) @ weights)
    weights = torch.randn(432, 512, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert relative(model, images(64, 3, 12), kind).value == pytest.approx(1, abs=0.19)


def keeps_low(x: Tensor) -> Tensor:
    return lowpass(x, 0.25).flatten(1)


def keeps_high(x: Tensor) -> Tensor:
    return (x - lowpass(x, 0.25)).flatten(1)


@kinds
def test_who_keeps_low_frequencies_alone_is_stable_on_white_images(kind: str) -> None:
    white = images(64, 1, 16, 0.0)
    low, high = (relative(Pointwise(keep), white, kind).value or math.nan for keep in (keeps_low, keeps_high))
    assert low < 0.8
    assert high > 1.02


def test_the_low_pass_under_a_shift_by_one_pixel_in_closed_form() -> None:
    # A shift multiplies a frequency k by exp(-2 pi i k): it changes white images by 2 - 2 cos(2 pi k) at k, 2 in the
    # mean, and noise is flat. Over the frequencies that are kept, R_f is the mean of 1 - cos(2 pi k).
    kept = torch.arange(-4, 5) / 16
    expected = float((1 - torch.cos(2 * math.pi * kept)).mean())
    # 400 images of 81 kept frequencies, real: two energies known to sqrt(2 / 81 / 400) = 0.8 % or better; thrice both.
    white = images(400, 1, 16, 0.0)
    assert relative(Pointwise(keeps_low), white, "translation").value == pytest.approx(expected, rel=0.035)
    assert relative(Pointwise(keeps_high), white, "translation").value != pytest.approx(expected, rel=0.035)


def test_the_expectations_are_over_images_before_their_ratio() -> None:
    white = images(64, 1, 16, 0.0)
    large, small = 100 * white[:32], white[32:]

    def by_size(x: Tensor) -> Tensor:
        return torch.where(x.flatten(1).std(1, keepdim=True) > 10, x.flatten(1), keeps_low(x))

    found = relative(Pointwise(by_size), torch.cat([large, small]), "translation").value
    assert found == pytest.approx(1, abs=1e-3)  # the small ones weigh 1e-4; a mean of ratios would be about 0.7
    assert relative(Pointwise(by_size), small, "translation").value < 0.6


@kinds
def test_pooling_is_stable_and_an_oscillating_network_is_not(kind: str) -> None:
    field = images(32, 1, 16)
    pooled = relative(Pointwise(lambda x: (x**2).mean((2, 3))), field, kind).value
    sharp = relative(Pointwise(lambda x: (10 * x).sin().flatten(1)), field, kind).value
    assert pooled is not None
    assert sharp is not None
    assert pooled < 0.5 < sharp
    if kind == "translation":
        assert pooled == pytest.approx(0, abs=EXACT)


@kinds
def test_a_constant_network_has_collapsed_and_a_constant_image_does_not_move(kind: str) -> None:
    for network in (constant, lambda x: 0 * x.flatten(1)):
        found = relative(Pointwise(network), images(8, 1, 12), kind)
        assert (found.value, found.status) == (None, "collapsed")
    still = relative(nn.Flatten(), torch.full((8, 1, 12, 12), 0.5, dtype=torch.float64), kind)
    assert (still.value, still.status) == (None, "undefined")
    assert relative(nn.Flatten(), images(8, 1, 12), kind).status == "ok"


def fields_of(n: int, deviations_IJ: Tensor, height: int, width: int) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    shape = (n, 2, *deviations_IJ.shape)
    return displacement_fields(deviations_IJ * torch.randn(shape, generator=draw, dtype=torch.float64), height, width)


@pytest.mark.parametrize("cut_off", [2, 3, 6])
def test_fields_have_the_displacement_and_the_slope_that_is_said(cut_off: int) -> None:
    deviations = mode_deviations(1.5, cut_off)
    field = fields_of(4000, deviations, 64, 48)
    # 4,000 fields of one to twenty modes: a mean square to at most sqrt(2 / 8000) = 1.6 %, a root to 0.8 %; thrice that.
    assert float(field.square().sum(1).mean().sqrt()) == pytest.approx(1.5, rel=0.024)
    # Differences of neighbours underrate a sine's slope by (pi k / 48)^2 / 24 = 0.6 % at k = 6.
    for dim, side in ((2, 64), (3, 48)):
        found = float(field[:, 0].diff(dim=dim - 1).square().mean().sqrt())
        assert found == pytest.approx(slope(deviations, side), rel=0.035)
    border = field[:, :, 0].abs().max() / field.abs().max()
    assert border < 0.2  # sines: the border stays


def test_the_coefficients_are_those_of_maximal_entropy() -> None:
    deviations = mode_deviations(1.0, 3)
    field = fields_of(4000, deviations, 32, 32)
    centre = (torch.arange(32, dtype=torch.float64) + 0.5) / 32
    sines = torch.sin(math.pi * torch.arange(1, 6, dtype=torch.float64)[:, None] * centre)
    variance_IJ = (torch.einsum("bkhw,ih,jw->bkij", field, sines, sines) / 16**2).square().mean((0, 1))
    # Variance T / (i^2 + j^2), known to sqrt(2 / 8000) = 1.6 %, a ratio to 2.2 %; four times that.
    assert float(variance_IJ[0, 0] / variance_IJ[1, 1]) == pytest.approx(4, rel=0.09)
    assert float(variance_IJ[0, 1] / variance_IJ[1, 0]) == pytest.approx(1, rel=0.09)
    assert float(variance_IJ[0, 0] / variance_IJ[0, 1]) == pytest.approx(5 / 2, rel=0.09)
    beyond = torch.arange(1, 6)[:, None] ** 2 + torch.arange(1, 6) ** 2 > 9
    assert variance_IJ[beyond].max() < 1e-20
    assert variance_IJ[~beyond].min() > 0.01


def test_no_field_that_is_drawn_folds_an_image() -> None:
    """On a grid of its own, by differences: the quadrilateral between neighbouring places keeps its orientation."""
    largest = stability.MOST_SLOPE / slope(mode_deviations(1.0, 3), 16)

    def share_folded(coefficients: Tensor) -> float:
        field = displacement_fields(coefficients, 48, 48) * (48 / 16)  # 48 places across the 16 px
        (rows_y, rows_x), (cols_y, cols_x) = (torch.gradient(part, dim=(1, 2)) for part in field.unbind(1))
        turned = (1 - rows_y) * (1 - cols_x) - rows_x * cols_y <= 0
        return float(turned.flatten(1).any(1).double().mean())

    drawn = stability.draw_coefficients(1000, largest, 3, 16, 16)
    assert share_folded(drawn) == 0
    free = torch.randn(drawn.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert share_folded(mode_deviations(largest, 3) * free) > 0.1
    small = displacement_fields(stability.draw_coefficients(1000, 1.0, 3, 32, 32), 32, 32)
    assert float(small.square().sum(1).mean().sqrt()) == pytest.approx(1, rel=0.05)  # where few fold


def test_a_constant_field_is_a_shift_and_a_ramp_is_displaced_by_the_field() -> None:
    x = images(3, 2, 7)
    assert (
        torch.equal(warp(x, torch.zeros(3, 2, 7, 7)), x) or (warp(x, torch.zeros(3, 2, 7, 7)) - x).abs().max() < EXACT
    )
    field = torch.tensor([2.0, -1.0], dtype=torch.float64)[None, :, None, None].expand(3, 2, 7, 7)
    expected = shift_each(x, torch.tensor([[2, -1]] * 3), fill="edge")
    torch.testing.assert_close(warp(x, field), expected, atol=EXACT, rtol=0)
    assert (warp(x, field.flip(1)) - expected).abs().max() > 0.1
    # Bilinear interpolation is exact on a ramp: the value at s is that at s - displacement(s).
    ramp = (3.0 * torch.arange(12)[:, None] - 2.0 * torch.arange(9)).double().expand(5, 1, 12, 9)
    displaced = fields_of(5, mode_deviations(0.4, 3), 12, 9)
    found = warp(ramp, displaced)[:, 0, 2:-2, 2:-2]
    by_hand = (ramp[:, 0] - 3 * displaced[:, 0] + 2 * displaced[:, 1])[:, 2:-2, 2:-2]
    torch.testing.assert_close(found, by_hand, atol=EXACT, rtol=0)

"""Numbers of the project's reference on priors that a wrong build cannot hit by luck, each beside a twin that misses.

Parameter counts stand in test_models, test_group_priors and test_width_rule; corner cases beside each prior.
"""

import itertools

import pytest
import torch
from fields import images
from test_downsamplers import pooled_change
from torch import nn

from equitune import catalog
from equitune.config.trial import DataConfig, InputConfig, TrainingConfig
from equitune.data.on_device import to_device
from equitune.data.resize import at_size
from equitune.data.splits import load_splits
from equitune.evaluation.image_set import EvaluationSet
from equitune.groups.d4 import Turn
from equitune.groups.hue import Hue
from equitune.groups.layout import Grid
from equitune.layers.blur import BlurPool
from equitune.layers.group import GroupConv
from equitune.layers.prior import Shape
from equitune.measures import turned_accuracy
from equitune.networks.cost import multiply_adds
from equitune.priors.nonstationary_exact import KernelFieldConv2d
from equitune.training.epoch import fit

ALL = [Turn(quarters, mirror) for mirror in (False, True) for quarters in range(4)][1:]
TURNS = ALL[:3]


def network(
    model: str, prior: str, side: int, prior_args: dict[str, object] | None = None, **args: object
) -> nn.Module:
    made = catalog.entry("prior", prior)(**(prior_args or {}))
    return catalog.entry("model", model)((3, side, side), 10, made, **args).eval()  # type: ignore[no-any-return]


def logit_error(net: nn.Module, side: int) -> float:
    """The largest relative distance of the scores of a turned image and of the image, in float32."""
    x = images(16, 3, side).float()
    with torch.inference_mode():
        scores = net(x)
        return max(float((net(g.on_images(x)) - scores).norm() / scores.norm()) for g in TURNS)


# Strides, 2.1; the rule itself is swept in test_resample.


def test_at_an_even_side_a_stride_leaves_the_main_diagonal_alone() -> None:
    layer = GroupConv("d4", Shape(3, 4, 3, 2, 1, True, True)).double()

    def exact(side: int) -> list[Turn]:
        x, layout = images(2, 3, side), Grid(2, axis="d4")
        with torch.no_grad():
            here = layer(x)
            errors = [float((layer(g.on_images(x)) - g.on_features(here, layout)).norm() / here.norm()) for g in ALL]
        assert all(error < 1e-10 or error > 0.1 for error in errors)
        return [g for g, error in zip(ALL, errors, strict=True) if error < 1e-10]

    assert exact(32) == [Turn(1, True)]  # the transpose
    assert exact(33) == ALL


@pytest.mark.parametrize(
    ("stages", "exact", "inexact"),
    [(3, [33, 97], [32, 96]), (4, [97, 225], [96, 224])],  # two and three halvings: sides 1 mod 4, 1 mod 8
)
def test_residual_networks_are_exact_at_the_sides_that_are_known(
    stages: int, exact: list[int], inexact: list[int]
) -> None:
    """CIFAR at 33, PatchCamelyon at 97, ImageNet at 225; not at one pixel less."""
    for side in exact + inexact:
        torch.manual_seed(0)
        net = network("resnet", "p4", side, depth=2 * stages + 2, stages=stages, width=1)
        net = net.double()
        x = images(2, 3, side)
        with torch.inference_mode():
            before = net.head(net.last(net.stages(net.stem(x))).mean((3, 4)))
            after = net.head(net.last(net.stages(net.stem(x.rot90(1, (2, 3))))).mean((3, 4)))
        error = float((before - after).norm() / before.norm())
        assert error < 1e-10 if side in exact else error > 1e-5, (side, error)


# Downsamplers, 2.3.


@pytest.mark.parametrize(("side", "row"), [(32, [1.4, 0, 0.78, 0, 0.63]), (33, [0, 1.1, 0, 0.70, 0])])
def test_blurs_of_one_to_five_taps_err_as_the_table_says(side: int, row: list[float]) -> None:
    noise = torch.randn(16, 1, 1, side, side, dtype=torch.float64)
    for taps, expected in enumerate(row, 1):
        pool = BlurPool(taps, "reflect", side).double()
        (here,), (turned,) = pool(noise), pool(noise.rot90(1, (3, 4)))
        error = float((here.rot90(1, (3, 4)) - turned).norm() / here.norm())
        assert error == pytest.approx(expected, abs=0.2 if expected else 1e-12), taps  # of one image there


def test_pooled_features_change_under_a_shift_by_as_much_as_the_table_says() -> None:
    for name, expected in (("stride", 8.7e-2), ("pool2", 2.1e-2), ("blur3", 3.5e-3)):
        assert expected / 3 < pooled_change(name) < expected * 3, name  # of other images and weights
    assert pooled_change("aps") < 1e-15  # 7e-17 there


# Networks, 1, 3 and 6.


@pytest.mark.parametrize(
    ("prior", "width", "side", "giga"), [("p4", 10, 28, 6.82), ("p4", 10, 27, 6.06), ("conv", 20, 28, 1.76)]
)
def test_multiply_adds_of_the_digit_networks_are_the_published_ones(
    prior: str, width: int, side: int, giga: float
) -> None:
    """Of a batch of 256 images, in 1e9. The published ones are 0.4 % above convolutions and matrices alone."""
    with torch.device("meta"):
        net = network("cnn", prior, side, width=width)
    assert 256 * multiply_adds(net, (1, 3, side, side)) / 1e9 == pytest.approx(giga, rel=0.006)


def test_multiply_adds_of_a_residual_network_are_the_published_ones() -> None:
    """2106.04914: 0.39e9 of ResNet44 on CIFAR-10; p4 at half the width does four times as much."""
    with torch.device("meta"):
        plain, turned = (network("resnet", prior, 32, depth=44, width=w) for prior, w in (("conv", 32), ("p4", 16)))
    found = multiply_adds(plain, (1, 3, 32, 32))
    assert found / 1e9 == pytest.approx(0.39, abs=5e-3)
    assert multiply_adds(turned, (1, 3, 32, 32)) / found == pytest.approx(4, rel=0.01)


def test_an_untrained_digit_network_of_p4_is_exact_at_28_and_hides_that_it_is_not_at_27() -> None:
    """6e-8 at 28 and 1.6e-2 at 27 and 29: small, and no sign of exactness."""
    errors: dict[int, list[float]] = {28: [], 27: [], 29: []}
    for side, seed in itertools.product(errors, range(3)):
        torch.manual_seed(seed)
        errors[side].append(logit_error(network("cnn", "p4", side, width=10), side))
    assert max(errors[28]) < 3e-7
    for side in (27, 29):
        assert 3e-3 < sum(errors[side]) / 3 < 5e-2


@pytest.mark.parametrize(("head", "low", "high"), [("max", 0, 1e-6), ("mean", 0, 1e-6), ("flatten", 0.03, 1)])
def test_a_flat_head_breaks_what_the_features_keep(head: str, low: float, high: float) -> None:
    """The reference at 33 in float32: 2e-7 of the largest over the group, .39 of all entries side by side."""
    torch.manual_seed(0)
    assert low < logit_error(network("resnet", "p4", 33, {"head": head}, depth=8, width=8), 33) < high


def test_a_trained_network_scores_the_same_at_every_quarter_turn_where_it_is_exact_alone() -> None:
    """2308.11316 in small: exact at 28 and not at 27, though 27 is but a pixel less."""
    data = to_device(load_splits(DataConfig(name="digits", args={"size": 8}, limit=600)), "cpu")
    spread = {}
    for side in (28, 27):
        seen = at_size(data, InputConfig(size=side))
        torch.manual_seed(0)
        made = catalog.entry("prior", "p4")()
        net = catalog.entry("model", "cnn")(seen.data_shape.image, 10, made, width=4)
        validation = EvaluationSet(seen.validation.pixels, seen.validation.labels, "validation")
        training = TrainingConfig(epochs=4, batch_size=16, lr=0.01)
        fit(net, seen.train, validation, [], training, seed=0)
        metrics = turned_accuracy.measure(net.eval(), None, validation).metrics
        upright = float(
            (torch.cat([net(x).argmax(1) for x, _ in validation.batches()]) == validation.labels).float().mean()
        )
        turned = [metrics[f"accuracy_{angle}"].value for angle in (90, 180, 270)]
        spread[side] = [abs(float(value or 0) - upright) for value in turned]
        assert upright > 0.3  # measured: .43 and .50, chance is .1
    assert max(spread[28]) < 1e-6  # the share above is float32
    assert max(spread[27]) > 0.1  # measured: .27 at 180 degrees


# Priors, 4.7 and 4.14.


def test_the_table_of_kernels_of_an_exact_nonstationary_layer_has_the_size_that_is_known() -> None:
    """In MB of float32: 38 for 32 channels under 3 x 3, 205 under 7 x 7, 151 for 64 channels, on 32 x 32."""
    for channels, kernel, megabytes in ((32, 3, 38), (32, 7, 205), (64, 3, 151)):
        with torch.device("meta"):
            layer = KernelFieldConv2d(channels, channels, kernel, 32, 1, kernel // 2, False, "constant", 1.0, 0.1)
            assert layer.kernels().numel() * 4 / 1e6 == pytest.approx(megabytes, abs=1)


def test_hues_but_the_thirds_leave_the_range_of_images() -> None:
    """Of random pixels 16 to 27 % do, and to clip them breaks the group; three steps of hue exchange channels."""
    x = torch.rand(16, 3, 32, 32, dtype=torch.float64)
    for steps in (2, 4, 6):
        g = Hue(360 / steps)
        turned = g.on_images(x)
        clipped = turned.clamp(0, 1)
        assert 0.16 < float((turned != clipped).any(1).double().mean()) < 0.27
        torch.testing.assert_close(g.inverse().on_images(turned), x, atol=1e-12, rtol=0)
        assert float((g.inverse().on_images(clipped) - x).norm() / x.norm()) > 0.03
    assert Hue(120).on_images(x).equal(x.roll(1, 1))
    assert not Hue(120).on_images(x).equal(x.roll(-1, 1))

"""Downsamplers: the exactness table of the project's reference on priors (2.3), each row with its twin."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from fields import Net, evaluation, images
from torch import Tensor, nn

from equitune import catalog
from equitune.cli import cli
from equitune.downsamplers.aps import LargestComponent
from equitune.errors import Infeasible
from equitune.evaluation.pairs import Plan, compare
from equitune.groups.d4 import Turn
from equitune.groups.layout import Grid
from equitune.groups.translation import Shift
from equitune.layers.downsampler import Downsampler
from equitune.layers.polyphase import components
from equitune.measures import consistency, equivariance

EVERY = [name for name in catalog.names("downsampler") if name != "stride"]  # which has nothing of its own
# The parity of the sides at which a stage commutes with quarter turns and flips; None: at none.
EXACT_AT = {
    "stride": 1,
    "pool2": 0,
    "blur2": 0,
    "blur3": 1,
    "blur4": 0,
    "blur5": 1,
    "aps": 0,
    "gsub": 0,  # the reference has not tried it; that it is follows from its symmetric filters
    "lps": None,
}
NAMES = list(EXACT_AT)
BLURS = ["blur2", "blur3", "blur4", "blur5"]
ADAPTIVE = ["aps", "gsub", "lps"]
TURNS = [Turn(1), Turn(2), Turn(3), Turn(0, True), Turn(1, True)]
EXACT = 1e-10  # in float64, of a few hundred rounded additions; what is inexact is above 1e-3


def make(name: str, **args: object) -> Downsampler:
    return catalog.entry("downsampler", name)(**args)  # type: ignore[no-any-return]


def circular(name: str) -> Downsampler:
    return make(name, **({"padding": "circular"} if name in BLURS else {}))


def resnet(down: Downsampler | None, side: int, padding: str = "circular", width: int = 4) -> nn.Module:
    prior = catalog.entry("prior", "conv")(padding=padding)
    net = catalog.entry("model", "resnet")((3, side, side), 10, prior, down, depth=8, width=width)
    return net.double().eval()  # type: ignore[no-any-return]


def make_symmetric(net: nn.Module) -> None:
    """Averages each kernel over quarter turns and flips: a plain network that is equivariant at stride 1."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            kernels = [module.weight.data.rot90(turn, (2, 3)) for turn in range(4)]
            module.weight.data = sum(each + each.flip(3) for each in kernels) / 8


class Stage(nn.Module):
    """How a stage begins, alone: a 3 x 3 convolution, a ReLU, the halving."""

    def __init__(self, down: Downsampler, side: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, down.conv_stride, 1, padding_mode="circular")
        self.halving = down.halving(5, side)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x).relu().unsqueeze(2)
        return self.halving(maps)[0] if self.halving else maps  # type: ignore[no-any-return]


def stage_error(name: str, side: int, elements: list[Any]) -> float:
    """The largest relative distance, in float64, as a measure of this program sees it."""
    net = Net(Stage(circular(name), side).double().eval(), Grid(2))
    make_symmetric(net.body.conv if isinstance(net.body, Stage) else net)
    validation = evaluation(images(6, 3, side))
    plan = Plan(net, net.layers, validation, {"set": elements})
    assert not plan.problems
    return max(pairs.summary().relative_distance() for pairs in compare(net, validation, plan).values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", [12, 13])
def test_a_stage_commutes_with_turns_and_flips_where_the_table_says(name: str, side: int) -> None:
    if name in ADAPTIVE and side % 2:
        with pytest.raises(Infeasible, match=f"{name} needs maps of even side, but got 13 x 13"):
            make(name).halving(5, side)
        return
    error = stage_error(name, side, TURNS)
    if EXACT_AT[name] == side % 2:
        assert error < EXACT
    else:
        assert error > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_commutes_with_shifts_by_multiples_of_two(name: str) -> None:
    assert stage_error(name, 12, [Shift(2, 0), Shift(0, -4), Shift(6, 2)]) < EXACT
    assert stage_error(name, 13, [Shift(2, 0)]) > 1e-3 if name not in ADAPTIVE else True


def pooled_change(name: str) -> float:
    """How far the pooled maps of one more layer move when the image does by a pixel, relatively."""
    torch.manual_seed(0)
    stage, x = Stage(circular(name), 32).double().eval(), images(32, 3, 32)
    after = nn.Conv2d(5, 5, 3, padding=1, padding_mode="circular").double()  # straight after a blur a mean is exact
    with torch.inference_mode():
        here, there = (after(stage(each)[:, :, 0]).relu().mean((2, 3)) for each in (x, Shift(1, -1).on_images(x)))
    return float((here - there).norm() / here.norm())


def test_the_mean_of_a_map_keeps_under_a_one_pixel_shift_as_the_table_orders_them() -> None:
    stride, pool2, blur3, aps = (pooled_change(name) for name in ("stride", "pool2", "blur3", "aps"))
    assert stride > pool2 > blur3 > 1e-6  # the reference: 8.7e-2, 2.1e-2, 3.5e-3, 7e-17
    assert all(pooled_change(name) < 1e-14 for name in ADAPTIVE)
    assert aps < 1e-14


@pytest.mark.parametrize(("taps", "correlation"), [(2, 1 / 2), (3, 2 / 3), (4, 3 / 4), (5, 4 / 5)])
def test_a_blur_on_the_wrong_side_errs_by_the_autocorrelation_of_its_filter(taps: int, correlation: float) -> None:
    """White noise, one quarter turn: the windows differ by a pixel along one axis, so err^2 = 2 (1 - correlation)."""
    noise = torch.randn(64, 1, 1, 33 - taps % 2, 33 - taps % 2, dtype=torch.float64)
    pool = make(f"blur{taps}").halving(1, noise.shape[-1])
    assert pool is not None
    turned, (here,) = pool.double()(noise.rot90(1, (3, 4)))[0], pool(noise)
    error = float((here.rot90(1, (3, 4)) - turned).norm() / here.norm())
    assert error == pytest.approx(math.sqrt(2 * (1 - correlation)), abs=0.08)  # the border reflects: a sixteenth of it
    reference = {2: 1.1, 3: 0.78, 4: 0.70, 5: 0.63}[taps]
    assert error == pytest.approx(reference, abs=0.2)  # of one image there


@pytest.mark.parametrize("name", BLURS)
def test_a_blur_keeps_a_constant_and_is_the_binomial_filter(name: str) -> None:
    pool = make(name).halving(2, 8)
    assert pool is not None
    torch.testing.assert_close(pool(torch.ones(1, 2, 3, 8, 8))[0], torch.ones(1, 2, 3, 4, 4))
    point = torch.zeros(1, 1, 1, 9, 9)
    point[..., 4, 4] = 1
    taps = int(name[-1])
    row = torch.tensor([math.comb(taps - 1, k) / 2 ** (taps - 1) for k in range(taps)])
    out = pool(point)[0][0, 0, 0]
    seen = row[(taps - 1) // 2 % 2 :: 2].flip(0)  # every second tap, that which meets the point at an even place
    torch.testing.assert_close(out[out.sum(1) > 0][:, out.sum(0) > 0], torch.outer(seen, seen))


@pytest.mark.parametrize("name", EVERY)
def test_all_channels_entries_and_branches_take_the_same_positions(name: str) -> None:
    halving = make(name).halving(3, 8)
    assert halving is not None
    halving.eval()
    assert halving.side == 4
    maps, beside = torch.rand(4, 3, 4, 8, 8), torch.rand(4, 2, 1, 8, 8)
    main, other = halving(maps, beside)
    assert main.shape == (4, 3, 4, 4, 4)
    assert other.shape == (4, 2, 1, 4, 4)
    torch.testing.assert_close(halving(maps.roll(1, 2))[0], main.roll(1, 2))  # the group axis is no special one
    if name in ADAPTIVE:
        place = torch.arange(64.0).view(1, 1, 1, 8, 8).expand(4, 3, 4, 8, 8)
        torch.testing.assert_close(halving(maps, maps)[1], main)
        places = halving(maps, place)[1]
        assert bool((places == places[:, :1, :1]).all())
        assert len({float(each) for each in places[:, 0, 0, 0, 0]}) > 1  # not one choice for the batch


class Batched(LargestComponent):
    """The trap: one maximum over the batch."""

    def forward(self, *maps: Tensor) -> tuple[Tensor, ...]:
        row, col = divmod(int(components(maps[0]).square().sum((0, 3, 4, 5, 6)).argmax()), 2)
        return tuple(components(each)[:, row, col] for each in maps)


@pytest.mark.parametrize("name", EVERY)
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    halving = make(name).halving(3, 8)
    assert halving is not None
    assert depends_on_others(halving.eval()) is False
    if name == "aps":
        assert depends_on_others(Batched(1, 8)) is True


def depends_on_others(halving: nn.Module) -> bool:
    maps = torch.rand(6, 3, 2, 8, 8)
    alone = torch.cat([halving(each)[0] for each in maps.split(1)])
    return not torch.allclose(halving(maps)[0], alone)


def test_aps_takes_the_component_of_largest_norm() -> None:
    maps = torch.rand(5, 2, 3, 6, 6)
    for image, place in enumerate([(0, 0), (0, 1), (1, 0), (1, 1), (0, 1)]):
        maps[image, :, :, place[0] :: 2, place[1] :: 2] += 1
    (found,) = LargestComponent(1, 6)(maps)
    for image, place in enumerate([(0, 0), (0, 1), (1, 0), (1, 1), (0, 1)]):
        assert torch.equal(found[image], maps[image, :, :, place[0] :: 2, place[1] :: 2])


def test_lps_mixes_in_training_and_takes_one_otherwise() -> None:
    halving = make("lps", hidden=4).halving(2, 6)
    assert halving is not None
    maps = torch.rand(3, 2, 1, 6, 6)
    (mixed,), (taken,) = halving.train()(maps), halving.eval()(maps)
    candidates = components(maps).flatten(1, 2)
    assert all(any(torch.equal(each, image) for each in found) for image, found in zip(taken, candidates, strict=True))
    assert not any(torch.allclose(each, mixed[0]) for each in candidates[0])
    assert bool((mixed <= candidates.amax(1) + 1e-6).all() and (mixed >= candidates.amin(1) - 1e-6).all())
    halving.train()(maps)[0].square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in halving.parameters())


# Whole networks.


def spread(net: nn.Module, x: Tensor) -> None:
    """Centres the scores, so that an untrained network does not give one class to every image."""
    with torch.inference_mode():
        scores = net(x)
        net.output.bias -= scores.mean(0)  # type: ignore[union-attr,operator]


@pytest.mark.parametrize("name", NAMES)
def test_an_untrained_network_of_an_adaptive_downsampler_is_consistent_under_every_shift(name: str) -> None:
    x = images(40, 3, 16)
    net = resnet(circular(name), 16)
    spread(net, x)
    with torch.inference_mode():
        moved = max(float((net(Shift(dy, dx).on_images(x)) - net(x)).norm()) for dy, dx in [(1, 0), (2, 3), (0, 5)])
        scale = float(net(x).norm())
    found = consistency.measure(net, None, evaluation(x), max_shift_px=8).metrics["translation_consistency"].value
    if name in ADAPTIVE:
        assert moved < EXACT * scale
        assert found == 1.0
    else:
        assert moved > 1e-3 * scale
        assert found is not None
        assert found < 1.0


def test_aps_with_zero_padding_is_not_consistent() -> None:
    x, net = images(8, 3, 16), resnet(make("aps"), 16, padding="zero")
    with torch.inference_mode():
        assert float((net(Shift(1, 0).on_images(x)) - net(x)).norm() / net(x).norm()) > 1e-3


def turns_error(down: Downsampler, side: int) -> float:
    net = resnet(down, side, padding="zero")
    make_symmetric(net)
    metric = equivariance.measure(net, None, evaluation(images(4, 3, side)), group="d4").profile
    return math.sqrt(max(float(row["error"]) for row in metric))  # type: ignore[arg-type]


# Two halvings: a stride of two is exact where the side is 1 mod 4, 2 x 2 windows where it is 0 mod 4.
@pytest.mark.parametrize(
    ("name", "exact", "inexact"),
    [
        ("stride", 17, 16),
        ("stride", 13, 15),  # 15 is odd, and its half is not
        ("pool2", 16, 17),
        ("pool2", 12, 18),  # 18 is even, and its half is not
        ("blur3", 17, 16),
        ("blur4", 16, 17),
        ("aps", 16, None),
    ],
)
def test_a_whole_network_commutes_with_turns_at_the_sides_of_the_rule(name: str, exact: int, inexact: int) -> None:
    assert turns_error(make(name), exact) < EXACT
    if inexact:
        assert turns_error(make(name), inexact) > 1e-3


@pytest.mark.parametrize(
    ("name", "side", "broken_by"),
    [
        ("stride", 17, None),
        ("stride", 16, "stages.1.0.conv1.layer"),
        ("pool2", 16, None),
        ("pool2", 18, "stages.2.0.halving"),
        ("blur3", 16, "stages.1.0.halving"),
        ("blur3", 17, None),
        ("blur4", 16, None),
        ("blur4", 17, "stages.1.0.halving"),
        ("aps", 16, None),
    ],
)
def test_a_profile_names_the_halving_that_breaks_turns(name: str, side: int, broken_by: str | None) -> None:
    net = resnet(make(name), side)
    rows = equivariance.measure(net, None, evaluation(images(2, 3, side)), group="flip").profile
    last = next(row for row in rows if row["layer"] == "last")
    assert (last["grid_exact"], last["grid_broken_by"]) == (broken_by is None, broken_by)


# Seeded networks as they were before there were downsamplers: torch 2.13, float64.
@pytest.mark.parametrize(
    ("model", "prior", "side", "args", "count", "scores"),
    [
        ("resnet", "conv", 16, {"depth": 8, "width": 4}, 5_214, [-0.01529, -0.15283, -0.25747, 0.18589]),
        ("resnet", "local", 15, {"depth": 8, "width": 2}, 57_196, [-0.06448, -0.29704, 0.15683, -0.31027]),
        ("cnn", "conv", 16, {"width": 4}, 1_218, [-0.43836, 0.00529, 0.37275, -0.48473]),
        ("cnn", "local", 19, {"width": 2}, 48_680, [0.2085, 0.18288, -0.3955, 0.16686]),
    ],
)
def test_a_network_without_a_named_downsampler_is_what_it_was(
    model: str, prior: str, side: int, args: dict[str, int], count: int, scores: list[float]
) -> None:
    def built(*down: Downsampler) -> nn.Module:
        torch.manual_seed(0)
        made = catalog.entry("prior", prior)()
        return catalog.entry("model", model)((3, side, side), 10, made, *down, **args).double().eval()  # type: ignore[no-any-return]

    net, named = built(), built(make({"resnet": "stride", "cnn": "pool2"}[model]))
    assert sum(weight.numel() for weight in net.parameters()) == count
    assert not any("halving" in key for key in net.state_dict())
    with torch.inference_mode():
        found = net(images(1, 3, side))
        assert found[0, :4].tolist() == pytest.approx(scores, abs=2e-5)
        assert torch.equal(named(images(1, 3, side)), found)


@pytest.mark.parametrize("model", ["resnet", "cnn"])
@pytest.mark.parametrize("prior", ["conv", "local"])
@pytest.mark.parametrize("name", NAMES)
def test_each_model_takes_each_downsampler(model: str, prior: str, name: str) -> None:
    def weights(down: Downsampler | None) -> int:
        made = catalog.entry("prior", prior)()
        net = catalog.entry("model", model)((1, 16, 16), 10, made, down, width=2)
        net(torch.rand(4, 1, 16, 16)).square().sum().backward()
        assert [key for key, weight in net.named_parameters() if weight.grad is None] == []
        for key in net.state_dict():
            assert "filter" not in key
        return sum(weight.numel() for weight in net.parameters())

    assert name in catalog.parts(model, "downsampler")
    same = weights(make(name)) == weights(make("pool2"))
    assert same == (name != "lps" and not (name == "stride" and prior == "local"))  # fewer positions, fewer kernels


@pytest.mark.parametrize(
    ("name", "side", "sentence"),
    [
        ("pool2", 1, "a map of 1 x 1 shrinks to nothing under kernel 2, padding 0"),
        ("blur3", 1, "reflect padding of 1 needs a map larger than 1 x 1"),
        ("blur4", 2, "reflect padding of 2 needs a map larger than 2 x 2"),
        ("aps", 7, "aps needs maps of even side, but got 7 x 7: choose another size or downsampler"),
        ("lps", 9, "lps needs maps of even side, but got 9 x 9"),
        ("gsub", 9, "gsub needs maps of even side, but got 9 x 9"),
    ],
)
def test_a_map_that_cannot_be_halved_is_infeasible(name: str, side: int, sentence: str) -> None:
    with pytest.raises(Infeasible, match=sentence):
        make(name).halving(3, side)
    with pytest.raises(Infeasible, match=sentence):
        resnet(make(name), side)
    assert make(name).halving(3, 12) is not None


def test_a_circular_filter_needs_a_map_as_long_as_its_reach() -> None:
    assert make("blur5", padding="circular").halving(1, 2) is not None
    with pytest.raises(Infeasible, match="circular padding of 2 needs a map of at least 2 x 2, but got 1 x 1"):
        make("blur5", padding="circular").halving(1, 1)


STUDY = """\
study: halved
data: {name: digits, limit: 100}
input: {size: {choice: [10, 12]}}
model: {name: resnet, depth: 8, width: 2}
downsampler: {choose: {aps: {blur: {choice: [1, 3]}}, stride: {}}}
objectives: {accuracy: maximize}
search: {sampler: random, trials: 6}
"""


def test_a_dry_run_says_which_trials_cannot_be_halved(study_file: Callable[..., Path]) -> None:
    done = CliRunner().invoke(cli, ["search", str(study_file(STUDY)), "--dry-run"])
    assert done.exit_code == 0, done.output
    lines = [line for line in done.output.splitlines() if line.startswith("  trial")]
    assert len(lines) == 6
    for line in lines:
        cannot = "infeasible: aps needs maps of even side, but got 5 x 5" in line
        assert cannot == ("downsampler aps" in line and "input.size 10" in line)
    assert 0 < sum("infeasible" in line for line in lines) < 6

"""The conformance suite of models and priors, and the numbers that a wrong build cannot hit by luck."""

import itertools
import re

import pytest
import torch
from fields import evaluation, images
from torch import nn

from equitune import catalog
from equitune.errors import Infeasible
from equitune.evaluation.capture import capturing
from equitune.evaluation.pairs import Plan, compare
from equitune.groups.d4 import Turn
from equitune.groups.element import sets
from equitune.groups.grid import out_side
from equitune.priors.attention import sincos
from equitune.priors.local import LocalConv2d

REQUIRED = {"timm": {"architecture": "resnet10t"}, "torchvision": {"architecture": "resnet18"}}
PAIRS = [(model, prior) for model in catalog.names("model") for prior in catalog.parts(model, "prior") or [None]]
SIDES = [16, 28]
COLOUR = {"ceconv"}  # priors for images with three channels alone


def build(
    model: str, prior: str | None, side: int = 16, channels: int = 1, prior_args: object = None, **args: object
) -> nn.Module:
    made = catalog.entry("prior", prior)(**(prior_args or {})) if prior else None
    return catalog.entry("model", model)((channels, side, side), 10, made, **(REQUIRED.get(model, {}) | args))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("model", "prior"), PAIRS)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_become_class_scores_and_every_declared_layer_is_read(
    model: str, prior: str | None, side: int, channels: int
) -> None:
    if prior in COLOUR and channels != 3:
        with pytest.raises(Infeasible, match="3 channels, but got 1"):
            build(model, prior, side, channels)
        return
    net = build(model, prior, side, channels).eval()
    seen = {}
    with (
        torch.inference_mode(),
        capturing(net, net.layers, lambda name, features: seen.__setitem__(name, features.shape)),
    ):
        scores = net(torch.rand(3, channels, side, side))
    assert scores.shape == (3, 10)
    assert list(seen) == list(net.layers)  # in the order of depth
    for name, layout in net.layers.items():
        if layout.is_spatial:
            assert seen[name][-1] == -(-side // layout.stride), f"{name} is not of the declared stride"
    assert not list(net.layers.values())[-1].is_spatial


@pytest.mark.parametrize(("model", "prior"), PAIRS)
def test_the_seed_decides_the_weights_and_every_weight_learns(model: str, prior: str | None) -> None:
    channels = 3 if prior in COLOUR else 1
    torch.manual_seed(3)
    net = build(model, prior, channels=channels)
    torch.manual_seed(3)
    twin = build(model, prior, channels=channels)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), twin.state_dict().values(), strict=True))
    net(torch.rand(8, channels, 16, 16)).square().sum().backward()
    idle = [name for name, weight in net.named_parameters() if weight.requires_grad and weight.grad is None]
    assert idle == []


@pytest.mark.parametrize(("model", "prior"), PAIRS)
def test_normalisation_is_the_first_layer_and_kept_with_the_weights(model: str, prior: str | None) -> None:
    channels = 3 if prior in COLOUR else 1
    net = build(model, prior, channels=channels).eval()
    x = torch.rand(4, channels, 16, 16)
    before = net(x)
    net.normalise.use(torch.full((channels,), 0.3), torch.full((channels,), 0.5))
    torch.testing.assert_close(net(x * 0.5 + 0.3), before, atol=1e-4, rtol=1e-4)
    assert {"normalise.mean", "normalise.std"} <= set(net.state_dict())


# Parameter counts of the published implementations, in the project's reference on priors: 3 channels, 10 classes.
@pytest.mark.parametrize(
    ("model", "args", "count"),
    [
        ("resnet", {"depth": 44, "width": 32}, 2_636_458),
        ("resnet", {"depth": 18, "stages": 4, "width": 64}, 11_173_962),
        ("cnn", {"width": 20}, 25_570),
    ],
)
def test_parameter_counts_are_the_published_ones(model: str, args: dict[str, object], count: int) -> None:
    net = build(model, "conv", 28, 3, **args)
    assert sum(weight.numel() for weight in net.parameters()) == count


def test_the_stages_of_a_resnet_widen_and_halve_its_maps() -> None:
    for stages in (1, 2, 3, 4):
        net = build("resnet", "conv", depth=2 * stages + 2, stages=stages, width=2).eval()
        grids = [layout.stride for name, layout in net.layers.items() if name.startswith("stages.")]
        assert grids == [2**stage for stage in range(stages)]
        assert net.output.in_features == 2 * 2 ** (stages - 1)


# Seeded networks and a seeded image, in float32 on the CPU by torch 2: what a study has recorded must come back.
@pytest.mark.parametrize(
    ("model", "prior", "args", "scores"),
    [
        ("resnet", "conv", {"depth": 8, "width": 3}, [0.014324, 0.081734, 0.287595]),
        ("cnn", "conv", {"width": 3}, [-0.386498, -0.069135, -0.031075]),
        ("vit", "attention", {"depth": 2, "width": 16}, [0.140073, -1.257735, 1.092965]),
        ("vit", "gpsa", {"depth": 2, "width": 16}, [0.913057, -0.041536, 0.440244]),
    ],
)
def test_a_seed_gives_the_weights_that_it_has_always_given(
    model: str, prior: str, args: dict[str, object], scores: list[float]
) -> None:
    torch.manual_seed(0)
    net = build(model, prior, 16, 3, **args).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        found = net(torch.rand(2, 3, 16, 16))[0, :3]
    torch.testing.assert_close(found, torch.tensor(scores), atol=1e-4, rtol=0)  # of another order of sums: 1e-6


@pytest.mark.parametrize(("size", "kernel", "stride", "padding"), itertools.product([5, 8], [1, 3, 4], [1, 2], [0, 1]))
def test_a_tied_local_layer_equals_a_convolution(size: int, kernel: int, stride: int, padding: int) -> None:
    conv = nn.Conv2d(2, 3, kernel, stride, padding).double()
    local = LocalConv2d(2, 3, kernel, size, stride, padding, True, "constant").double()
    with torch.no_grad():
        local.weight.copy_(conv.weight.flatten(1).expand_as(local.weight))
        assert local.bias is not None
        local.bias.copy_(conv.bias[:, None].expand_as(local.bias))  # type: ignore[index]
    x = images(4, 2, size)
    torch.testing.assert_close(local(x), conv(x), atol=1e-12, rtol=0)
    assert local.side == out_side(size, kernel, stride=stride, padding=padding)
    with torch.no_grad():
        local.weight *= torch.linspace(1.1, 2, len(local.weight))[:, None, None]
    assert not torch.allclose(local(x), conv(x))


def test_local_has_positions_times_the_weights_of_a_convolution() -> None:
    def kernels(net: nn.Module) -> int:
        return sum(weight.numel() for name, weight in net.named_parameters() if "stem" in name)

    assert kernels(build("resnet", "local", depth=8, width=4)) == 256 * kernels(
        build("resnet", "conv", depth=8, width=4)
    )


def equivariance_error(net: nn.Module, side: int = 16) -> tuple[float, float]:
    """The largest relative distance over spatial layers and at the output, in float64, under lattice shifts."""
    net = net.double().eval()
    strides = [layout.stride for layout in net.layers.values() if layout.is_spatial]
    validation = evaluation(images(6, 1, side))
    plan = Plan(net, net.layers, validation, {"lattice": sets("translation", strides, side)["lattice"]})
    distances: dict[bool, list[float]] = {True: [], False: []}
    for (name, _, _), pairs in compare(net, validation, plan).items():
        distances[net.layers[name].is_spatial].append(pairs.summary().relative_distance())
    return max(distances[True]), max(distances[False])


@pytest.mark.parametrize("model", ["resnet", "cnn"])
def test_a_circular_convolution_is_exact_on_the_lattice_and_its_twins_are_not(model: str) -> None:
    exact = equivariance_error(build(model, "conv", prior_args={"padding": "circular"}))
    assert exact[0] < 1e-12
    if model == "resnet":  # the cnn's top layer is unpadded, so its output is not exact
        assert exact[1] < 1e-12
    assert equivariance_error(build(model, "conv", prior_args={"padding": "zero"}))[0] > 1e-3
    assert equivariance_error(build(model, "local", prior_args={"padding": "circular"}))[0] > 1e-2


def test_attention_without_positions_commutes_with_shifts_by_whole_patches() -> None:
    inner, outer = equivariance_error(build("vit", "attention", prior_args={"position": "none"}))
    assert inner < 1e-12
    assert outer < 1e-12
    for position in ("learned", "sincos"):
        assert equivariance_error(build("vit", "attention", prior_args={"position": position}))[0] > 1e-3


STEMS = catalog.parts("vit", "stem")


def with_stem(stem: str | None, position: str = "none", channels: int = 3, **stem_args: object) -> nn.Module:
    blocks = catalog.entry("prior", "attention")(position=position)
    made = catalog.entry("prior", stem)(**stem_args) if stem else None
    return catalog.entry("model", "vit")((channels, 16, 16), 10, blocks, made, depth=1, width=8, heads=2)  # type: ignore[no-any-return]


@pytest.mark.parametrize("stem", STEMS)
def test_a_stem_makes_tokens_of_patches_and_learns(stem: str) -> None:
    torch.manual_seed(3)
    net = with_stem(stem)
    seen = {}
    with capturing(net, net.layers, lambda name, features: seen.__setitem__(name, features.shape)):
        scores = net(torch.rand(5, 3, 16, 16))
    assert seen == {"embedded": (5, 8, 1, 4, 4), "blocks.0": (5, 8, 1, 4, 4), "output": (5, 10, 1, 1, 1)}
    scores.square().sum().backward()
    assert [name for name, weight in net.named_parameters() if weight.requires_grad and weight.grad is None] == []
    torch.manual_seed(3)
    twin = with_stem(stem)
    assert all(a.equal(b) for a, b in zip(net.state_dict().values(), twin.state_dict().values(), strict=True))
    torch.manual_seed(3)
    plain = with_stem(None)
    same = stem == "conv"
    assert (
        net.state_dict().keys() == plain.state_dict().keys() and net(x := torch.rand(2, 3, 16, 16)).equal(plain(x))
    ) == same


def embedded_error(net: nn.Module, group: str, layer: str) -> float:
    """The largest relative distance of a layer in float64, over quarter turns or quarter turns and mirrors."""
    elements = [Turn(turn, mirror) for turn in range(4) for mirror in (False, group == "d4")][1:]
    validation = evaluation(images(6, 3, 16))
    plan = Plan(net.double().eval(), net.layers, validation, {"set": elements})
    pairs = compare(net, validation, plan)
    return max(each.summary().relative_distance() for (name, _, _), each in pairs.items() if name == layer)


@pytest.mark.parametrize(
    ("stem", "group", "args", "is_exact"),
    [
        ("p4", "c4", {}, True),
        ("p4", "c4", {"head": "mean"}, True),
        ("p4", "c4", {"head": "flatten"}, False),
        ("p4", "d4", {}, False),
        ("p4m", "d4", {}, True),
        ("relaxed_p4", "c4", {"spread": 0.0}, True),
        ("relaxed_p4", "c4", {"spread": 0.5}, False),
        ("softeq", "c4", {"softness": 0.0}, True),
        ("conv", "c4", {}, False),
        ("local", "c4", {}, False),
    ],
)
def test_the_tokens_of_a_stem_with_a_group_turn_with_the_image(
    stem: str, group: str, args: dict[str, object], is_exact: bool
) -> None:
    """Patches do not overlap, so any grid of them turns onto itself; attention without positions keeps it so."""
    net = with_stem(stem, **args)
    for layer in ("embedded", "blocks.0", "output"):
        error = embedded_error(net, group, layer)
        assert error < 1e-10 if is_exact else error > 1e-4, (layer, error)
    if is_exact:
        positioned = with_stem(stem, "sincos", **args)
        assert embedded_error(positioned, group, "embedded") > 1e-3


def test_a_hue_stem_needs_colours_and_rolls_no_token() -> None:
    with pytest.raises(Infeasible, match="3 channels, but got 1"):
        with_stem("ceconv", channels=1)
    net, x = with_stem("ceconv").double(), images(2, 3, 16)
    net.normalise.use(torch.tensor([0.2, 0.4, 0.6]), torch.tensor([0.1, 0.2, 0.3]))  # shared: one of each
    torch.testing.assert_close(net(x.roll(1, 1)), net(x))
    plain = with_stem("conv").double()
    assert not torch.allclose(plain(x.roll(1, 1)), plain(x), atol=1e-3)


def test_sincos_codes_tell_every_place_apart() -> None:
    codes = sincos(16, 5)
    distance = torch.cdist(codes, codes)
    assert float((distance + 10 * torch.eye(25)).min()) > 0.05


@pytest.mark.parametrize(
    ("model", "prior", "side", "args", "sentence"),
    [
        ("resnet", "conv", 16, {"depth": 10}, "the depth of a resnet in 3 stages is 6n + 2"),
        ("resnet", "conv", 16, {"depth": 8, "stages": 4}, "in 4 stages is 8n + 2 (10, 18, 26, ...), but got 8"),
        ("resnet", "conv", 16, {"depth": 5, "stages": 1}, "in 1 stage is 2n + 2 (4, 6, 8, ...), but got 5"),
        ("resnet", "local", 16, {"depth": 8, "width": 4, "width_rule": "equal_parameters"}, "but at width 1 there are"),
        ("cnn", "conv", 6, {}, "a map of 3 x 3 shrinks to nothing under kernel 4"),
        ("cnn", "local", 6, {}, "a map of 3 x 3 shrinks to nothing under kernel 4"),
        ("cnn", "conv", 1, {}, "shrinks to nothing"),
        ("vit", "attention", 18, {}, "an image of side 18 does not divide into patches of 4"),
        ("vit", "attention", 16, {"width": 30}, "width 30 is not divisible by 4 heads"),
        ("timm", None, 16, {"architecture": "resnet9999"}, "timm has no architecture 'resnet9999': nearest: resnet"),
        ("timm", None, 18, {"architecture": "swin_tiny_patch4_window7_224"}, None),
    ],
)
def test_networks_that_cannot_exist_say_why(
    model: str, prior: str | None, side: int, args: dict[str, object], sentence: str | None
) -> None:
    if sentence is None:
        net = build(model, prior, side, **args).eval()
        assert net(torch.rand(1, 1, side, side)).shape == (1, 10)
        return
    with pytest.raises(Infeasible, match=re.escape(sentence)):
        build(model, prior, side, **args)


def test_sincos_needs_a_multiple_of_four() -> None:
    with pytest.raises(Infeasible, match="multiple of 4"):
        build("vit", "attention", width=6, heads=1, prior_args={"position": "sincos"})


@pytest.mark.parametrize(
    "architecture",
    [
        "resnet18",
        "vit_tiny_patch16_224",
        "deit_tiny_distilled_patch16_224",
        "swin_tiny_patch4_window7_224",
        "convnext_atto",
        "mixer_s16_224",
    ],
)
def test_timm_layers_are_read_with_the_layout_that_timm_declares(architecture: str) -> None:
    net = build("timm", None, 32, 3, architecture=architecture).eval()
    seen = {}
    with (
        torch.inference_mode(),
        capturing(net, net.layers, lambda name, features: seen.__setitem__(name, features.shape)),
    ):
        net(torch.rand(2, 3, 32, 32))
    assert len(seen) == len(net.layers) > 3
    for name, layout in net.layers.items():
        if layout.is_spatial:
            assert seen[name][-2:] == (32 // layout.stride, 32 // layout.stride)

"""The priors that learn how much of a group to keep, at their corners, where they are known layers, and in between."""

import math

import pytest
import torch
from fields import images
from test_group_priors import ALL, EXACT, SHAPE, TURNS, broken, distances, moved_by, network
from torch import Tensor, nn
from torch.nn import functional

from equitune import catalog
from equitune.groups.d4 import Turn
from equitune.groups.layout import Axis
from equitune.layers.group import GroupConv, elements
from equitune.layers.prior import Shape
from equitune.priors.lambda_sym import SymmetrisedConv
from equitune.priors.mixed_group import MixedConv, subgroups
from equitune.priors.partial_p4 import PartialConv, PresentMean, PresentNorm
from equitune.priors.softeq import SoftConv2d, damping

GROUPS: dict[Axis, list[Turn]] = {"c4": TURNS, "d4": ALL}
both_axes = pytest.mark.parametrize("axis", ["c4", "d4"])


def maps_of(axis: Axis) -> Tensor:
    return torch.randn(2, 2, len(elements(axis)), 7, 7, dtype=torch.float64)


def test_partial_convolutions_that_keep_all_are_p4_and_those_that_keep_one_are_plain() -> None:
    layer, plain = PartialConv("c4", SHAPE, 0.9, True).double().eval(), GroupConv("c4", SHAPE).double()
    plain.load_state_dict({"psi": layer.psi, "bias": layer.bias})
    maps = maps_of("c4")
    torch.testing.assert_close(layer(maps), plain(maps))
    with torch.no_grad():
        layer.logits.fill_(-3)
    out = layer(maps)
    assert not out[:, :, 1:].any()
    expected = functional.conv2d(maps.flatten(1, 2), layer.psi.flatten(1, 2), layer.bias, padding=1)
    torch.testing.assert_close(out[:, :, 0], expected)
    with torch.no_grad():
        layer.logits.copy_(torch.tensor([-3, 3, -3]))
    half = [Turn(2)]
    assert broken(layer, maps, "c4", half) < EXACT  # {0°, 180°} is a group
    assert broken(layer, maps, "c4", TURNS) > 0.5


def test_partial_orientations_are_drawn_in_training_and_learned() -> None:
    layer = PartialConv("c4", SHAPE, 0.8, True).train()
    drawn = torch.stack([layer.kept().detach() for _ in range(500)])
    assert set(drawn.unique().tolist()) == {0, 1}
    assert drawn[:, 0].all()
    assert drawn[:, 1:].mean().item() == pytest.approx(0.8, abs=0.05)  # 1500 draws: 5 standard errors
    assert layer.amount() == pytest.approx(0.2)
    optimizer = torch.optim.SGD([layer.logits], lr=1.0)
    for _ in range(50):  # a loss that wants them gone
        optimizer.zero_grad()
        layer(torch.randn(1, 2, 4, 5, 5))[:, :, 1:].square().mean().backward()
        optimizer.step()
    assert layer.amount() > 0.2


def test_norm_and_pooling_leave_out_what_was_left_out() -> None:
    maps, norm, alone = maps_of("c4"), PresentNorm(2).double(), nn.BatchNorm2d(2).double()
    maps[:, :, 1:] = 0
    for _ in range(2):
        out = norm(maps)
        torch.testing.assert_close(out[:, :, 0], alone(maps[:, :, 0]))
        assert not out[:, :, 1:].any()
        torch.testing.assert_close(norm.running_var, alone.running_var)
        norm, alone = norm.eval(), alone.eval()
    assert nn.BatchNorm3d(2).double()(maps)[:, :, 1:].any()  # what it must not do
    torch.testing.assert_close(PresentMean()(maps.mean((3, 4))), maps[:, :, 0].mean((2, 3)))


def test_a_partial_network_that_keeps_one_orientation_is_a_plain_one() -> None:
    for head in ("max", "mean"):
        net = network("cnn", "partial_p4", 28, keep=0.1, head=head)
        inner, outer = distances(net, 28, TURNS)
        assert min(inner, outer) > 1e-5
        assert min(distances(network("cnn", "partial_p4", 28, keep=0.6, head=head), 28, TURNS)) < EXACT
        x = images(4, 3, 28)
        with torch.no_grad():
            maps = net.convs[1](net.convs[0](x))
            assert not maps[:, :, 1:].any()
            conv = net.convs[2][0]
            plain = functional.conv2d(maps[:, :, 0], conv.psi[:, :, 0], conv.bias, padding=1)
            torch.testing.assert_close(conv(maps)[:, :, 0], plain)


@both_axes
@pytest.mark.parametrize("lifts", [False, True])
def test_a_uniform_lambda_projects_and_group_convolutions_are_its_fixed_points(axis: Axis, lifts: bool) -> None:
    shape, group = Shape(2, 3, 3, 1, 1, True, lifts), GROUPS[axis]
    layer, plain = SymmetrisedConv(axis, shape, 0.0, True).double(), GroupConv(axis, shape).double()
    maps = images(2, 2, 7)[:, :, None] if lifts else maps_of(axis)

    def error() -> float:
        with torch.no_grad():
            out = layer(maps)
            return max(
                float(
                    (layer(moved_by(g, maps, "none" if lifts else axis)) - moved_by(g, out, axis)).norm() / out.norm()
                )
                for g in group
            )

    assert error() < EXACT
    assert layer.amount() < EXACT
    with torch.no_grad():
        layer.logits.copy_(torch.randn(len(layer.logits)))
    assert error() > 0.1
    assert layer.amount() > 0.05
    filters = plain.expand().detach().view(3, plain.entries, 2, plain.entries_in, 9)
    with torch.no_grad():
        layer.weight.copy_(filters.transpose(1, 2).flatten(2))
        layer.bias.copy_(plain.bias)
    torch.testing.assert_close(layer(maps), plain(maps), atol=1e-12, rtol=0)


def test_lambda_tells_how_much_of_the_group_is_kept() -> None:
    """The reference's values for c4: uniform 3e-16, (.3, .25, .2, .25) .2 to .3, (.7, .1, .1, .1) 1.2."""
    layer, maps = SymmetrisedConv("c4", SHAPE, 0.0, True).double(), maps_of("c4")
    found = []
    for shares in ((0.25,) * 4, (0.3, 0.25, 0.2, 0.25), (0.7, 0.1, 0.1, 0.1), (0.5, 0, 0.5, 0)):
        with torch.no_grad():
            layer.logits.copy_(torch.tensor(shares).clamp(min=1e-30).log())
        found.append((broken(layer, maps, "c4", TURNS), broken(layer, maps, "c4", [Turn(2)]), layer.amount()))
    uniform, near, far, half = found
    assert uniform[0] < 1e-6  # the shares above are float32
    assert 0.05 < near[0] < 0.5
    assert 0.7 < far[0] < 1.6
    assert uniform[2] < near[2] < far[2] < 1
    assert half[1] < 1e-6
    assert half[0] > 0.5


def test_the_free_corner_of_lambda_leaves_the_weights_as_they_are() -> None:
    layer = SymmetrisedConv("c4", SHAPE, 0.999999, False).double()
    assert not layer.logits.requires_grad
    filters = layer.expand().view(3, 4, 2, 4, 9).transpose(1, 2).flatten(2)
    torch.testing.assert_close(filters, layer.weight, atol=1e-5, rtol=0)
    assert layer.amount() == pytest.approx((3 / 4) ** 0.5, abs=0.05)  # independent weights: 216 of them


@both_axes
def test_every_branch_of_a_mixture_is_the_convolution_of_its_subgroup(axis: Axis) -> None:
    layer, maps, group = MixedConv(axis, SHAPE, -2.0, True).double(), maps_of(axis), elements(axis)
    assert [len(each) for each in subgroups(axis)] == ([1, 2, 4] if axis == "c4" else [1, 2, 4, 2, 4, 8])
    for index, subgroup in enumerate(subgroups(axis)):
        with torch.no_grad():
            layer.alpha.fill_(-1e4)
            layer.alpha[index] = 0
        others = [g for g in group if g not in subgroup]
        assert broken(layer, maps, axis, subgroup) < EXACT
        assert not others or min(broken(layer, maps, axis, [g]) for g in others) > 0.1
        assert layer.branches[index].psi.numel() == 3 * 2 * 9 * len(group) * len(group) // len(subgroup)
    assert layer.amount() < EXACT  # the last one is the whole group
    plain = GroupConv(axis, SHAPE).double()
    plain.load_state_dict({"psi": layer.branches[-1].psi[:, 0], "bias": layer.bias})
    torch.testing.assert_close(layer(maps), plain(maps), atol=1e-12, rtol=0)
    with torch.no_grad():
        layer.alpha.fill_(-1e4)
        layer.alpha[0] = 0
        free = layer.branches[0].psi.flatten(0, 1).flatten(1, 2)
        bias = layer.bias.repeat_interleave(len(group))
        expected = functional.conv2d(maps.flatten(1, 2), free, bias, padding=1)
    torch.testing.assert_close(layer(maps).flatten(1, 2), expected)
    assert layer.amount() == pytest.approx((1 - 1 / len(group)) ** 0.5, abs=0.05)


@both_axes
def test_a_group_convolution_is_one_of_each_subgroup(axis: Axis) -> None:
    """The relaxation morphism of 2210.05484: psi_c = L_c psi, then the function is the same."""
    layer, plain, maps = MixedConv(axis, SHAPE, 0.0, True).double(), GroupConv(axis, SHAPE).double(), maps_of(axis)
    filters = plain.expand().detach().view(3, plain.entries, 2, plain.entries, 3, 3)
    with torch.no_grad():
        layer.bias.copy_(plain.bias)
        for branch in layer.branches:
            cosets = branch.psi.shape[1]
            places = [
                int((branch.order == place).nonzero()) for place in range(cosets)
            ]  # entries e c of the identity e
            branch.psi.copy_(filters[:, places])
    torch.testing.assert_close(layer(maps), plain(maps), atol=1e-12, rtol=0)
    with torch.no_grad():
        layer.branches[0].psi.add_(0.1 * torch.randn_like(layer.branches[0].psi))
    assert not torch.allclose(layer(maps), plain(maps), atol=1e-3)


def test_mixed_networks_are_exact_at_their_strict_corner_alone() -> None:
    assert max(distances(network("resnet", "mixed_group", 17, others=-1e4), 17, TURNS)) < EXACT
    assert min(distances(network("resnet", "mixed_group", 17), 17, TURNS)) > 1e-5
    assert max(distances(network("resnet", "mixed_group", 17, others=-1e4, mirrors=True), 17, ALL)) < EXACT
    assert max(distances(network("resnet", "lambda_sym", 17, mirrors=True), 17, ALL)) < EXACT


@pytest.mark.parametrize("kernel", [1, 3, 4])
def test_soft_kernels_are_damped_by_the_singular_values_of_a_turn(kernel: int) -> None:
    places = torch.eye(kernel**2, dtype=torch.float64).view(-1, kernel, kernel)
    difference = (places.rot90(1, (1, 2)) - places).flatten(1).T  # rho(turn) - 1
    _, values, V = torch.linalg.svd(difference)
    if kernel == 3:
        assert values.tolist() == pytest.approx([2, 2, *[math.sqrt(2)] * 4, 0, 0, 0], abs=1e-12)
    for softness in (0.2, 0.5, 0.9):
        layer = SoftConv2d(2, 3, kernel, 1, 0, False, "zeros", softness).double()
        factors = torch.exp(-values / softness)
        expected = layer.weight.flatten(2) @ V.T @ factors.diag() @ V
        torch.testing.assert_close(layer.kernel().flatten(2), expected, atol=1e-12, rtol=0)


def test_softness_orders_the_error_and_its_corners_are_known() -> None:
    """The reference's layer at softness 0, .2, .5, 1: 5e-16, 1.3e-3, 9.7e-2, 1.3."""
    x, errors, amounts = images(2, 3, 15, 0.0), [], []
    for softness in (0, 0.2, 0.5, 1):
        torch.manual_seed(0)
        layer = SoftConv2d(3, 8, 3, 1, 1, False, "zeros", softness).double()
        errors.append(
            broken(nn.Sequential(nn.Flatten(1, 2), layer, nn.Unflatten(1, (-1, 1))), x[:, :, None], "none", TURNS)
        )
        amounts.append(layer.amount())
    assert errors[0] < EXACT
    assert errors == sorted(errors)
    assert amounts == sorted(amounts)
    assert amounts[0] < EXACT
    assert 1e-4 < errors[1] < 1e-2
    assert 2e-2 < errors[2] < 0.4
    assert errors[3] > 0.8
    torch.testing.assert_close(layer.kernel(), layer.weight)
    assert damping(0.999999) == pytest.approx((0.243, 0.135), abs=1e-3)


def test_soft_networks_are_exact_under_turns_where_they_are_strict() -> None:
    assert max(distances(network("resnet", "softeq", 33, softness=0.0), 33, TURNS)) < EXACT
    assert min(distances(network("resnet", "softeq", 32, softness=0.0), 32, TURNS)) > 1e-5
    assert min(distances(network("resnet", "softeq", 33, softness=0.5), 33, TURNS)) > 1e-5
    assert min(distances(network("resnet", "conv", 33), 33, TURNS)) > 1e-4


@pytest.mark.parametrize("name", ["relaxed_p4", "partial_p4", "lambda_sym", "mixed_group", "softeq"])
def test_every_layer_but_those_that_are_whole_says_its_amount(name: str) -> None:
    net = network("resnet", name, 17)
    found = {path: module.amount() for path, module in net.named_modules() if hasattr(module, "amount")}
    assert len(found) == 9 - (name == "partial_p4")  # the stem, two in each of three blocks, two shortcuts
    assert all(0 <= amount <= 1 for amount in found.values())


def test_amounts_move_when_they_are_learned_and_stay_when_they_are_not() -> None:
    for name, amount in (("relaxed_p4", "w"), ("lambda_sym", "logits"), ("mixed_group", "alpha")):
        for learned in (True, False):
            layer = catalog.entry("prior", name)(learned=learned).conv(2, 2, 3, side=7, padding=1)
            before = getattr(layer, amount).clone()
            optimizer = torch.optim.SGD([weight for weight in layer.parameters() if weight.requires_grad], lr=0.1)
            layer(torch.randn(2, 2, 4, 7, 7)).square().mean().backward()
            optimizer.step()
            assert torch.equal(getattr(layer, amount), before) != learned

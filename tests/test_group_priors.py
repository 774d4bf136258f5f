"""The priors with a group, against what is known of them: exactness, parameter counts, corner cases, broken twins.

Side 33 suits the strides of a resnet, 28 the pooling of the cnn; one pixel less or more does not (2308.11316).
"""

import copy

import pytest
import torch
from fields import GroupConv as Reference
from fields import evaluation, images, p4_net
from torch import Tensor, nn
from torch.nn import functional

from equitune import catalog
from equitune.errors import Infeasible
from equitune.evaluation.pairs import Plan, compare
from equitune.groups.d4 import Turn
from equitune.groups.layout import Axis, Grid
from equitune.layers.group import ExpandedConv, GroupConv, elements, sources
from equitune.layers.prior import Shape
from equitune.priors.orbit_c4 import OrbitConv
from equitune.priors.relaxed_p4 import RelaxedConv
from equitune.priors.separable_p4 import DepthwiseConv

EXACT = 1e-10  # float64, from the project's reference; measured: 1e-16 to 1e-15
TURNS = [Turn(quarters) for quarters in (1, 2, 3)]
ALL = [*TURNS, *(Turn(quarters, True) for quarters in range(4))]
SHAPE = Shape(2, 3, 3, 1, 1, True, False)


def prior(name: str, **args: object) -> object:
    return catalog.entry("prior", name)(**args)


def network(model: str, name: str, side: int, **args: object) -> nn.Module:
    """Three channels, ten classes, a batch norm that has seen images."""
    size: dict[str, int] = {"depth": 8, "width": 3} if model == "resnet" else {"width": 4}
    net = catalog.entry("model", model)((3, side, side), 10, prior(name, **args), **size).double()
    net(images(8, 3, side, seed=1))
    return net.eval()


def distances(net: nn.Module, side: int, group: list[Turn]) -> tuple[float, float]:
    """The largest relative distance over the layers with a grid, and that of the scores."""
    validation = evaluation(images(4, 3, side), batch_size=4)
    plan = Plan(net, net.layers, validation, {"set": group})
    assert not plan.problems, plan.problems
    found: dict[bool, list[float]] = {True: [], False: []}
    for (layer, _, _), pairs in compare(net, validation, plan).items():
        found[net.layers[layer].is_spatial].append(pairs.summary().relative_distance())
    return max(found[True]), max(found[False])


def moved_by(g: Turn, maps: Tensor, axis: Axis) -> Tensor:
    return g.on_features(maps, Grid(1, axis=axis))


def broken(layer: nn.Module, maps: Tensor, axis: Axis, group: list[Turn]) -> float:
    """The largest relative distance of layer(g x) and g layer(x)."""
    with torch.no_grad():
        out = layer(maps)
        differences = [layer(moved_by(g, maps, axis)) - moved_by(g, out, axis) for g in group]
    return max(float(difference.norm() / out.norm()) for difference in differences)


@pytest.mark.parametrize("head", ["max", "mean", "flatten"])
@pytest.mark.parametrize(("model", "side"), [("resnet", 33), ("resnet", 29), ("cnn", 28)])
@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("p4", TURNS),
        ("p4m", ALL),
        ("separable_p4", TURNS),
        ("relaxed_p4", TURNS),
        ("orbit_c4", TURNS),
        ("partial_p4", TURNS),
        ("lambda_sym", TURNS),
    ],
)
def test_networks_are_exact_where_their_strides_fit(
    name: str, group: list[Turn], model: str, side: int, head: str
) -> None:
    inner, outer = distances(network(model, name, side, head=head), side, group)
    assert inner < EXACT
    assert (outer < EXACT) == (head != "flatten")
    if head == "flatten":
        assert outer > 1e-5


@pytest.mark.parametrize(("model", "side"), [("resnet", 32), ("resnet", 31), ("cnn", 27), ("cnn", 29)])
@pytest.mark.parametrize("name", ["p4", "p4m", "separable_p4", "relaxed_p4", "orbit_c4", "partial_p4", "lambda_sym"])
def test_one_pixel_breaks_all_but_the_orbit(name: str, model: str, side: int) -> None:
    inner, outer = distances(network(model, name, side), side, TURNS)
    if name == "orbit_c4":
        assert max(inner, outer) < EXACT
    else:
        assert inner > 1e-3
        assert outer > 1e-5  # few classes, untrained: the scores hardly depend on the image


def test_turns_alone_do_not_make_mirrors() -> None:
    layer = GroupConv("c4", Shape(3, 3, 3, 1, 1, True, True)).double()
    x = images(2, 3, 9)
    with torch.no_grad():
        pooled = layer(x).amax(2)
        assert not torch.allclose(layer(x.flip(3)).amax(2), pooled.flip(3))
        torch.testing.assert_close(layer(x.rot90(1, (2, 3))).amax(2), pooled.rot90(1, (2, 3)))


@pytest.mark.parametrize("mirrors", [False, True])
def test_group_convolutions_equal_an_independent_one(mirrors: bool) -> None:
    axis: Axis = "d4" if mirrors else "c4"
    net = p4_net([3, 4, 5], mirrors=mirrors, stride2=True)
    layers = nn.Sequential()
    for reference in net.body:
        if isinstance(reference, Reference):
            outputs, inputs, *_ = reference.psi.shape
            shape = Shape(inputs, outputs, 3, reference.stride, 1, True, reference.entries_in == 1)
            layer = GroupConv(axis, shape).double()
            layer.load_state_dict({"psi": reference.psi, "bias": reference.bias})
            layers.append(layer)
        else:
            layers.append(reference)
    x = images(2, 3, 11)
    torch.testing.assert_close(layers(x), net(x), atol=1e-12, rtol=0)
    twin = layers[2]
    twin.sources = twin.sources.flip(0)  # the elements in another order
    assert not torch.allclose(layers(x), net(x), atol=1e-3)


@pytest.mark.parametrize("axis", ["c4", "d4"])
@pytest.mark.parametrize(("kernel", "padding"), [(1, 0), (3, 1), (4, 0), (5, 2)])
def test_layers_are_exact_and_a_wrong_order_of_the_group_is_not(axis: Axis, kernel: int, padding: int) -> None:
    group = TURNS if axis == "c4" else ALL
    layer = GroupConv(axis, Shape(2, 3, kernel, 1, padding, True, False)).double()
    maps = torch.randn(2, 2, len(elements(axis)), 7, 7, dtype=torch.float64)
    assert broken(layer, maps, axis, group) < EXACT
    inverse = torch.stack([row.argsort() for row in sources(axis, layer.entries_in, kernel)])  # L of g^-1, not of g
    layer.sources = inverse
    assert broken(layer, maps, axis, group) > 0.1


@pytest.mark.parametrize("padding", ["zero", "circular", "reflect"])
@pytest.mark.parametrize("name", ["p4", "p4m", "separable_p4", "relaxed_p4", "orbit_c4", "partial_p4", "lambda_sym"])
def test_every_padding_keeps_the_turns(name: str, padding: str) -> None:
    assert max(distances(network("resnet", name, 17, padding=padding), 17, TURNS)) < EXACT


# From the project's reference on priors, 6: counts of the released networks; its cnn on 3 channels.
@pytest.mark.parametrize(
    ("model", "name", "width", "head", "count"),
    [
        ("cnn", "p4", 10, "max", 24_990),
        ("resnet", "p4", 16, "max", 2_632_026),
        ("resnet", "p4", 16, "mean", 2_632_026),
        ("resnet", "p4", 16, "flatten", 2_633_946),
        ("resnet", "p4m", 12, "max", 2_959_366),
        ("resnet", "p4m", 12, "flatten", 2_962_726),
        ("resnet18", "p4", 32, "max", 11_165_738),
        ("resnet18", "p4", 32, "mean", 11_165_738),
        ("resnet18", "p4", 32, "flatten", 11_173_418),
        ("resnet18", "p4m", 23, "max", 11_533_889),
        ("resnet18", "p4m", 23, "flatten", 11_546_769),
    ],
)
def test_parameter_counts_are_the_published_ones(model: str, name: str, width: int, head: str, count: int) -> None:
    more = {"resnet": {"depth": 44}, "resnet18": {"depth": 18, "stages": 4}, "cnn": {}}[model]
    size, model = {"width": width, **more}, model.removesuffix("18")
    net = catalog.entry("model", model)((3, 28, 28), 10, prior(name, head=head), **size)
    assert sum(weight.numel() for weight in net.parameters()) == count


def test_a_separable_network_has_the_published_size() -> None:
    """2106.04914 on one channel: 24.6k, beside 24.8k of p4 at width 10 and 25.2k of conv at 20."""
    for name, width, thousands in (("separable_p4", 30, 24.6), ("p4", 10, 24.8), ("conv", 20, 25.2)):
        net = catalog.entry("model", "cnn")((1, 28, 28), 10, prior(name), width=width)
        assert sum(weight.numel() for weight in net.parameters()) / 1000 == pytest.approx(thousands, abs=0.05)


@pytest.mark.parametrize(
    ("name", "head", "widths", "classes", "has_shortcut_norm", "count"),
    [
        ("conv", None, (8, 14, 28), 2, True, 129_538),  # 2308.11316's ResNet44 of PatchCamelyon
        ("p4m", "flatten", (11, 23, 45), 10, False, 2_621_693),  # Cohen and Welling's ResNet44
        ("p4", "max", (4, 7, 14), 2, True, 128_652),  # and its twin of p4
        ("p4m", "flatten", (11, 23, 45), 10, True, 2_621_693 + 2 * (23 + 45)),
    ],
)
def test_layers_have_the_sizes_of_networks_of_other_widths(
    name: str, head: str | None, widths: tuple[int, ...], classes: int, has_shortcut_norm: bool, count: int
) -> None:
    made = catalog.entry("prior", name)(**({"head": head} if head else {}))
    layers, inputs = [made.lift(3, widths[0], 3, side=9, padding=1)], widths[0]
    for outputs in widths:
        if outputs != inputs:
            layers += [made.conv(inputs, outputs, 1, side=9)] + [made.norm(outputs)] * has_shortcut_norm
        for _ in range(7):
            layers += [made.norm(inputs), made.conv(inputs, outputs, 3, side=9), made.norm(outputs)]
            layers, inputs = [*layers, made.conv(outputs, outputs, 3, side=9)], outputs
    pool, features = made.head(inputs)
    layers += [made.norm(inputs), pool, nn.Linear(features, classes)]
    assert sum(weight.numel() for layer in layers for weight in layer.parameters()) == count


@pytest.mark.parametrize("mirrors", [False, True])
def test_a_separable_layer_equals_a_group_convolution_with_the_composed_kernel(mirrors: bool) -> None:
    made = catalog.entry("prior", "separable_p4")(mirrors=mirrors)
    pair = made.conv(2, 3, 3, side=9, stride=2, padding=1, bias=True).double()
    pointwise, depthwise = pair
    assert isinstance(depthwise, DepthwiseConv)
    composed = GroupConv(made.axis, Shape(2, 3, 3, 2, 1, True, False)).double()
    with torch.no_grad():
        composed.psi.copy_(pointwise.psi * depthwise.psi)
        composed.bias.copy_(depthwise.bias)
    maps = torch.randn(2, 2, len(elements(made.axis)), 9, 9, dtype=torch.float64)
    torch.testing.assert_close(pair(maps), composed(maps), atol=1e-12, rtol=0)
    with torch.no_grad():
        composed.psi.copy_(pointwise.psi * depthwise.psi.rot90(1, (3, 4)))
    assert not torch.allclose(pair(maps), composed(maps), atol=1e-3)


def test_constant_weights_make_a_relaxed_layer_exact_and_others_do_not() -> None:
    layer = RelaxedConv("c4", SHAPE, 2, 0.0, True).double()
    maps = torch.randn(2, 2, 4, 7, 7, dtype=torch.float64)
    assert layer.w.tolist() == [0.5] * 8
    with torch.no_grad():
        layer.w.copy_(
            torch.tensor([0.9] * 4 + [-0.4] * 4, dtype=torch.float64)
        )  # they may differ from filter to filter
    assert layer.amount() < EXACT
    assert broken(layer, maps, "c4", TURNS) < EXACT
    plain = GroupConv("c4", SHAPE).double()
    plain.load_state_dict({"psi": 0.9 * layer.psi[0] - 0.4 * layer.psi[1], "bias": layer.bias}, strict=True)
    torch.testing.assert_close(layer(maps), plain(maps), atol=1e-12, rtol=0)
    with torch.no_grad():
        layer.w.add_(0.1 * torch.randn(8))
    assert 0.02 < broken(layer, maps, "c4", TURNS) < 1  # the reference's layer: .23
    assert 0 < layer.amount() < 1
    with torch.no_grad():
        layer.w.copy_(torch.tensor([1.0, -1.0] * 4))
    assert layer.amount() == pytest.approx(1)


def test_the_spread_of_a_relaxed_prior_is_its_initial_amount() -> None:
    amounts = []
    for spread in (0.0, 0.05, 0.5):
        layer = catalog.entry("prior", "relaxed_p4")(filters=200, spread=spread, learned=False).conv(4, 4, 3, side=3)
        assert not layer.w.requires_grad
        amounts.append(layer.amount())
    assert amounts == sorted(amounts)
    assert amounts[0] < 1e-6  # float32
    assert amounts[1] == pytest.approx(0.05 * (3 / 4) ** 0.5, rel=0.1)  # the variance about the mean of four


@pytest.mark.parametrize("side", [30, 32, 33])
@pytest.mark.parametrize("turns", [1, 2, 3, 4])
def test_an_orbit_is_exact_at_every_side_and_stride(side: int, turns: int) -> None:
    shapes = [Shape(3, 2, 3, 2, 1, True, True), Shape(2, 3, 3, 2, 1, True, False)]
    net = nn.Sequential(*(OrbitConv("orbit_c4", shape, turns) for shape in shapes)).double()
    x = images(2, 3, side)
    with torch.no_grad():
        out = net(x)
        for g in TURNS:
            torch.testing.assert_close(net(g.on_images(x)), moved_by(g, out, "orbit_c4"), atol=1e-12, rtol=0)
            assert not torch.allclose(net(g.on_images(x)), out, atol=1e-3)  # the axis must roll


def test_an_orbit_reads_its_own_copy_with_a_plain_kernel() -> None:
    layer = OrbitConv("orbit_c4", SHAPE, 4).double()
    maps = torch.randn(2, 2, 4, 7, 7, dtype=torch.float64)
    expected = sum(functional.conv2d(maps[:, :, (1 + turn) % 4], layer.psi[:, :, turn], padding=1) for turn in range(4))
    torch.testing.assert_close(layer(maps)[:, :, 1], expected + layer.bias[:, None, None])


def test_toy_one_strided_convolution_learns_to_break_equivariance_on_an_even_side_alone() -> None:
    """2308.11316: can it tell an image from its quarter turn? ln 2 is the loss of guessing."""
    for side, stride in ((32, 2), (33, 2), (32, 1)):
        torch.manual_seed(4)
        noise = functional.avg_pool2d(torch.rand(1, 1, side + 4, side + 4), 5, 1)
        x = (noise - noise.mean()) / noise.std()
        pair, labels = torch.cat([x, x.rot90(1, (2, 3))]), torch.tensor([0, 1])
        convolution = GroupConv("c4", Shape(1, 1, 3, stride, 1, True, True))
        linear = nn.Linear(1, 2)
        optimizer = torch.optim.SGD([*convolution.parameters(), *linear.parameters()], lr=0.05, momentum=0.9)
        for _ in range(500):
            scores = linear(convolution(pair).mean((3, 4)).amax(2))
            loss = functional.cross_entropy(scores, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if side == 32 and stride == 2:
            assert loss.item() < 0.05  # measured: .0069, and .001 to .006 after 1500 steps of five seeds
        else:
            assert loss.item() == pytest.approx(0.6931, abs=1e-4)


def layers_of(name: str) -> list[nn.Module]:
    made = catalog.entry("prior", name)()
    return [made.lift(2, 3, 3, side=7, padding=1, bias=True), made.conv(3, 2, 3, side=7, padding=1, bias=True)]


@pytest.mark.parametrize("name", ["p4", "p4m", "separable_p4", "relaxed_p4", "orbit_c4", "lambda_sym", "mixed_group"])
def test_evaluation_sees_the_filters_that_training_uses(name: str) -> None:
    net, x = nn.Sequential(*layers_of(name)), torch.randn(2, 2, 7, 7)
    trained = net.train()(x)
    with torch.inference_mode():
        torch.testing.assert_close(net.eval()(x), trained)
        torch.testing.assert_close(net(x), trained)
    with torch.no_grad():  # what inference mode has left serves outside of it
        torch.testing.assert_close(copy.deepcopy(net)(x), trained)
    net(x.requires_grad_()).sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in net.parameters())


def test_kept_filters_are_dropped_when_the_weights_change() -> None:
    layer, maps = GroupConv("c4", SHAPE).eval(), torch.randn(1, 2, 4, 7, 7)
    with torch.no_grad():
        before = layer.filters()
        assert layer.filters() is before
        layer.psi.mul_(2)
        torch.testing.assert_close(layer.filters(), 2 * before)
        layer.load_state_dict({name: 0 * value for name, value in layer.state_dict().items()})
        assert not layer(maps).any()
        layer.psi.add_(1)
        assert layer.double().filters().dtype == torch.float64
        layer.psi.data = torch.zeros_like(layer.psi)
        assert not layer.filters().any()
        layer.train()
        assert layer._kept is None
        layer.filters()
        assert layer._kept is None
        layer.float().eval().filters()
    layer(maps).sum().backward()  # where gradients flow, no kept filters stand between
    assert layer.psi.grad is not None


def test_reflected_borders_need_a_larger_map() -> None:
    with pytest.raises(Infeasible, match="reflect padding of 1 needs a map larger than 1 x 1"):
        catalog.entry("prior", "p4")(padding="reflect").conv(1, 1, 3, side=1, padding=1)


def test_a_network_whose_axis_is_misdeclared_is_not_exact() -> None:
    net = network("resnet", "p4", 17)
    net.layers = {name: Grid(each.stride) if each.is_spatial else each for name, each in net.layers.items()}
    assert distances(net, 17, TURNS)[0] > 1e-2


def test_expanded_layers_declare_their_windows() -> None:
    """So that the strides that break a symmetry are named; an orbit's break none."""
    for name in ("p4", "p4m", "relaxed_p4", "separable_p4"):
        net = network("resnet", name, 16)
        plan = Plan(net, net.layers, evaluation(images(2, 3, 16)), {"set": TURNS})
        assert plan.uneven["stages.0.0"] is None
        assert "stages.1.0" in str(plan.uneven["stages.1.0"])
        assert any(isinstance(module, ExpandedConv) for module in net.modules())
    net = network("resnet", "orbit_c4", 16)
    assert not Plan(net, net.layers, evaluation(images(2, 3, 16)), {"set": TURNS}).uneven

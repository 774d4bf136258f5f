"""The non-stationary group convolution at its corners, where it is a known layer, and in between.

Under h the layer gives sum_r a_r(x, g) (L_g psi_r * f)(h^-1 x), entry h^-1 g: it commutes with h exactly where its
waves do, a_r(x, g) = a_r(h^-1 x, h^-1 g). Waves of g alone do so for shifts h, waves of g^-1 x alone for turns h.
"""

import pytest
import torch
from fields import images
from test_group_priors import EXACT, SHAPE, TURNS, broken, distances
from test_group_priors import network as turned_network
from torch import Tensor

from equitune import catalog
from equitune.groups.translation import Shift
from equitune.layers.group import GroupConv
from equitune.layers.prior import Shape
from equitune.priors.nonstationary import NonStationaryConv2d
from equitune.priors.nonstationary_p4 import NonStationaryGroupConv
from equitune.priors.relaxed_p4 import RelaxedConv

WRAPPED = Shape(2, 3, 3, 1, 1, True, False, "circular")
SIDE = 7
every_relaxation = pytest.mark.parametrize("relaxes", ["both", "position", "orientation"])


def layer_of(relaxes: str, w2: float, shape: Shape = WRAPPED, side: int = SIDE) -> NonStationaryGroupConv:
    layer = NonStationaryGroupConv("c4", shape, side=side, w2=w2, learned=False, relaxes=relaxes, terms=4)
    return layer.double().eval()


def maps_of(shape: Shape = WRAPPED, side: int = SIDE) -> Tensor:
    return images(2, 2, side, 0.0) if shape.lifts else images(2, 8, side, 0.0).unflatten(1, (2, 4))


def shift_error(layer: NonStationaryGroupConv) -> float:
    maps = maps_of()
    with torch.no_grad():
        out = layer(maps)
        return float((layer(maps.roll((1, 2), (3, 4))) - out.roll((1, 2), (3, 4))).norm() / out.norm())


def turn_error(layer: NonStationaryGroupConv) -> float:
    return broken(layer, maps_of(), "c4", TURNS)


@every_relaxation
@pytest.mark.parametrize("lifts", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "side"), [(3, 1, 7), (3, 2, 8), (1, 2, 7)])
def test_without_waves_it_is_p4(relaxes: str, lifts: bool, kernel: int, stride: int, side: int) -> None:
    shape = Shape(2, 3, kernel, stride, kernel // 2, True, lifts)
    layer, plain = layer_of(relaxes, 0.0, shape, side), GroupConv("c4", shape).double()
    mixed = torch.einsum("r,roihyx->oihyx", layer.waves()[:, 0, 0, 0], layer.psi)
    plain.load_state_dict({"psi": mixed, "bias": layer.bias})
    x = maps_of(shape, side)
    torch.testing.assert_close(layer(x), plain(x), atol=1e-12, rtol=0)
    layer.w2.data.fill_(0.3)
    assert not torch.allclose(layer(x), plain(x), atol=1e-2)


def test_each_relaxation_gives_up_its_own_symmetry_by_degrees() -> None:
    """The error of what is given up is proportional to w2 as long as the waves are long."""
    found: dict[tuple[str, str], list[float]] = {}
    for relaxes in ("both", "position", "orientation"):
        for w2 in (0.0, 0.01, 0.1):
            layers = [layer_of(relaxes, w2) for _ in range(10)]
            for symmetry, error in (("shift", shift_error), ("turn", turn_error)):
                found.setdefault((relaxes, symmetry), []).append(sum(map(error, layers)) / 10)
    for kept in (("position", "turn"), ("orientation", "shift")):
        assert max(found.pop(kept)) < EXACT
    for errors in found.values():
        assert errors[0] < EXACT
        assert 0.01 < errors[1] < 0.2
        assert 4 < errors[2] / errors[1] < 13  # of ten layers, other ones at each w2


def test_turns_are_kept_because_positions_are_read_in_the_frame_of_the_orientation() -> None:
    layer = layer_of("position", 0.3)
    assert turn_error(layer) < EXACT
    layer.points = layer.points[:1].expand_as(layer.points).clone()  # all orientations see the same waves
    assert turn_error(layer) > 0.1


def test_waves_over_orientations_are_a_relaxed_group_convolution() -> None:
    layer, relaxed = layer_of("orientation", 0.3), RelaxedConv("c4", WRAPPED, 4, 0.0, False).double()
    relaxed.load_state_dict({"psi": layer.psi, "w": layer.waves().flatten(), "bias": layer.bias})
    torch.testing.assert_close(layer(maps_of()), relaxed(maps_of()), atol=1e-12, rtol=0)
    assert layer.amount() == pytest.approx(relaxed.amount(), rel=1e-9)
    assert layer.amount() > 0.1


@pytest.mark.parametrize("turn", range(4))
def test_an_orientation_of_a_lifting_layer_is_the_turned_non_stationary_one(turn: int) -> None:
    layer = layer_of("position", 0.3, Shape(2, 3, 3, 1, 1, True, True))
    plain = NonStationaryConv2d(2, 3, 3, SIDE, 1, 1, True, "constant", 0.3, 4).double()
    plain.load_state_dict(
        {
            "weight": layer.psi[:, :, :, 0],
            **{name: getattr(layer, name) for name in ("w2", "frequency", "phase", "bias")},
        }
    )
    x = images(2, 2, SIDE)
    expected = plain(x.rot90(-turn, (2, 3))).rot90(turn, (2, 3))
    torch.testing.assert_close(layer(x)[:, :, turn], expected, atol=1e-12, rtol=0)
    assert turn == 0 or not torch.allclose(layer(x)[:, :, turn], plain(x), atol=1e-2)
    assert layer.amount() == pytest.approx(plain.amount(), rel=1e-9)


@every_relaxation
def test_the_amount_is_the_distance_of_all_filters_to_one(relaxes: str) -> None:
    amounts = []
    for w2 in (0.0, 0.01, 0.1):
        torch.manual_seed(0)
        layer = layer_of(relaxes, w2)
        filters = torch.einsum("rghw,r...->ghw...", layer.waves(), layer.psi).detach().flatten(0, 2)
        expected = float((filters - filters.mean(0)).norm() / filters.norm())
        assert layer.amount() == pytest.approx(expected, rel=1e-9, abs=1e-7)
        amounts.append(layer.amount())
    assert amounts[0] < 1e-7
    assert amounts == sorted(amounts)
    assert 0.05 < amounts[2] <= 1


@pytest.mark.parametrize("model", ["cnn", "resnet"])
def test_networks_keep_what_is_not_relaxed(model: str) -> None:
    side, name = 17 if model == "resnet" else 28, "nonstationary_p4"  # where their strides fit

    def turns(**args: object) -> tuple[float, float]:
        return distances(turned_network(model, name, side, **args), side, TURNS)

    def shifted(**args: object) -> float:
        net = turned_network(model, name, 16, padding="circular", **args)
        return distances(net, 16, [Shift(4, 0), Shift(-4, 4)])[0]  # by the total stride

    assert max(turns(w2=0.3, relaxes="position")) < EXACT
    assert max(turns(w2=0.0)) < EXACT
    assert turns(w2=0.3, relaxes="orientation")[0] > 1e-3
    assert turns(w2=0.3)[0] > 1e-3
    assert shifted(w2=0.3, relaxes="orientation") < EXACT
    assert shifted(w2=0.0) < EXACT
    assert shifted(w2=0.3, relaxes="position") > 1e-3
    assert shifted(w2=0.3) > 1e-3


@every_relaxation
@pytest.mark.parametrize("terms", [1, 4])
def test_it_has_the_weights_of_p4_once_a_term(relaxes: str, terms: int) -> None:
    def weights(name: str, **args: object) -> int:
        layer = catalog.entry("prior", name)(**args).conv(2, 3, 3, side=9, padding=1)
        return sum(weight.numel() for weight in layer.parameters())

    assert weights("p4") == 2 * 3 * 4 * 9
    assert weights("nonstationary_p4", relaxes=relaxes, terms=terms) == terms * 2 * 3 * 4 * 9 + 1  # and w2


@every_relaxation
def test_it_says_what_breaks_it(relaxes: str) -> None:
    def layer(w2: float, stride: int = 1, side: int = 8, learned: bool = True) -> NonStationaryGroupConv:
        made = catalog.entry("prior", "nonstationary_p4")(w2=w2, learned=learned, relaxes=relaxes, padding="circular")
        return made.conv(2, 3, 3, side=side, stride=stride, padding=1)  # type: ignore[no-any-return]

    for symmetry, kept, rule in (("translation", "orientation", "position"), ("c4", "position", "orientation")):
        said = None if relaxes == kept else f"its filters change with their {rule} (w2 0.1)"
        later = None if relaxes == kept else f"w2, how fast its filters change with their {rule}, is learned"
        assert layer(0.1).breaks(symmetry, 8) == said
        assert layer(0.0).breaks(symmetry, 8) is None
        assert layer(0.0).loosens(symmetry) == later
        assert layer(0.0, learned=False).loosens(symmetry) is None
    assert layer(0.0, stride=2, side=9).breaks("translation", 9) == "its stride of 2 does not divide the side of 9"
    assert layer(0.0).breaks("d4", 8) == "its group has no flips"


@every_relaxation
def test_w2_is_learned_where_asked_for(relaxes: str) -> None:
    for learned in (True, False):
        layer = NonStationaryGroupConv("c4", SHAPE, side=SIDE, w2=0.0, learned=learned, relaxes=relaxes, terms=2)
        optimizer = torch.optim.SGD([weight for weight in layer.parameters() if weight.requires_grad], lr=0.1)
        layer(maps_of().float()).square().mean().backward()
        optimizer.step()
        assert (layer.w2.item() != 0) is learned


@every_relaxation
def test_evaluation_keeps_its_filters_until_w2_or_a_weight_changes(relaxes: str) -> None:
    layer, maps = layer_of(relaxes, 0.1), maps_of()
    expected = layer.train()(maps)
    with torch.inference_mode():
        torch.testing.assert_close(layer.eval()(maps), expected, atol=1e-12, rtol=0)
        assert layer.filters() is layer.filters()
    for weight in (layer.w2, layer.psi):
        with torch.no_grad():
            before = layer(maps)
            weight.mul_(3)
            assert not torch.allclose(layer(maps), before, atol=1e-3)

"""What each group's action is: equivariant networks that are known to be so, exact places, and what cannot be acted on."""

import math

import pytest
import torch
from fields import Net, Pointwise, cnn, images, p4_net
from torch import Tensor, nn

from equitune.errors import Unmeasurable
from equitune.groups import element
from equitune.groups.d4 import Turn
from equitune.groups.element import Element
from equitune.groups.hue import Hue
from equitune.groups.layout import Grid, Vector
from equitune.groups.rotation import Rotation
from equitune.groups.scale import Scale
from equitune.groups.shear import Shear
from equitune.groups.translation import CropShift, Shift

# float64 rounding through two layers; the reference asserts the same.
EXACT = 1e-12
EVERY_TURN = [Turn(quarters, mirror) for mirror in (False, True) for quarters in range(4)]


def distance(net: Net, g: Element, x: Tensor, layout: Grid | None = None) -> float:
    """|f(gx) - g f(x)| / (|f(gx)| + |g f(x)|) where it is visible, under the declared action or another one."""
    layout = layout or net.layers["body"]
    with torch.no_grad():
        a, b = net(g.on_images(x)), g.on_features(net(x), layout)
    where = g.visible(layout, *a.shape[-2:])
    if where is not None:
        a, b = a[..., where], b[..., where]
    return float((a - b).norm() / (a.norm() + b.norm()))


class Wrong(Turn):
    """A turn whose action on the group axis can be broken."""

    def on_features(self, features_BCGHW: Tensor, layout: Grid) -> Tensor:
        moved = super().on_features(features_BCGHW, Grid(1))
        return moved[:, :, self.axis_sources()]

    def axis_sources(self) -> list[int]:
        raise NotImplementedError


class WrongWay(Wrong):
    def axis_sources(self) -> list[int]:
        return [(turn + self.quarters) % 4 for turn in range(4)]


class ForgottenMirror(Wrong):
    """The halves are exchanged, but no turn is reversed."""

    def axis_sources(self) -> list[int]:
        other = int(self.is_mirrored)
        return [4 * (mirror ^ other) + (turn - self.quarters) % 4 for mirror in range(2) for turn in range(4)]


@pytest.mark.parametrize("mirrors", [False, True])
def test_a_group_convolution_is_equivariant_under_the_declared_action_alone(mirrors: bool) -> None:
    net, x = p4_net([3, 8, 8], mirrors=mirrors), images(4, 3, 12)
    for g in EVERY_TURN[1 : 8 if mirrors else 4]:
        assert distance(net, g, x) <= EXACT
        assert distance(net, g, x, Grid(1)) > 0.1  # the plane moves, the axis is forgotten
    for twin in [ForgottenMirror(1, True)] if mirrors else [WrongWay(1), WrongWay(3)]:
        assert distance(net, twin, x) > 0.1


@pytest.mark.parametrize("mirrors", [False, True])
def test_with_a_stride_it_is_exact_on_odd_sides_alone(mirrors: bool) -> None:
    net = p4_net([3, 8, 8], mirrors=mirrors, stride2=True)
    for g in EVERY_TURN[1 : 8 if mirrors else 4]:
        assert distance(net, g, images(4, 3, 13)) <= EXACT
        if g != Turn(1, True):  # the transpose leaves the corner at which windows start
            assert distance(net, g, images(4, 3, 12)) > 0.1


def test_a_circular_group_convolution_is_equivariant_to_shifts_and_its_axis_stays() -> None:
    net, x = p4_net([3, 4, 4], padding="circular", stride2=True), images(4, 3, 12)
    assert distance(net, Shift(2, -4), x) <= EXACT
    assert distance(net, Shift(1, 0), x) > 0.1


class OrbitConv(nn.Module):
    """Four turned images through two convolutions, the second over `reach` neighbouring turns."""

    def __init__(self, reach: int, padding_mode: str, stride: int) -> None:
        super().__init__()
        self.lift = nn.Conv2d(3, 4, 3, stride, 1, padding_mode=padding_mode, dtype=torch.float64)
        self.mix = nn.ModuleList(
            nn.Conv2d(4, 4, 3, 1, 1, padding_mode=padding_mode, dtype=torch.float64) for _ in range(reach)
        )

    def forward(self, x: Tensor) -> Tensor:
        lifted = [self.lift(x.rot90(-turn, (2, 3))).relu() for turn in range(4)]
        mixed = [sum(conv(lifted[(turn + step) % 4]) for step, conv in enumerate(self.mix)) for turn in range(4)]
        return torch.stack(mixed, 2)  # type: ignore[arg-type]


def orbit_net(reach: int, padding_mode: str, stride: int) -> Net:
    return Net(OrbitConv(reach, padding_mode, stride), Grid(stride, axis="orbit_c4"))


def test_turns_roll_the_axis_of_an_orbit_and_leave_its_planes() -> None:
    net, x = orbit_net(2, "zeros", 2), images(4, 3, 12)
    for g in EVERY_TURN[1:4]:  # at an even side and a stride, where no p4 network is exact
        assert distance(net, g, x) <= EXACT
        assert distance(net, g, x, Grid(2, axis="c4")) > 0.1


def test_the_planes_of_an_orbit_shift_in_their_own_frames() -> None:
    x = images(4, 3, 12)
    circular = orbit_net(1, "circular", 2)
    assert distance(circular, Shift(2, -4), x) <= EXACT
    assert distance(circular, Shift(2, -4), x, Grid(2)) > 0.1  # the same shift for every plane
    # An orbit that mixes planes of different frames has no such action: no network has it exactly.
    assert distance(orbit_net(2, "circular", 2), Shift(2, -4), x) > 0.1
    # Two layers reach 2 px; the overlap holds for all four directions in which the planes move.
    padded, x = orbit_net(1, "zeros", 1), images(4, 3, 16)
    assert distance(padded, CropShift(1, -3, margin_px=2), x) <= EXACT
    assert distance(padded, CropShift(1, -3, margin_px=1), x) > 1e-3


def test_a_turn_is_rot90_and_flips_are_mirrors() -> None:
    x = images(2, 3, 6)
    assert torch.equal(Turn(1).on_images(x), x.rot90(1, (2, 3)))
    assert torch.equal(Turn(0, True).on_images(x), x.flip(3))
    assert torch.equal(Turn(2, True).on_images(x), x.flip(2))
    assert torch.equal(Turn(1, True).on_images(x), x.mT)
    assert torch.equal(Turn(3, True).on_images(x), x.mT.rot90(2, (2, 3)))
    oblong = images(2, 3, 6)[:, :, :4]
    assert torch.equal(Turn(2).on_images(oblong), oblong.flip(2, 3))
    assert torch.equal(Turn(2).on_features(oblong[:, :, None], Grid(1))[:, :, 0], oblong.flip(2, 3))


def test_a_crop_is_another_window_of_the_image_padded_by_reflection() -> None:
    x = images(2, 3, 9)
    padded = nn.functional.pad(x, (4, 4, 4, 4), mode="reflect")
    for dy, dx in [(0, 0), (4, 0), (-4, 4), (1, -3), (-2, -2)]:
        assert torch.equal(CropShift(dy, dx).on_images(x), padded[..., 4 - dy : 13 - dy, 4 - dx : 13 - dx])


def test_crops_are_compared_on_the_overlap_of_both_grids() -> None:
    where = CropShift(4, -2).visible(Grid(2), 6, 6)
    assert where is not None
    assert where.nonzero().amin(0).tolist() == [2, 0]
    assert where.nonzero().amax(0).tolist() == [5, 4]
    assert where.sum() == 4 * 5
    fraction = CropShift(1, 0).visible(Grid(2), 6, 6)  # row 0 would come from half a position above the map
    assert fraction is not None
    assert fraction.any(1).tolist() == [False, True, True, True, True, True]
    assert CropShift(1, 1, margin_px=100).visible(Grid(1), 8, 8).sum() == 3 * 3  # type: ignore[union-attr]
    assert CropShift(4, 4).visible(Vector(), 1, 1) is None


def test_beyond_the_receptive_field_a_crop_finds_zero_padding_exact() -> None:
    net, x = cnn([3, 8, 8, 8]), images(4, 3, 24)  # three 3 x 3 layers: radius 3
    assert distance(net, CropShift(4, -2, margin_px=3), x) <= EXACT
    assert distance(net, CropShift(4, -2, margin_px=2), x) > 1e-4
    assert distance(net, CropShift(4, -2), x) > 0.01


def test_what_a_disc_leaves_of_an_image() -> None:
    x = images(2, 3, 16) + 10
    masked = Rotation(0).on_images(x)
    offset = torch.arange(16) - 7.5
    disc = torch.hypot(offset[:, None], offset) <= 8
    assert torch.equal(masked[..., disc], x[..., disc])
    assert not masked[..., ~disc].any()
    for g in (Rotation(33), Scale(1.25), Shear(0.2)):
        assert torch.equal(g.after(g.inverse()).on_images(x), masked)
        assert not g.on_images(x)[..., ~disc].any()
    # Shrunk to half, the disc has half the radius, and nothing of the corners comes in.
    assert torch.equal(Scale(0.5).on_images(x)[0, 0] != 0, torch.hypot(offset[:, None], offset) <= 4)


def test_interpolated_elements_agree_with_the_lattice_where_there_is_one() -> None:
    x = images(2, 3, 17)
    where = Rotation(90).visible(Grid(1), 17, 17)
    for quarters in range(4):
        turned = Rotation(90 * quarters).on_images(x)
        torch.testing.assert_close(turned[..., where], Turn(quarters).on_images(x)[..., where], atol=1e-12, rtol=0)
    centre = 8  # every other pixel of the enlarged image is one of the image
    large = Scale(2).on_features(x[:, :, None], Grid(1))[:, :, 0]
    torch.testing.assert_close(large[..., ::2, ::2], x[..., 4:13, 4:13], atol=1e-12, rtol=0)
    sheared = Shear(1).on_features(x[:, :, None], Grid(1))[:, :, 0]
    for below in (-2, 0, 3):
        row, moved = x[..., centre + below, 3:-3], sheared[..., centre + below, 3 + below : 14 + below]
        torch.testing.assert_close(moved, row, atol=1e-12, rtol=0)


def test_features_under_a_disc_are_compared_at_its_centre() -> None:
    where = Rotation(45).visible(Grid(4), 8, 8)
    assert where is not None
    assert where.sum() == 4 + 8 + 4  # r <= 2.4 positions: (.5, .5), (.5, 1.5), (1.5, 1.5) and their images
    assert torch.equal(Scale(0.8).visible(Grid(1), 32, 32), Rotation(45).visible(Grid(1), 32, 32))  # type: ignore[arg-type]
    # Shrunk to half, what comes from beyond half the radius lay outside the disc.
    offset = torch.arange(32) - 15.5
    assert torch.equal(Scale(0.5).visible(Grid(1), 32, 32), torch.hypot(offset[:, None], offset) <= 8)  # type: ignore[arg-type]
    assert Rotation(45).visible(Vector(), 1, 1) is None


def test_an_isotropic_network_is_equivariant_to_rotations_up_to_the_interpolation_floor() -> None:
    # The identity is measured in the same way: what it loses is the floor.
    x = images(8, 1, 32, 2.0)
    offset = torch.arange(-2.0, 3, dtype=torch.float64)
    round_kernel = torch.exp(-(offset[:, None] ** 2 + offset**2) / 2)
    edge_kernel = offset * round_kernel

    def filtering(kernel: Tensor) -> Net:
        weights = kernel.view(1, 1, 5, 5)
        return Net(Pointwise(lambda x: nn.functional.conv2d(x, weights, padding=2)[:, :, None]), Grid(1))

    def off(net: Net, g: Element) -> float:
        masked = g.after(g.inverse()).on_images(x)
        with torch.no_grad():
            a, b = net(g.on_images(x)), g.on_features(net(masked), Grid(1))
        where = g.visible(Grid(1), 32, 32)
        return float((a - b)[..., where].norm() / (a[..., where].norm() + b[..., where].norm()))

    for angle_deg in (15, 45):
        there, back = Rotation(angle_deg), Rotation(-angle_deg)
        where = there.visible(Grid(1), 32, 32)
        again = back.on_images(there.on_images(x))[..., where]
        floor = float((again - x[..., where]).norm() / (again.norm() + x[..., where].norm()))
        assert off(filtering(round_kernel), there) < floor
        assert off(filtering(edge_kernel), there) > 4 * floor


def hue_generator() -> Tensor:
    """The skew matrix whose exponential by an angle turns about (1, 1, 1) / sqrt(3)."""
    x, y, z = torch.full((3,), 3**-0.5, dtype=torch.float64).tolist()
    return torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)


@pytest.mark.parametrize("angle_deg", [0, 30, 90, 120, -120, 240, 313.7])
def test_a_hue_is_a_rotation_about_the_grey_axis(angle_deg: float) -> None:
    x = images(2, 3, 4)
    rotation = torch.matrix_exp(hue_generator() * math.radians(angle_deg))
    expected = torch.einsum("ij,bjhw->bihw", rotation, x)
    torch.testing.assert_close(Hue(angle_deg).on_images(x), expected, atol=1e-12, rtol=0)


def test_a_third_turns_red_into_green_exactly() -> None:
    red, green = torch.eye(3)[0].view(1, 3, 1, 1), torch.eye(3)[1].view(1, 3, 1, 1)
    assert torch.equal(Hue(120).on_images(red), green)
    assert torch.equal(Hue(-240).on_images(red), green)
    assert torch.equal(Hue(360).on_images(red), red)


@pytest.mark.parametrize("steps", [3, 4, 6])
def test_a_lifting_over_hues_rolls_its_axis(steps: int) -> None:
    """2310.19368: W_r[o] = W[o] turned by r steps of hue."""
    weight = torch.randn(5, 3, 3, 3, dtype=torch.float64)
    turns = [torch.matrix_exp(hue_generator() * (2 * math.pi * r / steps)) for r in range(steps)]
    kernels = [torch.einsum("ij,ojyx->oiyx", turn, weight) for turn in turns]

    def lift(x: Tensor) -> Tensor:
        return torch.stack([nn.functional.conv2d(x, kernel, padding=1).relu() for kernel in kernels], 2)

    net, x, step_deg = Net(Pointwise(lift), Grid(1, axis="hue")), images(4, 3, 8), 360 / steps
    for turned in range(1, steps):
        assert distance(net, Hue(turned * step_deg), x) <= EXACT
    with torch.no_grad():
        wrong_way = net(Hue(step_deg).on_images(x)) - net(x).roll(-1, 2)
    assert wrong_way.norm() > 0.1
    with pytest.raises(Unmeasurable, match="no multiple") as caught:
        distance(net, Hue(step_deg / 2), x)
    assert caught.value.status == "undefined"


OBLONG = torch.zeros(1, 3, 8, 12)
UNDEFINED = [
    ("non_square", lambda: Turn(1).on_images(OBLONG)),
    ("non_square", lambda: Turn(3, True).visible(Grid(1), 8, 12)),
    ("non_square", lambda: Rotation(15).on_images(OBLONG)),
    ("non_square", lambda: Scale(0.8).visible(Grid(1), 8, 12)),
    ("too_small", lambda: Rotation(15).visible(Grid(4), 7, 7)),
    ("too_small", lambda: CropShift(8, 0).on_images(OBLONG)),
    ("empty_mask", lambda: CropShift(4, 4).visible(Grid(2), 4, 4)),
    ("no_colour", lambda: Hue(120).on_images(OBLONG[:, :1])),
    ("undefined", lambda: Turn(0, True).visible(Grid(1, axis="c4"), 8, 8)),
    ("undefined", lambda: Turn(2, True).on_features(OBLONG[:, :, None], Grid(1, axis="orbit_c4"))),
    ("undefined", lambda: Turn(1).on_features(torch.zeros(1, 2, 1, 8, 8), Grid(1, axis="c4"))),
    ("undefined", lambda: Rotation(45).visible(Grid(1, axis="c4"), 8, 8)),
    ("undefined", lambda: Rotation(45).on_features(torch.zeros(1, 2, 8, 8, 8), Grid(1, axis="d4"))),
]


@pytest.mark.parametrize(("status", "act"), UNDEFINED)
def test_what_cannot_be_acted_on_has_a_status(status: str, act: object) -> None:
    with pytest.raises(Unmeasurable) as caught:
        act()  # type: ignore[operator]
    assert caught.value.status == status


SETS = {
    "translation": {"lattice": 4, "substride": 2, "fractional": 2},
    "rotation": {"quarter": 3, "interpolated": 4},
    "flip": {"flip": 2},
    "d4": {"d4": 7},
    "scale": {"scale": 2},
    "shear": {"shear": 2},
    "hue": {"third": 2, "angle": 2},
}


@pytest.mark.parametrize("group", SETS)
def test_the_sets_of_a_group_hold_distinct_elements_that_move_images(group: str) -> None:
    found = element.sets(group, [1, 2, 4], 16)
    assert {name: len(members) for name, members in found.items()} == SETS[group]
    everything = [g for members in found.values() for g in members]
    assert len({g.label for g in everything}) == len(everything)
    x = images(1, 3, 16)
    for g in everything:
        assert g.protocol in ("roll", "crop", "disc", "none")
        assert not torch.equal(g.on_images(x), g.after(g.inverse()).on_images(x))


def test_translations_come_in_sets_by_what_they_ask_of_the_grid() -> None:
    sets = element.sets("translation", [1, 4], 32, multiples=2)
    assert sets["lattice"][:4] == [Shift(4, 0), Shift(-4, 0), Shift(8, 0), Shift(-8, 0)]
    assert sets["substride"] == [Shift(1, 0), Shift(0, 1)]
    assert element.sets("translation", [1], 32)["substride"] == []
    assert element.sets("translation", [32], 32)["lattice"] == []
    cropped = element.sets("translation", [1, 4], 32, multiples=2, protocol="crop")
    assert list(cropped) == ["lattice", "substride"]
    assert cropped["lattice"][:2] == [CropShift(4, 0), CropShift(-4, 0)]
    assert len(cropped["lattice"]) == 4  # no farther than the reflected border
    assert element.sets("translation", [8], 32, protocol="crop")["lattice"] == []


def test_labels_say_what_is_done() -> None:
    labels = [
        g.label for g in (Turn(3), Turn(0, True), Rotation(-15), Scale(0.8), Shear(0.2), Hue(120), CropShift(4, 0))
    ]
    assert labels == [
        "turn by 270°",
        "mirror across left and right",
        "rotation by -15°",
        "scaling by 0.8",
        "shear by 0.2",
        "hue by 120°",
        "shift (4, 0) px, cropped",
    ]

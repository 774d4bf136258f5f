"""The laws of every group, on images and on features: exact where exactness is promised, against a floor elsewhere."""

from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from fields import images, lowpass
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from equitune.errors import Infeasible
from equitune.groups.affine import CENTRAL
from equitune.groups.d4 import Turn
from equitune.groups.element import Element
from equitune.groups.hue import Hue
from equitune.groups.layout import Grid, Layout, Tokens, Vector
from equitune.groups.resample import shift_edge
from equitune.groups.rotation import Rotation
from equitune.groups.scale import Scale
from equitune.groups.shear import Shear
from equitune.groups.translation import CropShift, Shift

settings.register_profile("fast", deadline=None, max_examples=15)
settings.load_profile("fast")

Plain, C4, D4, Orbit = Grid(1), Grid(1, axis="c4"), Grid(1, axis="d4"), Grid(1, axis="orbit_c4")
ENTRIES = {"none": 2, "c4": 4, "d4": 8, "orbit_c4": 4, "hue": 6}
EVERYWHERE, CORE, DISC = "everywhere", "core", "disc"


@dataclass(frozen=True)
class Group:
    """A group under test.

    Attributes:
        elements: what is drawn from it.
        layouts: of the features that it is tried on.
        field: on which its laws hold: `white` noise, or `smooth` where something is interpolated.
        seen: where they hold: everywhere, on the core that no border reaches, or on the central disc.
        bound: the squared relative error that rounding may leave; None: the measured interpolation floor.
        side: of images and maps.
    """

    elements: st.SearchStrategy[Any]
    layouts: tuple[Layout, ...]
    field: str = "white"
    seen: str = EVERYWHERE
    bound: float | None = 0.0
    side: int = 8

    def maps(self, layout: Layout) -> Tensor:
        return maps(self.field, ENTRIES[layout.axis], self.side)


ROUNDING = 1e-24  # float64: 1e-12, squared
pixels, few_pixels = st.integers(-9, 9), st.integers(-4, 4)
angles, turns = st.floats(-180, 180), st.integers(0, 3)
GROUPS = {
    "whole shifts": Group(st.builds(Shift, pixels, pixels), (Plain, C4, D4, Orbit, Vector())),
    "shifts of a strided map": Group(
        st.builds(lambda dy, dx: Shift(4 * dy, 4 * dx), pixels, pixels), (Grid(4), Grid(4, axis="orbit_c4"))
    ),
    "fractional shifts, odd side": Group(
        st.builds(Shift, st.floats(-5, 5), st.floats(-5, 5)), (Plain, Grid(4), Orbit), bound=ROUNDING, side=9
    ),
    "fractional shifts, even side": Group(
        st.builds(Shift, st.floats(-5, 5), st.floats(-5, 5)), (Plain, Grid(4)), "smooth", bound=ROUNDING
    ),
    "crops": Group(st.builds(CropShift, few_pixels, few_pixels), (Plain, C4, Orbit, Vector()), seen=CORE, side=24),
    "crops of a strided map": Group(
        st.builds(CropShift, few_pixels, few_pixels), (Grid(4), Grid(4, axis="orbit_c4")), "smooth", CORE, None, 24
    ),
    "quarter turns": Group(st.builds(Turn, turns), (Plain, C4, D4, Orbit, Grid(1, axis="hue"), Vector())),
    "flips": Group(st.sampled_from([Turn(0), Turn(2), Turn(0, True), Turn(2, True)]), (Plain, D4, Vector())),
    "d4": Group(st.builds(Turn, turns, st.booleans()), (Plain, D4, Grid(2, axis="d4", is_spatial=False))),
    "rotations": Group(st.builds(Rotation, angles), (Plain, Grid(1, axis="hue")), "smooth", DISC, None, 32),
    "scalings": Group(st.builds(Scale, st.floats(0.85, 1.2)), (Plain, C4, D4, Orbit), "smooth", DISC, None, 32),
    "shears": Group(st.builds(Shear, st.floats(-0.3, 0.3)), (Plain, C4, Orbit), "smooth", DISC, None, 32),
    "thirds of hue": Group(
        st.builds(Hue, st.sampled_from([-240, -120, 0, 120, 240])), (Plain, C4, Grid(1, axis="hue"), Vector())
    ),
    "steps of hue": Group(
        st.builds(Hue, st.sampled_from(range(-360, 361, 60))), (Plain, Grid(1, axis="hue")), bound=ROUNDING
    ),
    "hues": Group(st.builds(Hue, angles), (Plain, Vector()), bound=ROUNDING),
}


@lru_cache
def maps(field: str, entries: int, side: int) -> Tensor:
    """Features (2, 3, G, side, side): white noise, or a field without its upper half of frequencies."""
    channels = images(2, 3 * entries, side, beta=float(field == "smooth"))
    return (lowpass(channels, 0.25) if field == "smooth" else channels).unflatten(1, (3, entries))


@lru_cache
def seen(where: str, side: int) -> Tensor:
    """The positions at which laws are compared, (side, side) bool."""
    offset = (torch.arange(side) - (side - 1) / 2).abs()
    if where == DISC:
        return torch.hypot(offset[:, None], offset) <= CENTRAL * side / 2
    # Two shifts by at most 4 px bring the border 8 px inwards.
    inside = offset < (side / 2 - 8 if where == CORE else side)
    return inside[:, None] & inside


def squared_error(a: Tensor, b: Tensor, where: Tensor) -> float:
    """|a - b|^2 / (0.5 (|a|^2 + |b|^2)) over some positions."""
    a, b = a[..., where], b[..., where]
    return float((a - b).square().sum() / (0.5 * (a.square().sum() + b.square().sum())))


def interpolation_floor(field: Tensor, where: Tensor) -> float:
    """What bicubic interpolation costs at its worst: half a pixel along both axes, and back."""
    moved = field
    for shift in (0.5, -0.5):
        for dim in (-2, -1):
            moved = shift_edge(moved, shift, dim)
    return squared_error(moved, field, where)


def violation(act: Callable[[Element, Tensor], Tensor], g: Any, h: Any, x: Tensor, where: Tensor) -> float:
    """The largest error of identity, inverse and composition."""
    laws = [
        (act(g.after(g.inverse()), x), x),
        (act(g.inverse(), act(g, x)), x),
        (act(g.after(h), x), act(g, act(h, x))),
    ]
    return max(squared_error(left, right, where) for left, right in laws)


def worst(group: Group, g: Any, h: Any) -> tuple[float, float]:
    """The largest violation on images and on all features, and what is allowed."""
    where, allowed = seen(group.seen, group.side), group.bound
    field = group.maps(group.layouts[0])
    if allowed is None:
        # A composition interpolates three times, the floor twice.
        allowed = 1.5 * interpolation_floor(field, where)
    on_images = violation(lambda element, x: element.on_images(x), g, h, field[:, :, 0], where)
    on_features = [violation(acting_on(layout), g, h, group.maps(layout), where) for layout in group.layouts]
    return max(on_images, *on_features), allowed


def acting_on(layout: Layout) -> Callable[[Element, Tensor], Tensor]:
    return lambda element, features: element.on_features(features, layout)


@pytest.mark.parametrize("name", GROUPS)
@given(data=st.data())
def test_it_is_a_group_on_images_and_on_features(name: str, data: st.DataObject) -> None:
    group = GROUPS[name]
    found, allowed = worst(group, data.draw(group.elements), data.draw(group.elements))
    assert found <= allowed


def broken(element: Any, **methods: Any) -> Any:
    """The element with some of its methods replaced; what it is composed to is broken likewise."""
    return type("Broken", (type(element),), methods)(*astuple(element))


def not_inverted(self: Any) -> Any:
    return self


def first_forgotten(self: Any, first: Any) -> Any:
    return self


def left_where_it_was(self: Any, x: Tensor) -> Tensor:
    return x


def axis_rolled_by_one(self: Turn, f: Tensor, layout: Layout) -> Tensor:
    return Turn(self.quarters).on_features(f, Plain).roll(1, 2)


def mirror_forgotten(self: Turn, axis: str, entries: int) -> list[int]:
    """F R^r = R^r F on the axis, though not on the plane."""
    if axis == "none":
        return list(range(entries))
    return [4 * (mirror ^ self.is_mirrored) + (turn - self.quarters) % 4 for mirror in range(2) for turn in range(4)]


# For each group two elements, and what is wrong with them.
TWINS = [
    ("whole shifts", Shift(1, 2), Shift(3, -1), {"inverse": not_inverted}),
    ("whole shifts", Shift(1, 2), Shift(3, -1), {"after": lambda g, h: Shift(g.dy_px + h.dx_px, g.dx_px + h.dy_px)}),
    ("whole shifts", Shift(1, 2), Shift(3, -1), {"on_images": lambda g, x: x.roll((1, 1), (2, 3))}),
    ("fractional shifts, odd side", Shift(0.5, 0), Shift(1.25, 2), {"inverse": not_inverted}),
    ("crops", CropShift(1, 2), CropShift(-3, 1), {"inverse": not_inverted}),
    ("crops", CropShift(1, 2), CropShift(-3, 1), {"after": first_forgotten}),
    ("crops of a strided map", CropShift(1, 2), CropShift(-3, 1), {"inverse": not_inverted}),
    ("quarter turns", Turn(1), Turn(2), {"inverse": not_inverted}),
    ("quarter turns", Turn(1), Turn(2), {"on_features": axis_rolled_by_one}),
    ("flips", Turn(0, True), Turn(2, True), {"inverse": lambda g: Turn(0)}),
    (
        "d4",
        Turn(1, True),
        Turn(1),
        {"after": lambda g, h: Turn(g.quarters + h.quarters, g.is_mirrored ^ h.is_mirrored)},
    ),
    ("d4", Turn(1, True), Turn(1), {"_axis_sources": mirror_forgotten}),
    ("rotations", Rotation(10), Rotation(30), {"inverse": not_inverted}),
    ("rotations", Rotation(30), Rotation(10), {"after": first_forgotten}),
    ("scalings", Scale(1.1), Scale(0.9), {"inverse": not_inverted}),
    ("scalings", Scale(1.1), Scale(0.9), {"after": lambda g, h: Scale(g.factor + h.factor)}),
    ("shears", Shear(0.2), Shear(0.1), {"inverse": not_inverted}),
    ("shears", Shear(0.2), Shear(0.1), {"after": first_forgotten}),
    ("thirds of hue", Hue(120), Hue(240), {"inverse": not_inverted}),
    ("thirds of hue", Hue(120), Hue(120), {"after": first_forgotten}),
    ("hues", Hue(10), Hue(30), {"inverse": not_inverted}),
    ("hues", Hue(10), Hue(30), {"on_images": lambda g, x: Hue(g.angle_deg).on_images(x).clamp(0, 1)}),
]


@pytest.mark.parametrize(("name", "g", "h", "methods"), TWINS)
def test_a_broken_twin_breaks_a_law(name: str, g: Any, h: Any, methods: dict[str, Any]) -> None:
    found, allowed = worst(GROUPS[name], g, h)
    assert found <= allowed
    found, allowed = worst(GROUPS[name], broken(g, **methods), broken(h, **methods))
    assert found > max(2 * allowed, 1e-3)


def test_a_fourier_shift_of_white_noise_on_an_even_side_is_no_group() -> None:
    group = Group(st.nothing(), (Plain,))
    found, _ = worst(group, Shift(0.5, 0), Shift(0, 0))
    assert found > 1e-3


@pytest.mark.parametrize("name", GROUPS)
@given(data=st.data())
def test_its_action_on_features_is_linear_and_says_whether_it_permutes(name: str, data: st.DataObject) -> None:
    group = GROUPS[name]
    g = data.draw(group.elements)
    for layout in group.layouts:
        f = group.maps(layout)
        moved = g.on_features(f, layout)
        assert moved.shape == f.shape
        mixed = g.on_features(2 * f - f.flip(0), layout)
        torch.testing.assert_close(mixed, 2 * moved - moved.flip(0), atol=1e-12, rtol=0)
        if g.permutes(layout, group.side, group.side):
            assert torch.isin(moved, f).all()
            if g.visible(layout, group.side, group.side) is None:
                assert torch.equal(moved.flatten(2).sort().values, f.flatten(2).sort().values)
        elif g != g.after(g.inverse()):
            assert not torch.isin(moved, f).all()


LAYOUTS: list[tuple[Layout, tuple[int, ...], tuple[int, ...]]] = [
    (Grid(1), (2, 3, 4, 4), (2, 3, 1, 4, 4)),
    (Grid(1), (2, 3, 8, 4, 4), (2, 3, 8, 4, 4)),
    (Grid(1, channels_last=True), (2, 4, 4, 3), (2, 3, 1, 4, 4)),
    (Tokens(4, 2, 3, special=1), (2, 7, 5), (2, 5, 1, 2, 3)),
    (Vector(), (2, 9), (2, 9, 1, 1, 1)),
]


@pytest.mark.parametrize(("layout", "shape", "read"), LAYOUTS)
def test_layouts_read_what_they_declare_and_refuse_the_rest(
    layout: Layout, shape: tuple[int, ...], read: tuple[int, ...]
) -> None:
    output = torch.arange(float(np.prod(shape))).reshape(shape)
    assert layout.read(output).shape == read
    with pytest.raises(Infeasible, match="a layer declared as"):
        layout.read(output[0, 0])


def test_tokens_are_patches_in_row_major_order_without_the_special_ones() -> None:
    tokens = torch.arange(7.0).view(1, 7, 1)
    assert Tokens(4, 2, 3, special=1).read(tokens)[0, 0, 0].tolist() == [[1, 2, 3], [4, 5, 6]]

"""Group laws and the one resampling module: exact where exactness is promised, against a measured floor elsewhere."""

import numpy as np
import pytest
import torch
from fields import images, lowpass
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from equitune.errors import Infeasible
from equitune.groups.layout import Grid, Layout, Tokens, Vector
from equitune.groups.resample import affine, shift_circular, shift_each
from equitune.groups.translation import IDENTITY, Shift

settings.register_profile("fast", deadline=None, max_examples=25)
settings.load_profile("fast")

whole = st.builds(Shift, st.integers(-9, 9), st.integers(-9, 9))
fraction = st.builds(Shift, st.floats(-5, 5), st.floats(-5, 5))


def breaks_a_law(
    act: object, inverse: object, compose: object, g: Shift, h: Shift, x: Tensor, tolerance: float
) -> bool:
    """Whether identity, inverse or composition fails by more than the tolerance."""
    laws = [
        (act(IDENTITY, x), x),  # type: ignore[operator]
        (act(inverse(g), act(g, x)), x),  # type: ignore[operator]
        (act(compose(g, h), x), act(g, act(h, x))),  # type: ignore[operator]
    ]
    return any(float((left - right).abs().max()) > tolerance for left, right in laws)


@given(whole, whole)
def test_whole_shifts_are_a_group_exactly(g: Shift, h: Shift) -> None:
    x = images(2, 2, 8)
    assert not breaks_a_law(Shift.on_images, Shift.inverse, Shift.after, g, h, x, 0.0)


@given(fraction, fraction)
def test_fractional_shifts_are_a_group_below_the_nyquist_frequency(g: Shift, h: Shift) -> None:
    for x in (images(2, 2, 9), lowpass(images(2, 2, 8), 0.4)):  # an odd side has no Nyquist bin
        assert not breaks_a_law(Shift.on_images, Shift.inverse, Shift.after, g, h, x, 1e-11)


def test_broken_twins_fail_the_laws() -> None:
    x, g, h = images(2, 2, 8), Shift(1, 2), Shift(3, -1)
    good = (Shift.on_images, Shift.inverse, Shift.after)
    assert not breaks_a_law(*good, g, h, x, 0.0)
    assert breaks_a_law(good[0], lambda s: Shift(-s.dy_px, s.dx_px), good[2], g, h, x, 1e-3)
    assert breaks_a_law(good[0], good[1], lambda s, t: Shift(s.dy_px + t.dx_px, s.dx_px + t.dy_px), g, h, x, 1e-3)
    assert breaks_a_law(lambda s, im: im.roll((1, 1), (2, 3)), good[1], good[2], g, h, x, 1e-3)
    assert breaks_a_law(*good, Shift(0.5, 0), h, images(2, 2, 8, 0.0), 1e-3)  # white noise at an even side aliases


@given(whole)
def test_the_action_on_features_is_that_on_images_over_the_stride(g: Shift) -> None:
    maps = images(2, 6, 8).unflatten(1, (3, 2))
    moved = Shift(4 * g.dy_px, 4 * g.dx_px).on_features(maps, Grid(4))
    assert torch.equal(moved, maps.roll((int(g.dy_px), int(g.dx_px)), (-2, -1)))
    assert torch.equal(g.on_features(maps, Vector()), maps)


def test_which_actions_permute_positions() -> None:
    assert Shift(4, -8).permutes(Grid(4), 8, 8)
    assert not Shift(4, 2).permutes(Grid(4), 8, 8)
    assert Shift(1, 1).permutes(Vector(), 1, 1)


@pytest.mark.parametrize("side", [7, 8])
def test_a_fourier_shift_is_the_shift_of_each_sine(side: int) -> None:
    place = torch.arange(side, dtype=torch.float64)
    for cycles in range((side + 1) // 2):
        angle = 2 * torch.pi * cycles / side
        shifted = shift_circular(torch.sin(angle * place + 0.3), 0.37, 0)
        torch.testing.assert_close(shifted, torch.sin(angle * (place - 0.37) + 0.3), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("fill", "mode"), [("zero", "constant"), ("edge", "edge"), ("reflect", "symmetric"), ("circular", "wrap")]
)
def test_each_image_is_shifted_by_its_own_pixels(fill: str, mode: str) -> None:
    batch = images(5, 2, 6)
    shifts = torch.tensor([[0, 0], [1, -2], [-3, 3], [5, 0], [0, -5]])
    moved = shift_each(batch, shifts, fill=fill)  # type: ignore[arg-type]
    for image, (dy, dx), result in zip(batch.numpy(), shifts.tolist(), moved.numpy(), strict=True):
        padded = np.pad(image, ((0, 0), (5, 5), (5, 5)), mode=mode)  # type: ignore[call-overload]
        np.testing.assert_array_equal(result, padded[:, 5 - dy : 11 - dy, 5 - dx : 11 - dx])


def matrix(rows: list[list[float]], n: int) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).expand(n, 2, 3)


def test_affine_agrees_with_the_lattice_where_there_is_one() -> None:
    x = images(3, 2, 7)
    # Bilinear sampling at a pixel's centre, in float64: rounding of the grid's coordinates alone.
    for rows, expected in [
        ([[1, 0, 0], [0, 1, 0]], x),
        ([[0, -1, 0], [1, 0, 0]], x.rot90(1, (2, 3))),
        ([[-1, 0, 0], [0, 1, 0]], x.flip(3)),
    ]:
        torch.testing.assert_close(affine(x, matrix(rows, 3)), expected, atol=1e-12, rtol=0)
    moved = affine(x, matrix([[1, 0, 2], [0, 1, -1]], 3))  # takes its value from 2 to the right and 1 above
    torch.testing.assert_close(moved, shift_each(x, torch.tensor([[1, -2]] * 3)), atol=1e-12, rtol=0)


def test_affine_is_in_pixels_on_images_that_are_not_square() -> None:
    x = images(1, 1, 12)[:, :, :6]
    moved = affine(x, matrix([[1, 0, -1], [0, 1, -2]], 1))
    torch.testing.assert_close(moved, shift_each(x, torch.tensor([[2, 1]])), atol=1e-12, rtol=0)


def test_the_interpolation_floor_of_a_half_turn_and_back() -> None:
    # A bilinear round trip by 45 deg costs what the reference measured for 1/f images of 32 px (Pearson .948).
    x = images(64, 1, 32)
    turn = torch.tensor(np.pi / 4)
    there = affine(x, matrix([[turn.cos(), -turn.sin(), 0], [turn.sin(), turn.cos(), 0]], 64))
    back = affine(there, matrix([[turn.cos(), turn.sin(), 0], [-turn.sin(), turn.cos(), 0]], 64))
    axis = torch.arange(32) - 15.5
    disc = (axis[:, None] ** 2 + axis**2) <= 11**2
    pearson = torch.stack(
        [torch.corrcoef(torch.stack([a[0][disc], b[0][disc]]))[0, 1] for a, b in zip(x, back, strict=True)]
    )
    assert 0.9 < float(pearson.mean()) < 0.99


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

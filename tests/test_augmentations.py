"""The conformance suite of augmentations: a new file is tested before its author writes a test."""

import math

import pytest
import torch
from fields import images
from torch import Tensor

from equitune import catalog
from equitune.augmentations.color_jitter import hue_rotation

NAMES = catalog.names("augmentation")
INTERPOLATED = {"rotate", "scale", "crop", "color_jitter", "gaussian_noise"}
EXTRA = {"color_jitter": {"max_hue_deg": 60.0}, "rotate": {"max_deg": 60.0}, "translate": {"max_px": 3.0}}


def batch(n: int = 24, channels: int = 3, side: int = 12) -> Tensor:
    """Images in [0, 1], no two pixels alike."""
    field = images(n, channels, side, dtype=torch.float32)
    return (field - field.min()) / (field.max() - field.min())


def augmented(name: str, x: Tensor, seed: int = 0, **arguments: object) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return catalog.entry("augmentation", name)(x, generator, **(EXTRA.get(name, {}) | arguments))  # type: ignore[no-any-return]


def strength_of(name: str) -> str:
    return str(catalog.describe("augmentation", name).constants["STRENGTH"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 3])
def test_shape_dtype_range_and_input_are_kept(name: str, channels: int) -> None:
    x = batch(channels=channels)
    before = x.clone()
    result = augmented(name, x)
    assert (result.shape, result.dtype) == (x.shape, x.dtype)
    assert float(result.min()) >= 0
    assert float(result.max()) <= 1 + 1e-6
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", NAMES)
def test_something_happens_and_at_strength_zero_nothing(name: str) -> None:
    x = batch()
    assert not torch.equal(augmented(name, x), x)
    assert torch.equal(augmented(name, x, **{strength_of(name): 0}), x)


@pytest.mark.parametrize("name", NAMES)
def test_the_generator_decides_everything(name: str) -> None:
    x = batch()
    assert torch.equal(augmented(name, x), augmented(name, x))
    assert not torch.equal(augmented(name, x), augmented(name, x, seed=1))
    torch.manual_seed(5)
    first = augmented(name, x)
    torch.manual_seed(6)
    assert torch.equal(first, augmented(name, x))


@pytest.mark.parametrize("name", NAMES)
def test_images_of_a_batch_are_augmented_apart(name: str) -> None:
    same = batch(1).expand(64, -1, -1, -1).contiguous()
    result = augmented(name, same)
    assert not all(torch.equal(result[0], other) for other in result[1:])


@pytest.mark.parametrize("name", sorted(set(NAMES) - INTERPOLATED))
def test_exact_augmentations_invent_no_value(name: str) -> None:
    x = batch()
    assert set(augmented(name, x).flatten().tolist()) <= set(x.flatten().tolist()) | {0.0}


def test_translate_reaches_its_bound_and_no_further() -> None:
    x = torch.zeros(4000, 1, 9, 9)
    x[:, :, 4, 4] = 1
    place = augmented("translate", x, max_px=2.0)[:, 0].nonzero()[:, 1:] - 4
    assert place.abs().max() == 2
    counts = place[:, 0].add(2).bincount()
    # U(-2, 2) rounds to 0, +-1 with probability 1/4 each and to +-2 with 1/8; 4 sd of 4,000 draws.
    assert torch.allclose(
        counts / 4000, torch.tensor([0.125, 0.25, 0.25, 0.25, 0.125]), atol=4 * math.sqrt(0.19 / 4000)
    )
    assert torch.equal(augmented("translate", x, max_px=0.4), x)


def test_quarter_turns_are_exact_and_all_occur() -> None:
    x = batch(64)
    turned = augmented("rotate", x, max_deg=180.0, quarter_turns=True)
    seen = set()
    for image, result in zip(x, turned, strict=True):
        matches = [turns for turns in range(4) if torch.equal(image.rot90(turns, (1, 2)), result)]
        assert len(matches) == 1
        seen.add(matches[0])
    assert seen == {0, 1, 2, 3}


def test_rotation_is_counter_clockwise_about_the_centre() -> None:
    from equitune.groups.resample import affine

    x = batch(1, 1, 9)
    quarter = torch.tensor([[[0.0, -1, 0], [1, 0, 0]]])  # cos 90, -sin 90; sin 90, cos 90, as rotate builds it
    torch.testing.assert_close(affine(x, quarter), x.rot90(1, (2, 3)), atol=1e-5, rtol=0)


def test_hue_is_a_rotation_and_120_degrees_permute_the_channels() -> None:
    turns = hue_rotation(torch.tensor([0.0, 120.0, 240.0, 37.0], dtype=torch.float64))
    eye = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(turns[0], eye, atol=1e-12, rtol=0)
    torch.testing.assert_close(turns[1] @ turns[1], turns[2], atol=1e-12, rtol=0)
    torch.testing.assert_close(turns[1].abs().round(), turns[1].abs(), atol=1e-12, rtol=0)
    torch.testing.assert_close(turns[3] @ turns[3].T, eye, atol=1e-12, rtol=0)
    torch.testing.assert_close(turns[3].sum(1), torch.ones(3, dtype=torch.float64), atol=1e-12, rtol=0)  # grey stays


def test_a_crop_lies_inside_the_image() -> None:
    x = torch.ones(200, 1, 10, 10)
    torch.testing.assert_close(augmented("crop", x, max_area_loss=0.9), x)  # outside there would be an edge, not ones
    ramp = torch.linspace(0, 1, 10).expand(200, 1, 10, 10).contiguous()
    widths = augmented("crop", ramp, max_area_loss=0.5)
    assert float((widths[..., -1] - widths[..., 0]).min()) < 0.9


def test_cutout_covers_a_square_of_its_side() -> None:
    covered = (augmented("cutout", torch.ones(500, 1, 16, 16), side_px=4) == 0).sum((1, 2, 3))
    assert covered.max() == 16
    assert covered.min() >= 4


def test_noise_has_its_standard_deviation() -> None:
    x = torch.full((50, 1, 16, 16), 0.5)
    noise = augmented("gaussian_noise", x, std=0.05) - x
    assert float(noise.std()) == pytest.approx(0.05, rel=0.03)  # 12,800 draws know it to 0.6 %

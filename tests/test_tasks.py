"""Tasks of known symmetry: what is done to the images, what becomes of the labels, and who can tell what."""

import json
from typing import get_args

import numpy as np
import pytest

from equitune.config.trial import DataConfig
from equitune.data.labelled import LabelledImages
from equitune.data.splits import Splits, load_splits
from equitune.data.tasks import _TASKS, num_classes, with_task
from equitune.errors import UserError

TASKS = get_args(DataConfig.model_fields["task"].annotation)
NAMES = tuple(
    f"{digit} - {word}"
    for digit, word in enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
)


def invented(n: int = 240, side: int = 6, own_test: bool = False) -> LabelledImages:
    """Images without any symmetry, the index of each written into its first pixels."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (n, 1, side, side), np.uint8)
    labels = np.arange(n) % 10
    test = {"test_pixels": pixels[:40].copy(), "test_labels": labels[:40].copy()} if own_test else {}
    return LabelledImages(pixels, labels, NAMES, **test)  # type: ignore[arg-type]


def turned_back(image: np.ndarray, original: np.ndarray) -> list[int]:
    """By how many quarter turns counter-clockwise the original must be turned to give the image."""
    return [k for k in range(4) if np.array_equal(np.rot90(original, k, (1, 2)), image)]


def quarters(images: LabelledImages, originals: LabelledImages) -> np.ndarray:
    found = [turned_back(image, original) for image, original in zip(images.pixels, originals.pixels, strict=True)]
    assert all(len(turns) == 1 for turns in found)
    return np.array(found)[:, 0]


def test_every_task_of_a_study_is_made_here() -> None:
    assert set(TASKS) == {"class", *_TASKS}


def test_the_class_alone_changes_nothing() -> None:
    images = invented()
    assert with_task("class", images, 0) is images


@pytest.mark.parametrize("own_test", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_every_class_is_there_in_equal_numbers_and_the_same_again(task: str, own_test: bool) -> None:
    images = invented(own_test=own_test)
    first, again, other = (with_task(task, images, seed) for seed in (3, 3, 4))
    assert np.array_equal(first.pixels, again.pixels)
    assert np.array_equal(first.labels, again.labels)
    assert task == "class" or not np.array_equal(first.pixels, other.pixels)
    counts = np.bincount(first.labels)
    assert len(counts) == len(first.class_names) == len(set(first.class_names)) == num_classes(task, 10)
    assert set(counts) == {len(first.labels) // len(counts)}
    assert (first.pixels.dtype, first.labels.dtype) == (np.uint8, np.int64)
    assert first.pixels.shape[1:] == images.pixels.shape[1:]
    if own_test:
        assert first.test_labels is not None
        assert set(first.test_labels) == set(range(len(counts)))


def test_turned_images_keep_their_class() -> None:
    images = invented()
    made = with_task("turned", images, 0)
    assert np.array_equal(made.labels, images.labels)
    assert set(np.bincount(quarters(made, images))) == {60}
    assert made.class_names == images.class_names


def test_a_half_turn_is_told_by_the_label_and_by_nothing_else() -> None:
    images = invented()
    made = with_task("half_turn", images, 0)
    turns = quarters(made, images)
    assert set(turns) == {0, 2}
    assert np.array_equal(made.labels, 2 * images.labels + turns // 2)
    assert made.class_names[:2] == ("0 - zero", "0 - zero turned")
    # Who knows the class alone is right half of the time.
    assert best_guess(images.labels, made.labels) == 0.5


def test_the_axis_survives_half_turns_but_not_quarter_turns() -> None:
    images = invented()
    made = with_task("axis", images, 0)
    turns = quarters(made, images)
    assert np.array_equal(made.labels, 2 * images.labels + turns % 2)
    assert made.class_names[:2] == ("0 - zero upright", "0 - zero sideways")
    assert set(np.bincount(turns)) == {60}
    assert best_guess(images.labels, made.labels) == 0.5


def test_six_and_nine_are_what_they_read_as() -> None:
    images = invented()
    made = with_task("six_nine", images, 0)
    places = np.flatnonzero(np.isin(images.labels, (6, 9)))
    originals = LabelledImages(images.pixels[places], images.labels[places], NAMES)
    turns = quarters(made, originals) // 2
    assert made.class_names == ("6", "9")
    assert np.array_equal(made.labels, (originals.labels == 9) ^ (turns == 1))
    assert best_guess(originals.labels, made.labels) == 0.5  # the class says nothing
    assert best_guess(turns, made.labels) == 0.5  # the turn says nothing


def best_guess(known: np.ndarray, labels: np.ndarray) -> float:
    """The share of labels that who sees `known` alone can get right."""
    table = np.zeros((known.max() + 1, labels.max() + 1), int)
    np.add.at(table, (known, labels), 1)
    return float(table.max(1).sum() / len(labels))


@pytest.mark.parametrize("side", [6, 7])
def test_a_quadrant_holds_the_image_at_half_its_side(side: int) -> None:
    images = invented(side=side)
    made, twin = (with_task(task, images, 0) for task in ("quadrant", "placed"))
    assert np.array_equal(made.pixels, twin.pixels)
    assert np.array_equal(twin.labels, images.labels)
    assert np.array_equal(made.labels // 4, images.labels)
    assert made.class_names[:4] == tuple(
        f"0 - zero {place}" for place in ("top left", "top right", "bottom left", "bottom right")
    )
    assert best_guess(images.labels, made.labels) == 0.25
    for image, original, quadrant in zip(made.pixels, images.pixels, made.labels % 4, strict=True):
        canvas = np.zeros((2 * side, 2 * side))
        row, column = divmod(quadrant, 2)
        canvas[row * side : (row + 1) * side, column * side : (column + 1) * side] = original[0]
        means = canvas.reshape(side, 2, side, 2).mean((1, 3))
        assert np.abs(image[0] - means).max() <= 0.5


def test_data_without_a_six_are_refused_in_a_sentence() -> None:
    shirts = LabelledImages(np.zeros((4, 1, 6, 6), np.uint8), np.arange(4) % 2, ("T-shirt/top", "Trouser"))
    with pytest.raises(
        UserError, match=r"^data.task: six_nine takes images of the classes 6 and 9, but these data have"
    ):
        with_task("six_nine", shirts, 0)


def digits(**values: object) -> Splits:
    return load_splits(DataConfig(name="digits", args={"size": 16}, **values))  # type: ignore[arg-type]


@pytest.mark.parametrize("task", TASKS)
def test_every_split_has_every_class_of_a_task(task: str) -> None:
    splits = digits(task=task)
    for part in (splits.train, splits.validation, splits.test):
        assert set(part.labels) == set(range(len(splits.class_names)))
    assert splits.shape == (1, 16, 16)


def test_the_numbers_of_a_study_without_a_task_are_those_of_before() -> None:
    assert digits().fingerprint == digits(task="class").fingerprint == "faa6c908f040a560"
    assert digits(task="turned").fingerprint != digits().fingerprint


def test_a_recorded_configuration_without_a_task_is_readable() -> None:
    old = DataConfig().model_dump(mode="json")
    assert old.pop("task") == "class"
    assert DataConfig.model_validate_json(json.dumps(old)) == DataConfig()


def test_what_the_seed_of_the_split_decides() -> None:
    assert digits(task="turned", split_seed=1).fingerprint != digits(task="turned").fingerprint

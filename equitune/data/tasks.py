"""Tasks whose symmetry is known: images are turned or placed, and what was done may become part of the label.

Each class is dealt over the turns or places in equal numbers, from a seed, before the data are divided. A network that
cannot tell an image from its moved copy can at best know the class; docs/study.md says what that leaves to it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from equitune.data.files import Files, Pixels
from equitune.data.labelled import LabelledImages, Labels
from equitune.errors import UserError

Names = tuple[str, ...]
_CHUNK = 4096  # images at a time on the large canvas


@dataclass(frozen=True)
class Task:
    """One way to make a task of labelled images.

    Attributes:
        ways: how many things may be done to an image.
        done: does the things of these numbers (N,) to pixels (N, C, H, W).
        labelled: a class and a thing done to the new label, both (N,).
        named: the names of the new classes.
    """

    ways: int
    done: "Callable[[Pixels, Labels], Pixels]"
    labelled: "Callable[[Labels, Labels], Labels]" = lambda classes, things: classes
    named: Callable[[Names], Names] = lambda names: names


def with_task(task: str, images: "LabelledImages", seed: int) -> "LabelledImages":
    """Return the images and labels of a task; `class` leaves them as they are.

    Raises:
        UserError: the task is one of classes that these data do not have.
    """
    if task == "class":
        return images
    if task == "six_nine":
        images = _only_six_and_nine(images)
    of = _TASKS[task]
    pixels, labels = _made(of, images.pixels, images.labels, np.random.default_rng([seed, 0]))
    found = replace(images, pixels=pixels, labels=labels, class_names=of.named(images.class_names))
    if images.test_pixels is None or images.test_labels is None:
        return found
    pixels, labels = _made(of, images.test_pixels, images.test_labels, np.random.default_rng([seed, 1]))
    return replace(found, test_pixels=pixels, test_labels=labels)


def num_classes(task: str, classes: int) -> int:
    """How many classes a task makes of so many."""
    if task == "class":
        return classes
    return len(_TASKS[task].named(("",) * (2 if task == "six_nine" else classes)))


def _made(task: Task, pixels: Pixels | Files, labels: "Labels", rng: np.random.Generator) -> "tuple[Pixels, Labels]":
    things = _dealt(labels, task.ways, rng)
    return task.done(_in_memory(pixels), things), task.labelled(labels, things)


def _in_memory(pixels: Pixels | Files) -> Pixels:
    if isinstance(pixels, Files):
        raise UserError("data.task: another task than class is made of images in memory: leave data.stream out")
    return pixels


def _dealt(labels: "Labels", ways: int, rng: np.random.Generator) -> "Labels":
    """Return a number below `ways` for each image, as often as any other within its class."""
    dealt = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        dealt[rng.permutation(places)] = np.arange(len(places)) % ways
    return dealt


def _quarter_turned(pixels: Pixels, quarters: "Labels") -> Pixels:
    """Each image, turned counter-clockwise by its own number of quarter turns."""
    turned = np.empty_like(pixels)
    for quarter in range(4):
        turned[quarters == quarter] = np.rot90(pixels[quarters == quarter], quarter, (2, 3))
    return turned


def _half_turned(pixels: Pixels, halves: "Labels") -> Pixels:
    return _quarter_turned(pixels, 2 * halves)


def _in_quadrant(pixels: Pixels, quadrants: "Labels") -> Pixels:
    """Each image in its quadrant of an empty canvas twice the side, whose 2 x 2 pixels are then averaged to one."""
    n, channels, height, width = pixels.shape
    placed = np.empty_like(pixels)
    for start in range(0, n, _CHUNK):
        part = pixels[start : start + _CHUNK]
        canvas = np.zeros((len(part), channels, 2, height, 2, width), np.uint8)
        rows, columns = np.divmod(quadrants[start : start + _CHUNK], 2)
        canvas[np.arange(len(part)), :, rows, :, columns] = part
        blocks = canvas.reshape(len(part), channels, height, 2, width, 2)
        placed[start : start + _CHUNK] = (blocks.sum((3, 5), dtype=np.uint16) + 2) // 4
    return placed


def _by_class(ways: int) -> "Callable[[Labels, Labels], Labels]":
    return lambda classes, things: ways * classes + things % ways


def _names(*suffixes: str) -> Callable[[Names], Names]:
    return lambda names: tuple(f"{name} {suffix}".strip() for name in names for suffix in suffixes)


def _only_six_and_nine(images: "LabelledImages") -> "LabelledImages":
    """Return the images of the digits 6 and 9, as classes 0 and 1."""
    digits = [name.split()[0] if name else "" for name in images.class_names]
    if "6" not in digits or "9" not in digits:
        raise UserError(
            f"data.task: six_nine takes images of the classes 6 and 9, but these data have {', '.join(digits[:10])}: "
            "half_turn is its like for any classes"
        )
    six, nine = digits.index("6"), digits.index("9")

    def kept(pixels: Pixels | Files, labels: "Labels") -> "tuple[Pixels, Labels]":
        index = (labels == six) | (labels == nine)
        return _in_memory(pixels)[index], (labels[index] == nine).astype(np.int64)

    pixels, labels = kept(images.pixels, images.labels)
    found = replace(images, pixels=pixels, labels=labels, class_names=("6", "9"))
    if images.test_pixels is None or images.test_labels is None:
        return found
    pixels, labels = kept(images.test_pixels, images.test_labels)
    return replace(found, test_pixels=pixels, test_labels=labels)


_TASKS: dict[str, Task] = {
    "turned": Task(4, _quarter_turned),
    "half_turn": Task(2, _half_turned, _by_class(2), _names("", "turned")),
    "axis": Task(4, _quarter_turned, _by_class(2), _names("upright", "sideways")),
    # What it reads as: a turned 6 is a 9. Whoever knows the class alone, or the turn alone, knows nothing of it.
    "six_nine": Task(2, _half_turned, lambda classes, things: classes ^ things),
    "quadrant": Task(4, _in_quadrant, _by_class(4), _names("top left", "top right", "bottom left", "bottom right")),
    "placed": Task(4, _in_quadrant),
}

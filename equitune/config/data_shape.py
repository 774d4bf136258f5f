"""What a network must fit of its data: the shape of the images and the number of classes, as one value."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DataShape:
    """Of a data set, or of what a trial sees of it.

    Attributes:
        image: (C, H, W) of each image.
        classes: how many scores an image gets.
    """

    image: tuple[int, int, int]
    classes: int

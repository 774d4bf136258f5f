"""MNIST: 70,000 handwritten digits of 28 x 28 in grey, with a test split of their own."""

from pathlib import Path

from equitune.data.labelled import LabelledImages
from equitune.data.torchvision import download_torchvision, load_torchvision

SHAPE = (1, 28, 28)
CLASSES = 10
FOLDER = "MNIST/raw"  # below the data root


def load(root: Path) -> LabelledImages:
    return load_torchvision("mnist", "MNIST", root)


def download(root: Path) -> None:
    download_torchvision("MNIST", root)

"""CIFAR-10: 60,000 photographs of 32 x 32 in colour, in 10 classes, with a test split of their own."""

from pathlib import Path

from equitune.data.labelled import LabelledImages
from equitune.data.torchvision import download_torchvision, load_torchvision

SHAPE = (3, 32, 32)
CLASSES = 10
FOLDER = "cifar-10-batches-py"  # below the data root


def load(root: Path) -> LabelledImages:
    return load_torchvision("cifar10", "CIFAR10", root)


def download(root: Path) -> None:
    download_torchvision("CIFAR10", root)

"""CIFAR-100: 60,000 photographs of 32 x 32 in colour, in 100 classes, with a test split of their own."""

from pathlib import Path

from equitune.data.labelled import LabelledImages
from equitune.data.torchvision import download_torchvision, load_torchvision

SHAPE = (3, 32, 32)
CLASSES = 100
FOLDER = "cifar-100-python"  # below the data root


def load(root: Path) -> LabelledImages:
    return load_torchvision("cifar100", "CIFAR100", root)


def download(root: Path) -> None:
    download_torchvision("CIFAR100", root)

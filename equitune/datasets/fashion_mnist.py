"""Fashion-MNIST: 70,000 articles of clothing of 28 x 28 in grey, with a test split of their own."""

from pathlib import Path

from equitune.data.labelled import LabelledImages
from equitune.data.torchvision import download_torchvision, load_torchvision

SHAPE = (1, 28, 28)
CLASSES = 10
FOLDER = "FashionMNIST/raw"  # below the data root


def load(root: Path) -> LabelledImages:
    return load_torchvision("fashion_mnist", "FashionMNIST", root)


def download(root: Path) -> None:
    download_torchvision("FashionMNIST", root)

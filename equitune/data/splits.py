"""Labelled images as arrays, and their seeded, stratified division into training, validation and test."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from equitune import catalog
from equitune.config.address import store_address
from equitune.config.data_shape import DataShape
from equitune.config.trial import DataConfig, TrialConfig
from equitune.data.cache import Say, Source, is_url, on_node
from equitune.data.decoders import close_decoders, decoders, usable_cores
from equitune.data.files import Files, Pixels, counted, histogram
from equitune.data.labelled import LabelledImages, Labels
from equitune.data.tasks import num_classes, with_task
from equitune.errors import UserError


@dataclass(frozen=True)
class Split:
    """One part of the data."""

    pixels: Pixels | Files  # (N, C, H, W)
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Splits:
    """A study's data: loaded once, shared by all workers."""

    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    mean: tuple[float, ...]  # of the training pixels, per channel, in [0, 1]
    std: tuple[float, ...]
    fingerprint: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.train.pixels.shape
        return channels, height, width

    @property
    def data_shape(self) -> DataShape:
        """The shape of the images with the number of classes."""
        return DataShape(self.shape, len(self.class_names))


def data_root(config: DataConfig) -> str:
    """Where data sets lie, a folder or a URL: the study's `data.root`, EQUITUNE_DATA (`--data-root`), or ./data."""
    root = config.root or os.environ.get("EQUITUNE_DATA") or "data"
    store_address(root, "the data root")
    return root if is_url(root) else os.path.expanduser(root)


def declared_shape(config: DataConfig) -> DataShape:
    """Return the shape (C, H, W) of a data set's images and the number of its classes, without loading any.

    A folder's classes are not counted; ten stand for them.
    """
    constants = catalog.describe("dataset", config.name).constants
    channels, side, _ = constants["SHAPE"]
    side = config.args.get("size", side)
    classes = num_classes(config.task, constants.get("CLASSES", 10))
    return DataShape((1 if config.args.get("grey") else channels, side, side), classes)


def load_splits(config: DataConfig, say: Say = lambda sentence: None) -> Splits:
    """Load and divide a data set; the same configuration gives the same division, wherever it runs.

    Args:
        config: which data, and how they are divided.
        say: is told what takes long, a sentence at a time.

    Raises:
        UserError: the data are missing, cannot be reached or are corrupt, or are too few for the splits.
    """
    try:
        return _divided(with_task(config.task, _loaded(config, say), config.split_seed), config)
    finally:
        close_decoders()  # this process has no more use for them, unless it trains


def _divided(whole: LabelledImages, config: DataConfig) -> Splits:
    everything = np.arange(len(whole.labels))
    if config.limit is not None and config.limit < len(everything):
        everything = _divide(whole.labels, everything, config.limit, config.split_seed)[1]
    if whole.test_pixels is None or whole.test_labels is None:
        rest, test = _divide(whole.labels, everything, config.test, config.split_seed)
        test_split = Split(whole.pixels[test], whole.labels[test])
    else:
        rest, test_split = everything, Split(whole.test_pixels, whole.test_labels)
    train, validation = _divide(whole.labels, rest, config.validation, config.split_seed)
    train_split, validation_split = (Split(whole.pixels[index], whole.labels[index]) for index in (train, validation))
    splits = (train_split, validation_split, test_split)
    counts = _histogram(train_split.pixels)
    of_all = fingerprint(*splits, sample=counts if isinstance(train_split.pixels, Files) else None)
    return Splits(*splits, whole.class_names, *moments_of(counts), of_all)


def _loaded(config: DataConfig, say: Say) -> LabelledImages:
    """Return the data set, from where it lies or from this node's copy of it."""
    root, args = data_root(config), dict(config.args)
    if not is_url(root) and Path(root).exists() and not Path(root).is_dir():
        raise UserError(f"the data root is a folder, but {root} is a file: name another with --data-root")
    local = Path(root)
    if folder := catalog.describe("dataset", config.name).constants.get("FOLDER"):
        local = on_node(Source(root, folder), say)[0].parents[len(Path(folder).parts) - 1]
    sources: dict[str, Source] = {}
    for argument in ("path", "test_path"):
        if folder := args.get(argument):
            source = Source(root if is_url(root) else os.path.abspath(root), folder)
            place, stamp = on_node(source, say)
            args[argument], sources[argument] = str(place), replace(source, stamp=stamp)
    images: LabelledImages = catalog.entry("dataset", config.name)(local, **args)
    pixels, test_pixels = images.pixels, images.test_pixels
    if isinstance(pixels, Files):  # another node finds them by their source
        images = replace(images, pixels=replace(pixels, source=sources["path"]))
    if isinstance(test_pixels, Files):
        images = replace(images, test_pixels=replace(test_pixels, source=sources["test_path"]))
    return images


def fingerprint(*splits: Split, sample: npt.NDArray[np.int64] | None = None) -> str:
    """Return a hash of the pixels and labels; of files, of their names, their sizes and the histogram of a sample."""
    digest = hashlib.blake2b(b"" if sample is None else sample.tobytes(), digest_size=8)
    for split in splits:
        pixels = split.pixels
        digest.update(pixels.digest() if isinstance(pixels, Files) else np.ascontiguousarray(pixels).data)
        digest.update(split.labels.tobytes())
    return digest.hexdigest()


def _divide(labels: Labels, index: npt.NDArray[np.int64], size: float, seed: int) -> tuple[Labels, Labels]:
    """Divides an index in two, classes in equal proportions; `size`, of the second, is a fraction or a count."""
    from sklearn.model_selection import train_test_split  # a second to import

    try:
        first, second = train_test_split(index, test_size=size, stratify=labels[index], random_state=seed)
    except ValueError as error:
        raise UserError(
            f"{len(index)} images cannot be divided at {size} with every class in both parts: {error}"
        ) from None
    return np.sort(first), np.sort(second)


def _histogram(pixels: Pixels | Files) -> npt.NDArray[np.int64]:
    if not isinstance(pixels, Files):
        return counted(pixels)
    return histogram(pixels, pixels.fetch(), decoders(usable_cores()), lambda seen: seen)


def moments(pixels: Pixels) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, of values in [0, 1]."""
    return moments_of(counted(pixels))


def moments_of(counts: npt.NDArray[np.int64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, of values in [0, 1]: exact, from counts (C, 256) of the 256 values."""
    values = np.arange(256) / 255
    mean, std = [], []
    for channel in counts:
        weights = channel / channel.sum()
        mean.append(float(weights @ values))
        std.append(max(float(np.sqrt(weights @ (values - mean[-1]) ** 2)), 1e-6))
    return tuple(mean), tuple(std)


def recorded_data(config: TrialConfig, study: Mapping[str, Any]) -> Splits:
    """Return the data that a trial was trained on.

    Args:
        config: the trial's.
        study: what study.json holds.

    Raises:
        UserError: they are missing, or others than the study began on.
    """
    splits = load_splits(config.data)
    known = study.get("data_fingerprint")
    if known not in (None, splits.fingerprint):
        raise UserError(
            f"{config.study}/{config.number} was trained on other data named {config.data.name} ({known}, here "
            f"{splits.fingerprint}): restore them, or name their folder with --data-root"
        )
    return splits

"""The images that models are measured on: a split of a data set, or all of a folder."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from equitune import catalog
from equitune.config.call import checked_call, parsed
from equitune.config.trial import DataConfig, InputConfig
from equitune.data.split import move, split_at_size
from equitune.data.splits import Split, fingerprint, load_splits
from equitune.datasets.imagefolder import load_folder
from equitune.errors import UserError

SplitName = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Images:
    """Images in memory, and where they are from."""

    name: str
    split_name: SplitName
    split: Split
    classes: int | None  # None: the images have no labels
    fingerprint: str
    config: DataConfig | None = None  # of a data set, wherever it lies

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.split.pixels.shape
        return channels, height, width

    def at_size(self, given: InputConfig) -> "Images":
        """Return the images as a trial sees them; the very same where they have its size already."""
        here = move(self.split, "cpu")
        seen = split_at_size(here, given)
        if seen is here:
            return self
        split = Split(seen.pixels.numpy(), self.split.labels)
        return replace(self, split=split, fingerprint=fingerprint(split))


def load_images(text: str, split: SplitName, size: int | None) -> Images:
    """Return the images that a text names.

    Args:
        text: a data set of the catalogue, `NAME[:KEY=VALUE,...]`, or a folder of images.
        split: of a data set; a folder is taken whole.
        size: the side in pixels that a folder's images are resized to; None: 224.

    Raises:
        UserError: there is no such data set or folder, or it cannot be read.
    """
    if text.partition(":")[0] in catalog.names("dataset"):  # a folder of that name is ./NAME
        if size is not None:
            raise UserError(f"--size is for folders of images: {text} has a size of its own")
        where = f"--data {text}"
        call = checked_call("dataset", *parsed(text, where), where)
        return split_of(DataConfig(name=call.name, args=call.args), split)
    if not Path(text).is_dir():
        raise UserError(f"--data: {catalog.unknown('data set or folder', text, catalog.names('dataset'))}")
    if split != "test":
        raise UserError(f"--split is for data sets: the folder {text} is taken whole")
    folder = load_folder(Path(text), size or 224)
    whole = Split(folder.pixels, folder.labels)
    return Images(text, "test", whole, len(folder.class_names) or None, fingerprint(whole))


def split_of(config: DataConfig, split: SplitName) -> Images:
    """Return a split of a study's data."""
    splits = load_splits(config)
    chosen: Split = getattr(splits, split)
    anywhere = config.model_copy(update={"root": None})
    return Images(config.name, split, chosen, len(splits.class_names), fingerprint(chosen), anywhere)

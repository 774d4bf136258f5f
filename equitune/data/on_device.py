"""A study's data on the device that trains."""

from dataclasses import dataclass

from equitune.config.data_shape import DataShape
from equitune.data.split import AnySplit, move
from equitune.data.splits import Splits


@dataclass(frozen=True)
class DeviceData:
    """A study's training and validation data on a device; a worker moves them there once."""

    train: AnySplit
    validation: AnySplit
    data_shape: DataShape
    mean: tuple[float, ...]
    std: tuple[float, ...]


def to_device(splits: Splits, device: str, processes: int | None = None) -> DeviceData:
    """Move training and validation data; on the CPU nothing is copied. The test split stays where it is.

    Args:
        splits: the study's data.
        device: where they are wanted.
        processes: that decode images which stay in files; None: as many as there are cores.

    Raises:
        UserError: the files cannot be had.
    """
    return DeviceData(
        train=move(splits.train, device, processes),
        validation=move(splits.validation, device, processes),
        data_shape=splits.data_shape,
        mean=splits.mean,
        std=splits.std,
    )

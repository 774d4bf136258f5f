"""The side of images as an axis of a study: data are loaded once, and a trial sees them at its own size."""

from dataclasses import replace

from equitune.config.data_shape import DataShape
from equitune.config.trial import InputConfig
from equitune.data.on_device import DeviceData
from equitune.data.split import split_at_size


def at_size(data: DeviceData, given: InputConfig) -> DeviceData:
    """Return the data as a trial sees them; the very same where they have its size already.

    Mean and deviation are those of the resized training pixels: what the network is given has mean 0 and deviation 1
    at every size, as if the data had been of that size from the start.
    """
    shape = DataShape(given.shape_of(data.data_shape.image), data.data_shape.classes)
    if shape == data.data_shape:
        return data
    train, validation = (split_at_size(split, given) for split in (data.train, data.validation))
    mean, std = train.moments()
    return replace(data, train=train, validation=validation, data_shape=shape, mean=mean, std=std)

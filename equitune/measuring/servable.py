"""The networks of a study as somebody serves them, who knows arrays and no torch."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from equitune.data.splits import Splits, recorded_data
from equitune.measuring.export import trained
from equitune.records.folder import StudyFolder
from equitune.records.info import read_info
from equitune.records.reader import TrialRecord

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Servable:
    """A network, and real images with the scores that it gives them."""

    model: nn.Module  # in eval mode on the CPU: images (B, C, H, W) in [0, 1] -> class scores (B, classes)
    images: Array  # (B, C, H, W) with B >= 2, of the validation split
    scores: Array  # (B, classes)


def loader(folder: StudyFolder) -> Callable[[TrialRecord], Servable]:
    """Return what loads a trial's network of a study. The data are loaded with the first.

    It raises UserError where the data are missing or others, or the trial has no weights.
    """
    known: list[Splits] = []

    def load(record: TrialRecord) -> Servable:
        if not known:
            known.append(recorded_data(record.config, read_info(folder.study)))
        model, images = trained(record, folder.trial(record.number), known[0])
        with torch.inference_mode():
            scores = model(images)
        return Servable(model, images.numpy(), scores.numpy())

    return load

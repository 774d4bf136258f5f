"""What a trial measures on its way, so that early stopping can compare it with others: cheap, and without a trace.

Accuracy and loss are those of the epoch's own evaluation, costs are known; only what a measure declares costs time,
and it is taken on few images, the same ones in every trial, without the untrained control.
"""

import logging
import math
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from equitune import catalog
from equitune.config.objectives import declared_metrics
from equitune.config.trial import TrialConfig
from equitune.evaluation.image_set import EvaluationSet
from equitune.networks.cost import Cost
from equitune.results.values import Epoch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rungs:
    """The rungs of one trial.

    Attributes:
        config: of the trial; names the rungs and the metrics.
        images: held-out images, of which each measure sees `config.rung_images`.
        cost: of the trial's network.
    """

    config: TrialConfig
    images: EvaluationSet
    cost: Cost

    def metrics(self, model: nn.Module, epoch: Epoch, seconds: float) -> dict[str, float]:
        """Return the metrics of `config.rung_metrics` that have a value; nothing where the epoch is no rung.

        Args:
            model: as it is after the epoch. Neither it nor the stream of random numbers is changed.
            epoch: what is recorded of the epoch.
            seconds: of training so far.
        """
        if epoch.epoch not in self.config.rungs:
            return {}
        known = {"accuracy": epoch.validation_accuracy, "loss": epoch.validation_loss, "seconds": seconds}
        known |= {"parameters": self.cost.parameters, "multiply_adds": self.cost.multiply_adds}
        with undisturbed(self.images.device):
            found = known | self._measured(model)
        return {name: found[name] for name in self.config.rung_metrics if math.isfinite(found.get(name, math.nan))}

    def _measured(self, model: nn.Module) -> dict[str, float]:
        images = few_of_each(self.images, self.config.rung_images)
        found: dict[str, float] = {}
        for call in self.config.measures:
            if declared_metrics((call,)).keys().isdisjoint(self.config.rung_metrics):
                continue
            try:
                report = catalog.entry("measure", call.name)(model, None, images, **call.args)
            except Exception:  # the trial trains on: the whole measurement after training says what is wrong
                log.warning("measure %s gave nothing at a rung", call.name, exc_info=True)
                continue
            found |= {name: metric.value for name, metric in report.metrics.items() if metric.value is not None}
        return found


def undisturbed(device: torch.device) -> AbstractContextManager[None]:
    """Within it random numbers may be drawn; afterwards their stream goes on as if none had been."""
    return torch.random.fork_rng([torch.cuda.current_device()] if device.type == "cuda" else [])


def few_of_each(images: EvaluationSet, most: int) -> EvaluationSet:
    """At most so many of the images, each class in its proportion; the same ones for every model."""
    if most >= len(images):
        return images
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    places = _places_within_class(images.labels.cpu()[order])
    return images.subset(order[places.argsort(stable=True)[:most]].sort().values)


def _places_within_class(labels: Tensor) -> Tensor:
    """Where each label (n,) stands among its equals, from 0 for the first to 1 for the last."""
    counts = labels.bincount()
    by_class = labels.argsort(stable=True)
    firsts = counts.cumsum(0) - counts
    places = torch.empty(len(labels))
    places[by_class] = (torch.arange(len(labels)) - firsts[labels[by_class]] + 0.5) / counts[labels[by_class]]
    return places

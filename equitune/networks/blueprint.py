"""A configuration's network, described once without weights and then built.

The description is one network on torch's meta device. It answers what a trial wants to know before it computes: its
cost, its exactness and the memory of its training. Learned amounts are numbers of weights: they are not known here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import torch
from torch import nn

from equitune.config.data_shape import DataShape
from equitune.config.trial import TrialConfig
from equitune.data.on_device import DeviceData
from equitune.layers.meta import on_meta
from equitune.networks.build import build_model, chosen_width, configured, count_parameters, with_width
from equitune.networks.cost import Cost, multiply_adds
from equitune.networks.exact import Exactness, predict_exact
from equitune.networks.memory import Footprint, footprint_of

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Blueprint:
    """One network: what is known of it, and how it is built. Make it with `describe`.

    Only `build` draws random numbers; each answer is found once, and leaves the stream of random numbers as it was.

    Attributes:
        config: the trial's.
        data_shape: of the data set, which `config.input` may resize.
        network: without weights, on the meta device; on the CPU where it cannot be built there.
    """

    config: TrialConfig
    data_shape: DataShape
    network: nn.Module = field(repr=False)

    @property
    def image(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of the images that the network sees."""
        return self.config.input.shape_of(self.data_shape.image)

    @property
    def parameters(self) -> int:
        """The number of trainable weights."""
        return count_parameters(self.network)

    @cached_property
    def cost(self) -> Cost:
        """The size and the multiply-adds; the network runs once, without numbers."""
        steps = self._ask(lambda network: multiply_adds(network, (1, *self.image)))
        return Cost(self.parameters, steps, chosen_width(self.config, self.network))

    @cached_property
    def exactness(self) -> dict[str, Exactness]:
        """Each symmetry, and whether the network commutes with it at random weights.

        Of `translation_substride`, shifts by any number of pixels, only the class scores are judged. `hue` is left out
        where images have not three channels.
        """
        return self._ask(lambda network: predict_exact(self.config, network, self.image))

    @cached_property
    def footprint(self) -> Footprint:
        """The memory that training holds at its peak."""
        return self._ask(lambda network: footprint_of(network, self.image, self.config.training))

    def build(self, data: DeviceData) -> nn.Module:
        """Make the network with its initial weights, which depend on the trial's seed alone, and place it.

        Args:
            data: of this blueprint's shape, resized or not; their mean and deviation normalise the images.
        """
        return build_model(with_width(self.config, self.network), data)

    def _ask(self, question: Callable[[nn.Module], Answer]) -> Answer:
        """Ask the network without weights, and one with weights on the CPU where the answer needs numbers."""
        network = self.network
        device = next((tensor.device for tensor in (*network.parameters(), *network.buffers())), torch.device("cpu"))
        with torch.random.fork_rng(devices=[]):
            if device.type == "meta":
                try:
                    with device:
                        return question(network)
                except (NotImplementedError, RuntimeError):
                    network = self._on_cpu
            with torch.device("cpu"):
                return question(network)

    @cached_property
    def _on_cpu(self) -> nn.Module:
        with torch.device("cpu"):
            return configured(self.config, self.data_shape)


def describe(config: TrialConfig, data_shape: DataShape) -> Blueprint:
    """Build a configuration's network without weights, and without a trace in the stream of random numbers.

    Args:
        config: the trial's.
        data_shape: of the data set, before `config.input` resizes it.

    Raises:
        Infeasible: no such network can exist for these data.
    """
    with torch.random.fork_rng(devices=[]):
        return Blueprint(config, data_shape, on_meta(lambda: configured(config, data_shape)))

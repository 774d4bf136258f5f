"""What each trial asks Ray for: by the size of its network, or by the memory that it is predicted to need."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from equitune.config.data_shape import DataShape
from equitune.config.resources import PARTS_OF_A_GPU, Resources, gpu_of
from equitune.config.trial import TrialConfig
from equitune.data.files import Files
from equitune.data.splits import Splits
from equitune.errors import Infeasible, UserError
from equitune.networks.blueprint import describe
from equitune.networks.memory import CONTEXT_GIB, GIB, SLACK, WORKSPACE_GIB
from equitune.records.checked import DamagedError
from equitune.records.folder import StudyFolder
from equitune.records.place import place_of
from equitune.records.reader import read_trial

if TYPE_CHECKING:
    from ray.tune import PlacementGroupFactory

RECENT = 20  # ended trials whose measured peaks correct the prediction


@dataclass(frozen=True)
class Request:
    """What one trial asks for."""

    cpu: float
    gpu: float
    memory_gib: float | None = None  # the most it may allocate; None: its share of the GPU's memory
    workers: int = 1  # processes that train it together, each with an equal part of the rest

    @property
    def bundle(self) -> dict[str, float]:
        """What it occupies, all on one machine: its workers exchange every gradient, and are lost together."""
        return {name: amount for name, amount in (("CPU", self.cpu), ("GPU", self.gpu)) if amount}


def request_of(resources: Resources, parameters: int) -> Request:
    """Return what a trial asks for whose network has so many parameters: as the largest size that it reaches says.

    Where the GPU is `auto`, the smallest share.
    """
    cpu, memory_gib, workers = resources.cpu, resources.gpu_memory_gib, resources.workers
    gpu = gpu_of(resources)
    for size in resources.sizes:
        if parameters >= size.parameters:
            cpu = resources.cpu if size.cpu is None else size.cpu
            gpu = gpu_of(resources) if size.gpu is None else size.gpu
            memory_gib = resources.gpu_memory_gib if size.gpu_memory_gib is None else size.gpu_memory_gib
            workers = resources.workers if size.workers is None else size.workers
    return Request(cpu, gpu, memory_gib, int(gpu) if gpu > 1 else workers)


def request_for(config: TrialConfig, resources: Resources, data_shape: DataShape) -> Request:
    """Return what a trial asks for, a GPU's share at `auto` aside; a network that cannot exist ends at
    once: the least.
    """

    try:
        parameters = describe(config, data_shape).parameters if resources.sizes else 0
    except Infeasible:
        parameters = 0  # it ends at once
    return request_of(resources, parameters)


def requests(resources: Resources) -> Iterator[tuple[str, Request]]:
    """Every request that a study's trials may make, with the place in the file that says so."""
    yield "resources", request_of(resources, 0)
    for index, size in enumerate(resources.sizes):
        yield f"resources.sizes.{index}", request_of(resources, math.ceil(size.parameters))


def share(needed_gib: float, device_gib: float) -> float:
    """Return the share of a GPU for so much memory, rounded up; all of it where even that is too little."""
    return min(math.ceil(needed_gib / device_gib * PARTS_OF_A_GPU - 1e-9), PARTS_OF_A_GPU) / PARTS_OF_A_GPU


def correction(peaks: Iterable[tuple[float, float]]) -> float:
    """Return what predictions are multiplied by: the largest ratio of a measured peak to its
    prediction; 1 without any.
    """
    return max((measured / predicted for measured, predicted in peaks), default=1.0)


def require_memory(resources: Resources, device_gib: float) -> None:
    """Refuses what no GPU of this memory can give.

    Raises:
        UserError: there is no GPU, a cap is above its memory, or a share is less than CUDA itself takes.
    """

    if device_gib == 0:
        raise UserError("resources.gpu: Ray counts GPUs here, but torch sees none: install torch with CUDA")
    for place, request in requests(resources):
        if request.memory_gib is not None and request.memory_gib > device_gib:
            raise UserError(
                f"{place}.gpu_memory_gib: a trial may take {request.memory_gib:g} GiB, but the GPU has "
                f"{device_gib:.1f}: lower it"
            )
        if request.memory_gib is None and request.gpu < 1 and request.gpu * device_gib <= CONTEXT_GIB:
            if resources.gpu == "auto":
                continue  # a trial gets as many parts as it needs
            raise UserError(
                f"{place}.gpu: {request.gpu:g} of a GPU of {device_gib:.1f} GiB is no more than CUDA itself takes "
                f"({CONTEXT_GIB:g} GiB): give a trial more"
            )


class Placement:
    """What Tune asks for each of its trials, from what the searcher proposes.

    Tune pickles it, so that its state is lost: what has ended is read from the study's folder.

    Args:
        resources: the study's.
        folder: the study's.
        splits: its data, of which shape, classes and size count.
        device_gib: the memory of a GPU, where the share follows from it.
    """

    def __init__(self, resources: Resources, folder: StudyFolder, splits: Splits, device_gib: float = 0.0) -> None:
        self._resources, self._path, self._device_gib = resources, folder.path, device_gib
        self._data_shape = splits.data_shape
        on_device = (split for split in (splits.train, splits.validation) if not isinstance(split.pixels, Files))
        self._images = sum(map(len, on_device))

    def __call__(self, proposed: dict[str, Any]) -> "PlacementGroupFactory":
        request = self.request(TrialConfig.from_json_text(_text_of(proposed))) if proposed else Request(1, 0)
        return placement_of(request)

    def request(self, config: TrialConfig) -> Request:
        """Return what a trial asks for; of a network that cannot exist the least, for it ends at once."""
        request = request_for(config, self._resources, self._data_shape)
        if self._resources.gpu != "auto":
            return request
        try:
            return Request(request.cpu, share(self.needed_gib(config), self._device_gib))
        except Infeasible:
            return request

    def needed_gib(self, config: TrialConfig) -> float:
        """Return the memory that a trial needs of its GPU, as predicted and corrected by those that ended last."""

        peaks = [(peak, self.predicted_gib(ended)) for ended, peak in self._measured(config.number)]
        return CONTEXT_GIB + SLACK * correction(peaks) * self.predicted_gib(config)

    def predicted_gib(self, config: TrialConfig) -> float:
        """Return what torch will allocate for a trial at its peak, the data on the GPU included."""

        key = (str(self._path), config.number)
        if key not in _predicted:
            shape = self._data_shape.image
            sides = {shape, config.input.shape_of(shape)}  # resized images lie beside the others
            data = self._images * sum(math.prod(side) for side in sides) + 8 * self._images * len(sides)
            _predicted[key] = (describe(config, self._data_shape).footprint.total + data) / GIB + WORKSPACE_GIB
        return _predicted[key]

    def _measured(self, before: int) -> list[tuple[TrialConfig, float]]:
        """Return the last trials with a measured peak, in GiB, before the trial of that number."""
        found: list[tuple[TrialConfig, float]] = []
        for number in range(before - 1, max(before - 1 - 4 * RECENT, -1), -1):
            folder = StudyFolder(self._path).trial(number)
            if folder.result.exists() and len(found) < RECENT:
                try:
                    record = read_trial(folder, brief=True)
                except DamagedError:
                    continue
                peak = record.result.provenance.get("peak_memory_mib") if record.result else None
                if peak is not None:
                    found.append((record.config, float(peak) / 1024))
        return found


def placement_of(request: Request) -> "PlacementGroupFactory":
    """One bundle, however many workers train in it: Ray gives all of it at once, or nothing."""
    from ray.tune import PlacementGroupFactory

    return PlacementGroupFactory([request.bundle])


_predicted: dict[tuple[str, int], float] = {}  # (study's folder, trial) -> GiB, as long as the process


def _text_of(proposed: dict[str, Any]) -> str:
    """Return the configuration of what the searcher proposes: a trial, or the test of a finished one."""
    text = proposed.get("trial")
    return str(text) if text else (place_of(proposed["folder"]) / "config.json").read_text(encoding="utf-8")

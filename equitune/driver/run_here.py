"""A trial in this process: its data are moved to the device once a worker, and its messages go to its own file."""

import contextlib
import functools
import gc
import logging
from collections.abc import Callable
from typing import Any

from equitune.config.trial import TrialConfig
from equitune.data.files import Files
from equitune.data.on_device import to_device
from equitune.data.resize import at_size
from equitune.data.splits import Splits
from equitune.networks.device import is_out_of_memory, require_sound
from equitune.records.folder import TrialFolder, write_json
from equitune.records.on_disk import kept
from equitune.results.values import Epoch, TrialResult
from equitune.training.ranks import ALONE, Ranks
from equitune.training.run import run_trial

MOST_SIZES = 4  # that are kept on the device beside the data as they are


_on_device: dict[tuple[str, str], dict[Any, Any]] = {}  # (fingerprint, device) -> shape -> data, as long as the worker


def device_data(splits: Splits, config: TrialConfig, cpus: float = 1) -> Any:
    """Return the data as a trial sees them, on its device: moved there once a process, which has so many cores, and
    resized once a size.
    """

    key = (splits.fingerprint, config.device)
    if key not in _on_device:
        _on_device.clear()
        _on_device[key] = {splits.shape: to_device(splits, config.device, _processes(splits, cpus))}
    by_shape = _on_device[key]
    shape = config.input.shape_of(splits.shape)
    if shape not in by_shape:
        for oldest in list(by_shape)[1 : 1 - MOST_SIZES]:  # before the resized one's memory is taken
            del by_shape[oldest]
        by_shape[shape] = at_size(by_shape[splits.shape], config.input)
    return by_shape[shape]


def _processes(splits: Splits, cpus: float) -> int:
    """Return how many processes decode images that stay in files: one for each core."""
    return max(1, int(cpus)) if isinstance(splits.train.pixels, Files) else 0


def run_here(
    config: TrialConfig,
    splits: Splits,
    folder: TrialFolder,
    on_epoch: Callable[[Epoch], None],
    cpus: float,
    ranks: "Ranks | None" = None,
) -> TrialResult:
    """Trains and measures a trial in this process, which has so many cores, alone or as the first of its ranks.

    Raises:
        WorkerLost: the device or another rank has gone.
    """

    gc.collect()
    _spare_modules()
    with _logging_to(folder):
        try:
            data = device_data(splits, config, cpus)
        except Exception as error:
            require_sound(config.device, error)
            if not is_out_of_memory(error):
                raise
            reason = f"out of memory: its share of the GPU does not hold the data: {error}"
            result = TrialResult(number=config.number, state="INFEASIBLE", reason=reason, cause="out_of_memory")
            write_json(folder.result, result.model_dump(mode="json"))
            return result
        return run_trial(config, data, folder=folder, on_epoch=on_epoch, ranks=ranks or ALONE)


@functools.cache
def _spare_modules() -> None:
    """Take what has been imported out of every later collection: walking through all of torch lasts 0.2 s a trial.

    Once a worker: what a trial leaves behind must stay collectable.
    """
    gc.freeze()


@contextlib.contextmanager
def _logging_to(folder: TrialFolder) -> Any:
    """Warnings, log records and prints of a trial go to its own file."""
    logging.captureWarnings(True)
    with kept(folder.log, folder.is_held) as path, path.open("a", encoding="utf-8", buffering=1) as file:
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
        logging.getLogger().addHandler(handler)
        try:
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                yield
        finally:
            logging.getLogger().removeHandler(handler)

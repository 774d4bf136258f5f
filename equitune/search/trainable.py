"""What a warm Ray Tune worker does with one trial after another. Its data are mapped, and moved to the device, once."""

import contextlib
import errno
import functools
import gc
import json
import logging
from pathlib import Path
from typing import Any

from ray import tune

from equitune.datasets._splits import Splits
from equitune.records.folder import TrialFolder
from equitune.records.results import Epoch, TrialResult
from equitune.spec.trial import TrialConfig

_on_device: dict[tuple[str, str], Any] = {}  # (fingerprint, device) -> data, kept for the life of the worker


def trainable(config: dict[str, Any], splits: Splits) -> None:
    """Runs what the searcher proposed: a trial, whose epochs and result it reports, or the test of a finished one."""
    folder = TrialFolder(Path(config["folder"]))
    if config.get("test"):
        tune.report({"test": _test(folder, splits)})
        return
    if folder.result.exists():  # only the telling was lost
        tune.report({"result": folder.result.read_text()})
        return
    try:
        with _logging_to(folder.log):
            result = _run(TrialConfig.from_json_text(config["trial"]), splits, folder)
        tune.report({"result": result.model_dump_json()})
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full: free some space" if full else f"cannot be written ({error.strerror}): mend that"
        tune.report({"halt": f"{folder.path}: {what} and run the same command again; nothing is lost"})


def device_data(splits: Splits, device: str) -> Any:
    """The study's data on a device, moved there by the first trial of this worker."""
    from equitune.trial.build import to_device

    key = (splits.fingerprint, device)
    if key not in _on_device:
        _on_device.clear()
        _on_device[key] = to_device(splits, device)
    return _on_device[key]


def _test(folder: TrialFolder, splits: Splits) -> str:
    """Measures a finished trial on the test split; its metrics as JSON."""
    from equitune.trial.test import measure_on_test

    config = TrialConfig.from_json_text(folder.config.read_text())
    with _logging_to(folder.log):
        metrics = measure_on_test(config, folder, splits)
    return json.dumps({name: metric.model_dump(mode="json") for name, metric in metrics.items()})


def _run(config: TrialConfig, splits: Splits, folder: TrialFolder) -> TrialResult:
    import torch

    from equitune.trial.run import run_trial

    gc.collect()
    _spare_modules()
    if config.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def report(epoch: Epoch) -> None:
        tune.report({"epoch": epoch.epoch})

    return run_trial(config, device_data(splits, config.device), folder=folder, on_epoch=report)


@functools.cache
def _spare_modules() -> None:
    """Takes what has been imported out of every later collection: walking through all of torch lasts 0.2 s a trial.

    Once a worker: what a trial leaves behind must stay collectable.
    """
    gc.freeze()


@contextlib.contextmanager
def _logging_to(path: Path) -> Any:
    """Warnings, log records and prints of a trial go to its own file."""
    logging.captureWarnings(True)
    with path.open("a", encoding="utf-8", buffering=1) as file:
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
        logging.getLogger().addHandler(handler)
        try:
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                yield
        finally:
            logging.getLogger().removeHandler(handler)

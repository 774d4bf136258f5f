"""What a warm Ray Tune worker does with one trial after another. Its data are mapped, and moved to the device, once."""

import contextlib
import errno
import functools
import gc
import json
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray import tune

from equitune.config.resources import Resources
from equitune.config.trial import TrialConfig
from equitune.data.files import Files
from equitune.data.splits import Splits
from equitune.driver.machines import is_leaving
from equitune.driver.resources import Request, request_for
from equitune.errors import GivenUp, StoreError, TakenOver, UserError, WorkerLost
from equitune.records.durable import rewrite
from equitune.records.folder import TrialFolder, write_json
from equitune.records.on_disk import kept
from equitune.records.place import place_of
from equitune.results.values import Epoch, TrialResult

if TYPE_CHECKING:
    from equitune.training.ranks import Ranks

SINGLE = Request(cpu=1, gpu=0)
MOST_SIZES = 4  # that are kept on the device beside the data as they are
_on_device: dict[tuple[str, str], dict[Any, Any]] = {}  # (fingerprint, device) -> shape -> data, as long as the worker


def trainable(
    config: dict[str, Any], splits: Splits, resources: Resources, token: str, shared: tuple[Any, ...] = ()
) -> None:
    """Run what the searcher proposed: a trial, whose epochs and result it reports, or the test of a finished one.

    It writes nothing once another driver has the study, or another worker the trial. Where trials have several workers,
    `shared` holds Ray's reference to the data.

    Raises:
        WorkerLost: the device or another worker of the trial has gone, or this machine soon will: Tune ends this
            process, and the trial goes on in another.
    """
    if is_leaving():
        raise WorkerLost("this machine is being drained: the trial begins on another")
    try:
        _work(config, splits, resources, token, shared)
    except StoreError as error:
        tune.report({"halt": f"{error}, and run the same command again; nothing is lost"})


def _work(config: dict[str, Any], splits: Splits, resources: Resources, token: str, shared: tuple[Any, ...]) -> None:
    folder = TrialFolder(place_of(config["folder"], is_known=True), token=token)
    trial = TrialConfig.from_json_text(config.get("trial") or folder.config.read_text())
    request = request_for(trial, resources, splits.data_shape)
    if config.get("test"):
        _cap_memory(trial, request)
        tune.report({"test": _test(folder, splits, request.cpu)})
        return
    if folder.result.exists():  # only the telling was lost
        rewrite(folder.result)
        tune.report({"result": folder.result.read_text()})
        return
    try:
        folder.claim()
        result = _run(trial, splits, folder, request, shared)
        tune.report({"result": result.model_dump_json()})
    except GivenUp:
        return  # whoever has the trial now reports it
    except TakenOver as error:
        tune.report({"halt": f"{folder.path.parent.parent}: {error.strerror}"})
    except StoreError:
        raise
    except WorkerLost:
        raise  # Tune ends this process, and the trial goes on in another
    except UserError as error:  # the data cannot be had on this node
        tune.report({"halt": str(error)})
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full: free some space" if full else f"cannot be written ({error.strerror}): mend that"
        tune.report({"halt": f"{folder.path}: {what} and run the same command again; nothing is lost"})


def device_data(splits: Splits, config: TrialConfig, cpus: float = 1) -> Any:
    """Return the data as a trial sees them, on its device: moved there once a process, which has so many cores, and
    resized once a size.
    """
    from equitune.data.resize import at_size
    from equitune.networks.build import to_device

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


def _test(folder: TrialFolder, splits: Splits, cpus: float) -> str:
    """Measures a finished trial on the test split; its metrics as JSON."""
    from equitune.training.test_split import measure_on_test

    config = TrialConfig.from_json_text(folder.config.read_text())
    with _logging_to(folder):
        metrics = measure_on_test(config, folder, splits, _processes(splits, cpus))
    return json.dumps({name: metric.model_dump(mode="json") for name, metric in metrics.items()})


def _run(
    config: TrialConfig,
    splits: Splits,
    folder: TrialFolder,
    request: Request = SINGLE,
    shared: tuple[Any, ...] = (),
) -> TrialResult:
    def report(epoch: Epoch) -> None:
        tune.report({"epoch": epoch.epoch, "metrics": json.dumps(epoch.metrics)})

    if request.workers > 1:
        from equitune.driver.team import train_together

        return train_together(config, folder, shared[0], request, report)
    _cap_memory(config, request)
    return run_here(config, splits, folder, report, request.cpu)


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
    from equitune.networks.device import is_out_of_memory, require_sound
    from equitune.training.ranks import ALONE
    from equitune.training.run import run_trial

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


def _cap_memory(config: TrialConfig, request: Request) -> None:
    """Limits what a trial may allocate on its GPU; what the one before has left behind in a warm worker is freed."""
    if config.device != "cuda":
        return
    import torch

    from equitune.networks.memory import cap_memory

    gc.collect()
    torch.cuda.empty_cache()
    granted = tune.get_context().get_trial_resources().required_resources.get("GPU", 0.0)
    cap_memory(granted, request.memory_gib)


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

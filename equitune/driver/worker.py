"""What a warm Ray Tune worker does with one trial after another. Its data are mapped, and moved to the device, once."""

import errno
import json
from typing import Any

from ray import tune

from equitune.config.resources import Resources
from equitune.config.trial import TrialConfig
from equitune.data.splits import Splits
from equitune.driver.machines import is_leaving
from equitune.driver.resources import Request, request_for
from equitune.driver.run_here import _logging_to, _processes, run_here
from equitune.driver.team import train_together
from equitune.errors import GivenUp, StoreError, TakenOver, UserError, WorkerLost
from equitune.networks.memory import cap_memory, free_memory
from equitune.records.durable import rewrite
from equitune.records.folder import TrialFolder
from equitune.records.place import place_of
from equitune.results.values import Epoch, TrialResult
from equitune.training.test_split import measure_on_test

SINGLE = Request(cpu=1, gpu=0)


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


def _test(folder: TrialFolder, splits: Splits, cpus: float) -> str:
    """Measures a finished trial on the test split; its metrics as JSON."""

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
        return train_together(config, folder, shared[0], request, report)
    _cap_memory(config, request)
    return run_here(config, splits, folder, report, request.cpu)


def _cap_memory(config: TrialConfig, request: Request) -> None:
    """Limits what a trial may allocate on its GPU; what the one before has left behind in a warm worker is freed."""
    if config.device != "cuda":
        return

    free_memory()
    granted = tune.get_context().get_trial_resources().required_resources.get("GPU", 0.0)
    cap_memory(granted, request.memory_gib)

"""A trial that trains in several processes: a run of Ray Train, on the machine where the trial has its place.

The trial is one request to Ray, that of its Tune worker, which holds all of it and trains nothing: it begins when all
of it is free, and the autoscaler sees what it waits for. Train (V2, Ray 2.60) reserves a placement group beside Tune's.
If that asked for cores, two trials on two of them would wait for each other for ever; so it asks for a sliver of this
machine, which is always free. Where a Tune worker is killed, that stays until the driver ends (ray-project/ray#54305),
or until Train's cleaner sees it, for which Ray needs its dashboard: no core, no GPU, and a process of 0.1 GiB.

The ranks meet in a store of the Tune worker. There the first one leaves its epochs, too, and waits for Tune's answer:
a trial that is stopped has trained no further. `ray.train.report` does not wait, and all ranks would have to call it.
"""

import errno
import itertools
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError

from equitune.config.trial import TrialConfig
from equitune.driver.resources import Request
from equitune.driver.run_here import device_data, run_here
from equitune.errors import GivenUp, UserError, WorkerLost
from equitune.networks.memory import cap_memory
from equitune.records.durable import remove
from equitune.records.folder import TrialFolder, write_json
from equitune.results.values import Epoch, TrialResult
from equitune.training.ranks import Ranks, meeting, met
from equitune.training.run import train_along

LOOK_S = 0.05  # between two looks for an epoch
GRACE_S = 5.0  # a lost connection waits so long for the reason that another rank may have to tell
SLIVER = 0.0001  # of a machine: Ray counts no finer
ENVIRONMENT = {  # what Ray reads where a run begins
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "30",  # that Tune gives a stopped trial to end, before it ends its worker
}


class Ended(Exception):
    """A rank tells how the trial has ended; Train ends the others. Its text is a TrialResult."""


def train_together(
    config: TrialConfig,
    folder: TrialFolder,
    splits: "ray.ObjectRef[Any]",
    request: Request,
    on_epoch: Callable[[Epoch], None],
) -> TrialResult:
    """Trains and measures a trial in as many processes as it asked for; each has a GPU, or its part of the cores.

    Args:
        config: the trial's.
        folder: the trial's, which this process has claimed; the first rank writes.
        splits: the study's data, in Ray's object store.
        request: what the trial asked for.
        on_epoch: is told each epoch, before the next begins.

    Raises:
        WorkerLost: a rank has died, or its device has.
        OSError, UserError: the first rank's, which are not the trial's fault.
    """

    store = meeting()
    train = partial(train_rank, config, folder, splits, request, ray.get_gpu_ids(), store.port)
    folder_of_train = tempfile.TemporaryDirectory(prefix="equitune-", ignore_cleanup_errors=True)
    with folder_of_train as place, ThreadPoolExecutor(1) as thread:
        run = thread.submit(trainer_of(train, request.workers, place).fit)
        _hand_on(store, run, on_epoch)
    return _outcome(run, folder)


def trainer_of(train: Callable[[], Any], workers: int, place: str) -> Any:
    """Ray Train, which calls a function in so many processes of this machine, and keeps its files in a folder.

    Not its TorchTrainer, which would make the process group itself: on a store that listens to all machines.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    os.environ.update(ENVIRONMENT)
    scaling = ScalingConfig(
        num_workers=workers,
        resources_per_worker={f"node:{ray.util.get_node_ip_address()}": SLIVER},
        label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},
    )
    never = FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0)  # Tune tries again
    running = RunConfig(name="ranks", storage_path=place, failure_config=never)
    return DataParallelTrainer(train, scaling_config=scaling, run_config=running)


def _hand_on(store: Any, run: "Future[Any]", on_epoch: Callable[[Epoch], None]) -> None:
    """Hands on the epochs of the first rank, which goes on where `on_epoch` returns, and else ends the run."""
    heard = 0
    try:
        while not run.done():
            if not store.check([f"epoch {heard}"]):
                wait([run], LOOK_S)
                continue
            on_epoch(Epoch.model_validate_json(store.get(f"epoch {heard}")))
            store.set(f"answer {heard}", "on")
            heard += 1
    finally:
        store.set(f"answer {heard}", "end")


def _outcome(run: "Future[Any]", folder: TrialFolder) -> TrialResult:
    """Return the result that the first rank gave back, or that another one knew of; the errors of `train_together`."""
    from ray.train import TrainingFailedError, WorkerGroupError

    try:
        return TrialResult.model_validate_json(run.result().return_value)
    except WorkerGroupError as error:
        failures = error.worker_failures
        if verdicts := [str(failure) for failure in failures.values() if isinstance(failure, Ended)]:
            return _recorded(TrialResult.model_validate_json(verdicts[0]), folder)
        if isinstance(failures.get(0), OSError | UserError):
            raise failures[0] from None
        raise WorkerLost(f"another worker of the trial has gone: {next(iter(failures.values()))}") from None
    except (TrainingFailedError, RayError) as error:
        raise WorkerLost(f"the workers of the trial have gone: {error}") from None


def _recorded(result: TrialResult, folder: TrialFolder) -> TrialResult:
    """Return what another rank than the first tells is written here; by the first, it stands there."""
    if not folder.result.exists():
        folder.require_held()
        write_json(folder.result, result.model_dump(mode="json"))
        remove(folder.checkpoint)
    return result


def train_rank(
    config: TrialConfig,
    folder: TrialFolder,
    splits: "ray.ObjectRef[Any]",
    request: Request,
    gpus: list[int],
    port: int,
) -> str | None:
    """Return what each process of a run does; the first one gives back the result of a trial that is complete.

    Raises:
        Ended: the trial has ended otherwise.
        WorkerLost: this rank's device or another rank has gone.
    """
    number = own_rank(gpus)

    if config.device == "cuda":
        cap_memory(1.0, request.memory_gib)
    store, told = met(port), itertools.count()

    def tell(epoch: Epoch) -> None:
        store.set(f"epoch {(now := next(told))}", epoch.model_dump_json())
        if store.get(f"answer {now}") != b"on":
            raise GivenUp(errno.ESTALE, "the trial has been stopped", str(folder.path))

    ranks = Ranks(number, request.workers, lambda: met(port))
    data, cpus = ray.get(splits), request.cpu / request.workers
    result: TrialResult | None
    try:
        if number == 0:
            result = run_here(config, data, folder, tell, cpus, ranks)
            if result.state == "COMPLETE":
                return result.model_dump_json()
        else:
            result = train_along(config, lambda: device_data(data, config, cpus), ranks)
    except WorkerLost:
        time.sleep(GRACE_S)
        raise
    if result:
        raise Ended(result.model_dump_json())
    return None


def own_rank(gpus: list[int]) -> int:
    """Return the number of this rank, which from now on sees its own of the trial's GPUs; torch must not have looked
    yet.
    """
    from ray.train import get_context

    number = int(get_context().get_world_rank())
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpus[number])
    return number

"""Ray: started for a study and ended with it, or joined where the user has one. Its chatter goes to the log."""

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from equitune.config.resources import Resources
from equitune.driver.machines import require_machines, waited_for
from equitune.driver.ray_files import TEMPORARY, own_folder
from equitune.driver.ray_thread import RayWatch
from equitune.driver.resources import Request, requests
from equitune.errors import UserError
from equitune.networks.memory import device_gib


@dataclass(frozen=True)
class Slots:
    """How many trials run at once."""

    concurrent: int
    cpus: float
    gpus: float


@contextmanager
def connected(
    resources: Resources,
    address: str | None,
    say: Callable[[str], None] = lambda sentence: None,
    watch: RayWatch | None = None,
) -> Iterator[Slots]:
    """Return a Ray cluster while the block runs: the one at `address`, else a local one on loopback, ended afterwards.

    One that starts machines by need is first waited for, which `say` is told. `watch` hears how far Ray is.

    Raises:
        UserError: the cluster does not answer, or cannot hold one trial.
    """
    import ray
    import ray.tune

    for name in ("ray", "ray.tune"):  # Ray gives its loggers handlers of their own; its records belong in the log
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True
    logging.getLogger("ray.tune.analysis").setLevel(logging.ERROR)  # it misses the files that Tune is told not to write
    watch = watch or RayWatch(address)
    with _options(address) as options:
        try:
            ray.init(configure_logging=False, log_to_driver=False, **options)
        except Exception as error:  # Ray has no kind of its own for what hinders its start
            where = f"reached at {address}" if address else "started on this machine"
            raise UserError(watch.lost() or f"Ray cannot be {where}: {error}") from None
        try:
            watch.connected()
            if address is not None:
                require_machines(resources, say)
            yield slots(resources, ray.cluster_resources(), may_grow=address is not None)
        except UserError:
            raise
        except Exception as error:
            if sentence := watch.lost():  # Ray's library has seen it first
                watch.leave()
                raise UserError(sentence) from error
            raise
        finally:
            watch.is_ending = True
            if not watch.is_left:  # with a GCS that is dead it would wait for a minute, and then end the process
                with _no_collection(), watch.ending_processes():
                    ray.shutdown()


@contextmanager
def _no_collection() -> Iterator[None]:
    """Collect no garbage while the block runs: a reference to one of Ray's objects that any thread of the program frees
    while Ray's library shuts down ends the process, with code 1.
    """
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def _options(address: str | None) -> Iterator[dict[str, Any]]:
    """Return what `ray.init` is told: of a local Ray all but its object store lies in a folder of its own."""
    if address is not None:
        yield {"address": address}
        return
    with own_folder() as folder:
        yield {
            "address": "local",
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
            "object_store_memory": 300_000_000,
            "_temp_dir": str(folder / TEMPORARY),  # Ray opens this one to everybody
        }


def slots(resources: Resources, available: dict[str, float], may_grow: bool = False) -> Slots:
    """As many trials as fit if all were of the smallest kind, or as `concurrent` allows; where machines may join, as
    many as `concurrent` says.

    Raises:
        UserError: not even one of each kind fits.
    """
    cpus, gpus = available.get("CPU", 0.0), available.get("GPU", 0.0)
    if resources.gpu == "auto" and gpus < 1:
        raise UserError(
            "resources.gpu: auto shares GPUs among trials, but there is none: run with `--set resources.gpu=0`, "
            "or on a cluster that has them (--address)"
        )
    most = 0
    for place, request in requests(resources):
        if request.gpu > gpus:
            raise UserError(
                f"{place}.gpu: a trial asks for {request.gpu:g} GPU, but there are {gpus:g}: "
                "run with `--set resources.gpu=0`, or on a cluster that has them (--address)"
            )
        if request.cpu > cpus:
            raise UserError(
                f"{place}.cpu: a trial asks for {request.cpu:g} CPUs, but there are {cpus:g}: ask for fewer"
            )
        most = max(most, _fitting(request, cpus, gpus))
    concurrent = resources.concurrent or most
    return Slots(concurrent if may_grow else min(most, concurrent), cpus, gpus)


def gpu_memory_gib(say: Callable[[str], None], is_over: Callable[[], bool]) -> float | None:
    """Return the memory of a GPU of the cluster, in GiB, as a worker that has one sees it; 0 where torch sees none.

    It asks by a placement group, as trials do: other studies see that it waits. None: `is_over` before it has one.
    """
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    with waited_for({"GPU": 0.01}, say, is_over) as group:
        if group is None:
            return None
        there = PlacementGroupSchedulingStrategy(placement_group=group)
        task = ray.remote(num_cpus=0, num_gpus=0.01, scheduling_strategy=there)(device_gib)
        return float(ray.get(task.remote()))


def _fitting(request: Request, cpus: float, gpus: float) -> int:
    """How many trials of this request run at once; one never lies on two GPUs unless it asks for whole ones."""
    fits = int(cpus // request.cpu)
    if request.gpu:
        parts = int(gpus // request.gpu) if request.gpu >= 1 else int(gpus) * int(1 / request.gpu + 1e-9)
        fits = min(fits, parts)
    return fits

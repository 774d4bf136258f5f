"""The machines that a cluster starts by need: it is asked for what a study's trials occupy, before the first begins."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from equitune.config.resources import Resources
from equitune.driver.resources import Request, requests
from equitune.errors import UserError
from equitune.search.sharing import KINDS, Cluster, Place

MOST_S = 1800.0  # for a machine to come up: its boot, and the pull of an image of some GB
LOOK_EVERY_S = 0.5
TOLD_AFTER_S = 5.0  # a place that is had by then was not waited for
ANSWER_S = 2.0  # that a worker waits for the head before it begins a trial
JOB_DIGITS = 8  # of a placement group's id, at its end: the program that asked for it
ASK = "ask for less, or give the cluster such machines"

log = logging.getLogger(__name__)


def require_machines(
    resources: Resources, say: Callable[[str], None] = lambda sentence: None, most_s: float = MOST_S
) -> None:
    """Sees to it that the cluster has a machine for each kind of trial of a study; waits for those it has to start.

    Where a group of machines stands at zero, Ray counts none of their GPUs, and only a request shows what could be
    had: a placement group of a trial's size, which the autoscaler (version 2) grants or calls infeasible.

    Args:
        resources: the study's.
        say: is told that the study waits, and for what.
        most_s: to wait, in seconds.

    Raises:
        UserError: no machine has so much and none that has it can be started, or none came up in time.
    """
    up = _machines()
    missing = {place: request for place, request in requests(resources) if not fits(request, up)}
    if not missing:
        return
    if not _scales():
        for place, request in missing.items():
            raise UserError(
                f"{place}: a trial asks for {_named(request)}, but no machine of the cluster has that: {ASK}"
            )
    say(f"waiting for machines: {'; '.join(_named(request) for request in missing.values())} for a trial")
    limit = time.monotonic() + most_s
    with _asked(missing) as groups:
        while groups:
            groups = {place: group for place, group in groups.items() if not group.wait(0)}
            refused = _infeasible()
            for place, group in groups.items():
                wanted = f"{place}: a trial asks for {_named(missing[place])}, but"
                if group.id.hex() in refused:
                    raise UserError(f"{wanted} the cluster has no machine with that and can start none: {ASK}")
                if time.monotonic() > limit:
                    raise UserError(
                        f"{wanted} no machine with that came up within {most_s / 60:.0f} minutes: `ray status` on the "
                        "cluster says why; the same command goes on"
                    )
            time.sleep(LOOK_EVERY_S if groups else 0)
    if resources.concurrent is None:
        say("as many trials run at once as fit now: resources.concurrent lets the cluster grow further")


def _named(request: Request) -> str:
    """Return what a trial asks for, in words."""
    cpus = f"{request.cpu:g} CPU{'s' if request.cpu != 1 else ''}"
    return f"{cpus} and {request.gpu:g} GPU{'s' if request.gpu > 1 else ''}" if request.gpu else cpus


def fits(request: Request, machines: Iterable[dict[str, float]]) -> bool:
    """Whether a trial has a place on one of some machines, which do nothing else."""
    asked = request.bundle.items()
    return any(all(has.get(resource, 0) >= amount for resource, amount in asked) for has in machines)


def _machines() -> list[dict[str, float]]:
    """Return what each machine has that is up."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _scales() -> bool:
    """Whether the cluster's autoscaler is of version 2, which says what is infeasible."""
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    return bool(is_autoscaler_v2(fetch_from_server=True))


@contextmanager
def _asked(missing: dict[str, Request]) -> Iterator[dict[str, Any]]:
    """Return a place for one trial of each kind; given back at the end, for the trials to take."""
    from ray.util.placement_group import placement_group, remove_placement_group

    groups = {place: placement_group([request.bundle]) for place, request in missing.items()}
    try:
        yield groups
    finally:
        for group in groups.values():
            remove_placement_group(group)


@contextmanager
def waited_for(bundle: dict[str, float], say: Callable[[str], None], is_over: Callable[[], bool]) -> Iterator[Any]:
    """Return a place of this size for as long as the block runs, waited for as long as it takes; None where `is_over`
    before.

    `say` is told that it is waited for, and who has what.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    group = placement_group([bundle])
    try:
        has_place = group.wait(TOLD_AFTER_S)
        if not has_place:
            say(f"waiting for a place: others have {look_at_cluster().taken_by_others() or 'what is needed'}")
        while not (has_place or is_over()):
            has_place = group.wait(LOOK_EVERY_S)
        yield group if has_place else None
    finally:
        remove_placement_group(group)


def _infeasible() -> set[str]:
    """Return the placement groups for which the autoscaler has no machine and can start none."""
    from ray._private.worker import global_worker
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    status = GetClusterStatusReply.FromString(global_worker.gcs_client.get_cluster_status())
    asked = status.autoscaling_state.infeasible_gang_resource_requests
    return {request.details.partition(":")[0] for request in asked}  # "the group's id:strategy|state"


def is_leaving() -> bool:
    """Whether the machine of this worker is being drained: it takes no new worker, but a warm one would go on there.

    No, where Ray's head does not say so in time: it may be away, and trials go on without it.
    """
    import ray
    from ray._private.worker import global_worker

    try:
        leaving = global_worker.gcs_client.get_draining_nodes(timeout=ANSWER_S)
    except Exception:
        log.warning("Ray does not say which machines are being drained", exc_info=True)
        return False
    return ray.get_runtime_context().get_node_id() in leaving


def look_at_cluster() -> Cluster:
    """Return who holds which part of the cluster, and who waits: a request to Ray's head, of some milliseconds."""
    import ray
    from ray.util import placement_group_table

    places = []
    for name, group in placement_group_table().items():
        if group["state"] == "REMOVED":
            continue
        amounts: dict[str, float] = {}
        for bundle in group["bundles"].values():
            for kind in KINDS:
                if bundle.get(kind):
                    amounts[kind] = amounts.get(kind, 0.0) + bundle[kind]
        places.append(Place(name, name[-JOB_DIGITS:], amounts, is_held=group["state"] == "CREATED"))
    own = ray.get_runtime_context().get_job_id()
    return Cluster(own, tuple(places), ray.cluster_resources(), ray.available_resources())

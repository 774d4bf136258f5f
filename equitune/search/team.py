"""The other workers of a trial that trains in several: actors in the trial's own placement group, kept warm with it.

Not Ray Train: its controller (Train V2, Ray 2.60) reserves a placement group of its own beside Tune's, so that what a
trial asks of Tune is not what it occupies. Measured on 2 cores: of two trials of one core and one training worker each,
both began, took both cores, and waited for the workers' for as long as one looked (3 minutes); with trials that ask for
next to nothing all begin at once, and wait inside for their turn. A stopped trial may leave its group behind
(ray-project/ray#54305). Here a trial is one request to Ray: it begins when all of it is free, and the autoscaler sees
what it waits for.
"""

import os
import socket
import threading
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError

from equitune.errors import WorkerLost
from equitune.records.folder import TrialFolder, write_json
from equitune.records.results import TrialResult
from equitune.search.resources import Request
from equitune.spec.trial import TrialConfig
from equitune.trial.ranks import Ranks

LOCALHOST = "127.0.0.1"
GRACE_S = 10.0  # for a worker to notice by itself that another one has ended
_mates: dict[str, list[Any]] = {}  # placement group -> its actors, as long as this worker


class Mate:
    """A worker beside the first one of a trial."""

    def train(
        self, config: str, splits: Any, number: int, count: int, port: int, memory_gib: float | None
    ) -> str | None:
        """Trains along; returns the trial's result if it ended here. Raises WorkerLost."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        from equitune.search.trainable import device_data
        from equitune.trial.memory import cap_memory
        from equitune.trial.run import train_along

        trial = TrialConfig.from_json_text(config)
        if trial.device == "cuda":
            cap_memory(1.0, memory_gib)
        stay_local()
        ranks = Ranks(number, count, lambda: TCPStore(LOCALHOST, port, is_master=False))
        result = train_along(trial, lambda: device_data(splits, trial), ranks)
        return result.model_dump_json() if result else None


class Team:
    """The workers of one trial, as the first one has them.

    Args:
        config: the trial's.
        folder: the trial's.
        splits: the study's data, in Ray's object store.
        request: what the trial asked for.
    """

    def __init__(
        self, config: TrialConfig, folder: TrialFolder, splits: "ray.ObjectRef[Any]", request: Request
    ) -> None:
        self._config, self._folder, self._splits, self._request = config, folder, splits, request
        self._runs: list[Any] = []
        self._over = threading.Event()

    def run(self, first: Callable[[Ranks], TrialResult]) -> TrialResult:
        """Has the first worker train with the others, who begin when it does.

        Raises:
            WorkerLost: a worker has died, or its device has. Where this one waits for it in vain, its process ends.
        """
        try:
            return first(Ranks(0, self._request.workers, self._meet))
        except WorkerLost:
            if (verdict := self._verdict()) is None:
                raise
            return self._recorded(verdict)
        finally:
            self._over.set()
            self._dismiss()

    def _meet(self) -> Any:
        store = meeting()
        numbers = range(1, self._request.workers)
        self._runs = [
            mate.train.remote(
                self._config.model_dump_json(),
                self._splits,
                number,
                self._request.workers,
                store.port,
                self._request.memory_gib,
            )
            for number, mate in zip(numbers, self._gathered(), strict=True)
        ]
        threading.Thread(target=self._watch, daemon=True).start()
        return store

    def _gathered(self) -> list[Any]:
        """The other actors of this placement group, started where they are not."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        group = ray.util.get_current_placement_group()
        key = group.id.hex()
        if key not in _mates:
            _mates.clear()
            share = self._request.bundle
            _mates[key] = [
                ray.remote(Mate)
                .options(
                    num_cpus=share["CPU"],
                    num_gpus=share["GPU"],
                    scheduling_strategy=PlacementGroupSchedulingStrategy(group, index),
                )
                .remote()
                for index in range(1, self._request.workers)
            ]
        return _mates[key]

    def _watch(self) -> None:
        """Ends this process where another worker has ended the trial and this one waits for it in vain: nccl does."""
        left = list(self._runs)
        while left and not self._over.is_set():
            done, left = ray.wait(left, timeout=1.0)
            if any(_said(run) is not None for run in done) and not self._over.wait(GRACE_S):
                if (verdict := self._verdict()) is not None:
                    self._recorded(verdict)  # whoever goes on with the trial finds that it has ended
                os._exit(1)

    def _verdict(self) -> TrialResult | None:
        """How another worker says that the trial has ended."""
        done, _ = ray.wait(self._runs, num_returns=len(self._runs), timeout=GRACE_S) if self._runs else ([], [])
        said = [text for run in done if (text := _said(run))]
        return TrialResult.model_validate_json(said[0]) if said else None

    def _recorded(self, result: TrialResult) -> TrialResult:
        self._folder.require_held()
        write_json(self._folder.result, result.model_dump(mode="json"))
        self._folder.checkpoint.unlink(missing_ok=True)
        return result

    def _dismiss(self) -> None:
        """Keeps the others for the next trial if they have ended this one well, else ends them."""
        done, left = ray.wait(self._runs, num_returns=len(self._runs), timeout=1.0) if self._runs else ([], [])
        if left or any(_said(run) == "" for run in done):
            for mates in _mates.values():
                for mate in mates:
                    ray.kill(mate)
            _mates.clear()


def _said(run: Any) -> str | None:
    """What a worker has ended with: a result; nothing, if the first one is to tell; empty where it was lost."""
    try:
        text: str | None = ray.get(run)
    except RayError:
        return ""
    return text


def meeting() -> Any:
    """A torch.distributed.Store at a free port of this machine alone: torch's own would listen to all others, too."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    stay_local()
    listening = socket.create_server((LOCALHOST, 0))
    port = listening.getsockname()[1]
    return TCPStore(LOCALHOST, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach())


def stay_local() -> None:
    """Keeps gloo to the loopback, for workers of a trial share a machine; it would listen where its name leads."""
    for _, name in socket.if_nameindex():
        if name in ("lo", "lo0"):
            os.environ["GLOO_SOCKET_IFNAME"] = name

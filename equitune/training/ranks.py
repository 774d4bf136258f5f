"""One trial in several processes, its ranks, which compute what one process does, up to rounding.

All have the same model, order of images and stream of random numbers; each takes its part of every batch. Gradients
are averaged by torch's DistributedDataParallel; what else sees a batch is in whole_batch.py. The first rank alone
evaluates, writes and reports. No Ray here: driver/team.py has Ray Train start them.
"""

import gc
import os
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from equitune.errors import WorkerLost
from equitune.importing.weights import first_line
from equitune.training.whole_batch import WholeBatch

LOCALHOST = "127.0.0.1"
TIMEOUT = timedelta(days=1)  # the others wait while the first evaluates; who dies is missed at once


class Dismissed(Exception):
    """The first rank has ended the training; the others end it, too."""


@dataclass(frozen=True)
class Ranks:
    """The processes that train a trial together, as one of them sees them.

    Attributes:
        number: of this one, from 0.
        count: of them all; where it is 1, nothing here does anything.
        meet: gives the torch.distributed.Store through which they find each other; called when training begins.
    """

    number: int = 0
    count: int = 1
    meet: Callable[[], Any] | None = None

    @contextmanager
    def joined(self, device: str) -> Iterator[None]:
        """Within it the ranks are connected. All of them enter it, and leave it.

        Raises:
            WorkerLost: another rank has gone.
        """
        if self.count == 1:
            yield
            return
        from torch import distributed

        assert self.meet is not None
        # On a GPU, too, what the first rank says goes over gloo.
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        try:
            distributed.init_process_group(
                backend, store=self.meet(), rank=self.number, world_size=self.count, timeout=TIMEOUT
            )
            yield
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # they hold the model that is spread
            if distributed.is_initialized() and device == "cuda":
                distributed.group.WORLD.abort()  # type: ignore[union-attr] # nccl would wait for the others
            if isinstance(error, Exception) and is_connection_lost(error):
                raise WorkerLost(f"another worker of the trial has gone: {first_line(error)}") from error
            raise
        finally:
            gc.collect()  # a model that is spread ends before its connections: after them it would wait for ever
            if distributed.is_initialized():
                distributed.destroy_process_group()

    def spread(self, model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Return the model, whose gradients are then those of the whole batch."""
        if self.count == 1 or not isinstance(model, nn.Module):
            return model
        from torch.nn.parallel import DistributedDataParallel

        # A static graph may have weights that no image reaches. Buffers are equal: WholeBatch sees to it.
        return DistributedDataParallel(
            model, forward_sync_buffers=False, static_graph=True, gradient_as_bucket_view=True
        )

    def shared_out(self, order: Tensor, batch_size: int) -> tuple[Tensor, int]:
        """Of an order of images, whole batches of them, what this rank takes, and how many images a batch."""
        if self.count == 1:
            return order, batch_size
        mine = order.view(-1, batch_size)[:, self._mine(batch_size)]
        return mine.flatten(), mine.shape[1]

    def part(self, batch: Tensor) -> Tensor:
        """Return the rows that are this rank's, of something that has a row for each image of a batch."""
        return batch if self.count == 1 else batch[self._mine(len(batch))]

    def in_place(self, images: Tensor, batch_size: int) -> Tensor:
        """Return this rank's images where they stand in their batch, zeros in place of the others.

        What acts on each image alone, and draws for a batch, then does to each image what it does in one process.
        """
        if self.count == 1:
            return images
        whole = images.new_zeros(batch_size, *images.shape[1:])
        whole[self._mine(batch_size)] = images
        return whole

    def scaled(self, loss: Tensor, batch_size: int) -> Tensor:
        """Return the mean over this rank's part, scaled so that its mean over the ranks is that over the batch."""
        mine = self._mine(batch_size)
        share = self.count * (mine.stop - mine.start)
        return loss if share == batch_size else loss * (share / batch_size)

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over the ranks, the same in all of them."""
        if self.count == 1:
            return values
        from torch import distributed

        summed = values.clone()
        distributed.all_reduce(summed)
        return summed / self.count

    def whole_batch(self, n: int) -> AbstractContextManager[Any]:
        """Within it a network normalises over, and draws for, all `n` images of a batch."""
        if self.count == 1:
            return nullcontext()

        return WholeBatch(n, self._mine(n))

    @contextmanager
    def led(self) -> Iterator[bool]:
        """Return the first rank, which is told True, does something alone; the others wait at the end of the block.

        Raises:
            Dismissed: in the others, where the first left the block by an exception.
        """
        if self.number:
            yield False
            if not self.told():
                raise Dismissed
            return
        goes_on = b""
        try:
            yield True
            goes_on = b"on"
        finally:
            self.told(goes_on)

    def told(self, said: bytes = b"") -> bytes:
        """Return what the first rank says, in all of them."""
        if self.count == 1:
            return said
        from torch import distributed

        size = torch.tensor([len(said)])
        distributed.broadcast(size, 0)
        text = torch.zeros(int(size), dtype=torch.uint8)
        if said and self.number == 0:
            text = torch.frombuffer(bytearray(said), dtype=torch.uint8)
        if len(text):
            distributed.broadcast(text, 0)
        return text.numpy().tobytes()

    def _mine(self, n: int) -> slice:
        return slice(self.number * n // self.count, (self.number + 1) * n // self.count)


ALONE = Ranks()


def is_connection_lost(error: Exception) -> bool:
    """Whether an error says that another rank does not answer: gloo's are plain RuntimeErrors."""
    from torch import distributed

    return isinstance(error, distributed.DistError) or "gloo" in str(error)


def meeting() -> Any:
    """Return a torch.distributed.Store at a free port of this machine alone: torch's own would listen to all others,
    too.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    listening = socket.create_server((LOCALHOST, 0))
    port = listening.getsockname()[1]
    return TCPStore(LOCALHOST, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach())


def met(port: int) -> Any:
    """Return the store of a `meeting`, for a rank. Gloo keeps to the loopback then: it would listen where its name
    leads.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    for _, name in socket.if_nameindex():
        if name in ("lo", "lo0"):
            os.environ["GLOO_SOCKET_IFNAME"] = name
    return TCPStore(LOCALHOST, port, is_master=False, timeout=TIMEOUT)

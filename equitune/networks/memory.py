"""Memory of the device: what a trial will need of it, what it may take, and what it took.

The prediction counts what training holds at its peak; measured peaks of ended trials correct it (driver/resources.py).
"""

import gc
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from equitune.config.trial import TrainingConfig

GIB = 2**30
# Assumptions, for none of them has been measured here; what trials measure corrects them.
CONTEXT_GIB = 0.5  # of CUDA itself in each process, outside of what torch allocates
WORKSPACE_GIB = 0.25  # of cuBLAS and cuDNN, within it
SLACK = 1.1  # what torch's allocator holds beyond what is in use


@dataclass(frozen=True)
class Footprint:
    """What training holds at its peak, in bytes. Under bf16 activations are less than they are counted here."""

    weights: int
    gradients: int
    optimizer: int  # its running means
    activations: int  # kept by a batch's forward pass for the backward pass
    working: int  # the gradients of two activations, while the backward pass runs

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.working


def footprint_of(network: nn.Module, image: tuple[int, int, int], training: TrainingConfig) -> Footprint:
    """Count what training a network holds; on the meta device nothing is computed.

    Args:
        network: on the current default device; it is left in training mode.
        image: the shape (C, H, W) of what it sees.
        training: says the size of a batch and the optimizer.
    """
    network.train()
    images = torch.zeros(training.batch_size, *image)
    labels = torch.zeros(training.batch_size, dtype=torch.int64)

    def forward() -> Tensor:
        return functional.cross_entropy(network(images), labels)

    kept, largest = saved_bytes(forward, (*network.parameters(), *network.buffers()))
    weights, trained = _bytes(network.state_dict().values()), _bytes(_trained(network))
    return Footprint(weights, trained, optimizer_states(training) * trained, kept, 2 * largest)


def saved_bytes(forward: Callable[[], Tensor], owned: Iterable[Tensor]) -> tuple[int, int]:
    """Return what autograd keeps of a forward pass, each storage once: in all, and the largest.

    Args:
        forward: what is called with gradients on.
        owned: tensors that exist anyway, such as weights.
    """
    known = {tensor.untyped_storage()._cdata for tensor in owned}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = storage
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    sizes = [storage.nbytes() for storage in kept.values()]
    return sum(sizes), max(sizes, default=0)


def optimizer_states(training: TrainingConfig) -> int:
    """How many numbers the optimizer keeps of each weight."""
    return (1 if training.momentum else 0) if training.optimizer == "sgd" else 2


def device_gib() -> float:
    """Return the memory of this process' GPU in GiB; 0 where there is none."""
    return torch.cuda.get_device_properties(0).total_memory / GIB if torch.cuda.is_available() else 0.0


def free_memory() -> None:
    """Give back what the trial before has left on the GPU of a warm worker."""
    gc.collect()
    torch.cuda.empty_cache()


def cap_memory(gpu: float, most_gib: float | None) -> None:
    """Limits what torch may allocate from now on; what asks for more ends as out of memory, its neighbours live on.

    Args:
        gpu: the share of a GPU that this process has; from 1 on it has all of its memory.
        most_gib: a limit of its own; None: that share of the memory, less what CUDA itself takes.
    """
    total = device_gib()
    if most_gib is None and gpu < 1:
        most_gib = gpu * total - CONTEXT_GIB
    share = 1.0 if most_gib is None else min(max(most_gib / total, 0.0), 1.0)
    torch.cuda.set_per_process_memory_fraction(share)


def reset_peak() -> None:
    """Begins to watch the memory in use."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak(device: str) -> dict[str, str]:
    """Return the most memory that was in use at once, for a trial's provenance; nothing on the CPU."""
    return {"peak_memory_mib": f"{torch.cuda.max_memory_allocated() / 2**20:.1f}"} if device == "cuda" else {}


def _trained(model: nn.Module) -> Iterable[Tensor]:
    return (weight for weight in model.parameters() if weight.requires_grad)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

"""The device that a trial runs on: how it is told to compute, what it is, and when it has no memory left."""

import platform

import torch

from equitune import __version__
from equitune.errors import WorkerLost
from equitune.importing.weights import first_line


def make_deterministic(device: str) -> None:
    """One thread on the CPU, where more are slower beside other trials; deterministic kernels; no TF32."""
    torch.use_deterministic_algorithms(device == "cpu")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # a pass over memory for nothing: none of it is read
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if device == "cpu":
        torch.set_num_threads(1)


def provenance(device: str) -> dict[str, str]:
    """Return what a number depends on beside its configuration."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return {
        "equitune": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device,
        "device_name": name,
        "cpu": torch.backends.cpu.get_cpu_capability(),  # which instructions its kernels use decides the rounding
        "host": platform.node(),
    }


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device had no memory left: torch says so in several ways."""
    texts = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or any(text in str(error) for text in texts)


def require_sound(device: str, error: Exception) -> None:
    """Find out whether the device is the cause of an error, by asking it for anything.

    What breaks a GPU or a process' context on it (an ECC error, an illegal address, a failed assertion, a lost device)
    makes every later call of this process fail, too; an ordinary mistake does not.

    Raises:
        WorkerLost: the device does not answer any more.
    """
    if device != "cuda":
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as lost:  # torch.AcceleratorError is one
        if not is_out_of_memory(lost):
            raise WorkerLost(f"the GPU of {platform.node()} does not answer any more: {first_line(error)}") from error

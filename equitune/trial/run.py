"""A trial from its configuration to its result: build, fit, measure, return."""

import logging
import platform
import time
import traceback

import torch
from safetensors.torch import save

from equitune import __version__
from equitune.errors import Infeasible
from equitune.measures._evaluation import EvaluationSet
from equitune.records.folder import TrialFolder, write_json, write_whole
from equitune.records.results import TrialResult, Verdict
from equitune.spec.trial import TrialConfig
from equitune.trial.amounts import learned_amounts, relaxation
from equitune.trial.build import DeviceData, build_augmentation, build_model, chosen_width
from equitune.trial.exact import predict_exact
from equitune.trial.fit import OnEpoch, fit
from equitune.trial.measure import measure
from equitune.trial.resize import at_size

log = logging.getLogger(__name__)


def run_trial(
    config: TrialConfig,
    data: DeviceData,
    *,
    folder: TrialFolder | None = None,
    on_epoch: OnEpoch = lambda epoch: None,
) -> TrialResult:
    """Trains and measures one configuration. The same configuration gives the same numbers, on the CPU bit for bit.

    Args:
        config: every value filled in.
        data: training and validation images, on `config.device`, of the trial's size or of the data set's.
        folder: takes the trial's epochs, checkpoint, weights and result; without it nothing is written.
        on_epoch: called after each epoch with its record.

    Returns:
        The result: COMPLETE, or INFEASIBLE or FAILED with the reason. Only what the outside does ends in an
        exception: a full disk, or what `on_epoch` raises.
    """
    make_deterministic(config.device)
    clock = _Clock()
    result = TrialResult(number=config.number, state="COMPLETE", provenance=provenance(config.device))
    try:
        data = at_size(data, config.input)
        result = result.model_copy(update={"exact": exactness(config, data)})
        model = build_model(config, data)
        if width := chosen_width(config, model):
            result = result.model_copy(update={"provenance": result.provenance | {"width": str(width)}})
        clock.lap("build")
        validation = EvaluationSet(data.validation.pixels, data.validation.labels, "validation")
        augmentation = build_augmentation(config)
        fit(
            model,
            data.train,
            validation,
            augmentation,
            config.training,
            seed=config.seed,
            folder=folder,
            on_epoch=on_epoch,
        )
        clock.lap("fit")
        untrained = build_model(config, data)
        metrics, profile = measure(config, model, untrained, validation)
        amounts = learned_amounts(model, untrained)
        clock.lap("measure")
        if folder:
            weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
            write_whole(folder.weights, save(weights))
        result = result.model_copy(
            update={
                "metrics": metrics | relaxation(amounts),
                "profile": profile,
                "amounts": amounts,
                "seconds": clock.laps,
            }
        )
    except OSError:
        raise  # the disk's fault, not the trial's
    except Exception as error:
        result = _unfinished(result, error)
    if folder:
        write_json(folder.result, result.model_dump(mode="json"))
        folder.checkpoint.unlink(missing_ok=True)
    return result


def make_deterministic(device: str) -> None:
    """One thread on the CPU, where more are slower beside other trials; deterministic kernels; no TF32."""
    torch.use_deterministic_algorithms(device == "cpu")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # a pass over memory for nothing: none of it is read
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if device == "cpu":
        torch.set_num_threads(1)


def provenance(device: str) -> dict[str, str]:
    """What a number depends on beside its configuration."""
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


def exactness(config: TrialConfig, data: DeviceData) -> dict[str, Verdict]:
    """What is said of the network before it trains; nothing where that fails, since its training does not need it.

    Raises:
        Infeasible: no such network can exist.
    """
    try:
        said = predict_exact(config, data.shape, data.classes)
    except Infeasible:
        raise
    except Exception:
        log.warning("nothing is said of the exactness of trial %d", config.number, exc_info=True)
        return {}
    return {symmetry: found.verdict for symmetry, found in said.items()}


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device had no memory left: torch says so in several ways."""
    return isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _unfinished(result: TrialResult, error: Exception) -> TrialResult:
    if isinstance(error, Infeasible):
        return result.model_copy(update={"state": "INFEASIBLE", "reason": str(error)})
    if is_out_of_memory(error):
        return result.model_copy(update={"state": "INFEASIBLE", "reason": f"out of memory: {error}"})
    reason = f"{type(error).__name__}: {error}"
    return result.model_copy(update={"state": "FAILED", "reason": reason, "traceback": traceback.format_exc()})


class _Clock:
    """Seconds between laps."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now

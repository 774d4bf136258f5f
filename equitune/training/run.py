"""A trial from its configuration to its result: build, fit, measure, return."""

import logging
import time
import traceback
from collections.abc import Callable

from safetensors.torch import save

from equitune.config.trial import TrialConfig
from equitune.data.on_device import DeviceData
from equitune.data.resize import at_size
from equitune.errors import Infeasible, WorkerLost
from equitune.evaluation.image_set import EvaluationSet
from equitune.networks.amounts import learned_amounts, relaxation
from equitune.networks.blueprint import Blueprint, describe
from equitune.networks.build import build_augmentation, build_model
from equitune.networks.device import is_out_of_memory, make_deterministic, provenance, require_sound
from equitune.networks.memory import peak, reset_peak
from equitune.records.durable import remove
from equitune.records.folder import TrialFolder, write_json, write_whole
from equitune.results.values import Measurement, TrialResult, Verdict
from equitune.training.epoch import OnEpoch, fit
from equitune.training.measure import measure
from equitune.training.ranks import ALONE, Dismissed, Ranks
from equitune.training.rung import Rungs

log = logging.getLogger(__name__)


def run_trial(
    config: TrialConfig,
    data: DeviceData,
    *,
    folder: TrialFolder | None = None,
    on_epoch: OnEpoch = lambda epoch: None,
    ranks: Ranks = ALONE,
) -> TrialResult:
    """Trains and measures one configuration. The same configuration gives the same numbers, on the CPU bit for bit.

    Args:
        config: every value filled in.
        data: training and validation images, on `config.device`, of the trial's size or of the data set's.
        folder: takes the trial's epochs, checkpoint, weights and result; without it nothing is written.
        on_epoch: called after each epoch with its record.
        ranks: of which this process is the first; the others train along (`train_along`).

    Returns:
        The result: COMPLETE, or INFEASIBLE or FAILED with the reason. Only what the outside does ends in an
        exception: a full disk, or what `on_epoch` raises.

    Raises:
        WorkerLost: the device does not answer any more, or another rank has gone.
    """
    make_deterministic(config.device)
    clock = _Clock()
    reset_peak()
    known = provenance(config.device) | ({"workers": str(ranks.count)} if ranks.count > 1 else {})
    result = TrialResult(number=config.number, state="COMPLETE", provenance=known)
    try:
        data = at_size(data, config.input)
        blueprint = describe(config, data.data_shape)
        cost = blueprint.cost
        result = result.model_copy(update={"exact": verdicts(blueprint), "metrics": cost.metrics()})
        cost.require_within(config.bounds)
        model = blueprint.build(data)
        if cost.width:
            result = result.model_copy(update={"provenance": result.provenance | {"width": str(cost.width)}})
        clock.lap("build")
        validation = EvaluationSet(data.validation.pixels, data.validation.labels, "validation")
        augmentation = build_augmentation(config)
        with ranks.joined(config.device):
            seconds = fit(
                model,
                data.train,
                validation,
                augmentation,
                config.training,
                seed=config.seed,
                folder=folder,
                on_epoch=on_epoch,
                at_rung=Rungs(config, validation, cost).metrics,
                ranks=ranks,
            )
        clock.lap("fit")
        untrained = blueprint.build(data)
        metrics, profile = measure(config, model, untrained, validation)
        amounts = learned_amounts(model, untrained)
        clock.lap("measure")
        if folder:
            folder.require_held()
            weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
            write_whole(folder.weights, save(weights))
        result = result.model_copy(
            update={
                "metrics": metrics | result.metrics | training_time(seconds) | relaxation(amounts),
                "profile": profile,
                "amounts": amounts,
                "seconds": clock.laps,
            }
        )
    except OSError:
        raise  # the disk's fault, not the trial's
    except WorkerLost as error:
        log.warning("this worker ends, and the trial goes on in another: %s", error)
        raise
    except Exception as error:
        require_sound(config.device, error)
        result = unfinished(result, error)
    result = result.model_copy(update={"provenance": result.provenance | peak(config.device)})
    if folder:
        folder.require_held()
        write_json(folder.result, result.model_dump(mode="json"))
        remove(folder.checkpoint)
    return result


def verdicts(blueprint: Blueprint) -> dict[str, Verdict]:
    """Return what is said of the network before it trains; nothing where that fails, since its training does not need
    it.

    Raises:
        Infeasible: no such network can exist.
    """
    try:
        return {symmetry: found.verdict for symmetry, found in blueprint.exactness.items()}
    except Infeasible:
        raise
    except Exception:
        log.warning("nothing is said of the exactness of trial %d", blueprint.config.number, exc_info=True)
        return {}


def training_time(seconds: float) -> dict[str, Measurement]:
    """Return the time that a trial has trained for, as a metric; no other run of it takes the same."""
    return {"seconds": Measurement(value=seconds, n=0, split="none", unit="s")}


def train_along(config: TrialConfig, load: Callable[[], DeviceData], ranks: Ranks) -> TrialResult | None:
    """Trains with the first rank, which alone records and measures; returns how the trial ended if it ended here.

    Args:
        config: as the first rank has it.
        load: gives the data, on this process' device.
        ranks: of which this process is not the first.

    Raises:
        WorkerLost: the device does not answer any more, or another rank has gone.
    """
    make_deterministic(config.device)
    try:
        data = at_size(load(), config.input)
        model = build_model(config, data)
        validation = EvaluationSet(data.validation.pixels, data.validation.labels, "validation")
        with ranks.joined(config.device):
            fit(
                model,
                data.train,
                validation,
                build_augmentation(config),
                config.training,
                seed=config.seed,
                ranks=ranks,
            )
    except WorkerLost:
        raise
    except Dismissed:
        return None
    except Exception as error:
        require_sound(config.device, error)
        return unfinished(
            TrialResult(number=config.number, state="COMPLETE", provenance=provenance(config.device)), error
        )
    return None


def unfinished(result: TrialResult, error: Exception) -> TrialResult:
    """Return a result that says how an error has ended the trial."""
    if isinstance(error, Infeasible):
        return result.model_copy(update={"state": "INFEASIBLE", "reason": str(error), "cause": error.cause})
    if is_out_of_memory(error):
        reason = f"out of memory: {error}"
        return result.model_copy(update={"state": "INFEASIBLE", "reason": reason, "cause": "out_of_memory"})
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

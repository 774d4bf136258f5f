"""A recorded trial once more, in this process: does it give the same numbers, bit for bit?"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError

from equitune.config.objectives import BY_THE_CLOCK
from equitune.config.trial import TrialConfig
from equitune.data.on_device import to_device
from equitune.data.splits import Splits
from equitune.errors import UserError
from equitune.importing.weights import read_tensors
from equitune.records.folder import TrialFolder, write_json
from equitune.records.place import Place
from equitune.records.reader import TrialRecord
from equitune.records.revision import revision
from equitune.results.values import Measurement, untimed
from equitune.training.epoch import OnEpoch
from equitune.training.run import run_trial
from equitune.training.test_split import measure_on_test

# What a clock says is never the same twice.
TIMED_EPOCH: dict[str, Any] = {"time": True, "train_s": True, "images_per_s": True, "metrics": set(BY_THE_CLOCK)}
NOT_CAUSES = {"width", "peak_memory_mib"}  # of a trial's provenance: they follow from it


@dataclass(frozen=True)
class Difference:
    """A value that is not what the record says."""

    what: str  # accuracy.value, epoch 3.train_loss, weights.stem.weight
    then: Any
    now: Any

    @property
    def by(self) -> float | None:
        """Now minus then; None where they are not both numbers."""
        if any(isinstance(value, bool) or not isinstance(value, int | float) for value in (self.then, self.now)):
            return None
        return float(self.now - self.then)


@dataclass(frozen=True)
class Comparison:
    """What was compared with the record, and what of it differs."""

    num_values: int
    has_weights: bool
    differences: list[Difference]
    causes: list[str]  # what is not as it was, a phrase each; only where something differs


def run_again(
    record: TrialRecord,
    config: TrialConfig,
    splits: Splits,
    folder: TrialFolder,
    on_epoch: OnEpoch = lambda epoch: None,
) -> TrialRecord:
    """Trains and measures a recorded trial from its beginning, also on the test split where the record has that.

    Args:
        record: the trial as it was recorded.
        config: its configuration, on a device that this machine has.
        splits: its data.
        folder: an empty one, which takes the new files.
        on_epoch: called after each epoch.
    """
    write_json(folder.config, config.to_json())
    result = run_trial(config, to_device(splits, config.device), folder=folder, on_epoch=on_epoch)
    test: dict[str, Measurement] = {}
    if record.test and result.state == "COMPLETE":
        test = measure_on_test(config, folder, splits)
        write_json(folder.test, {name: metric.model_dump(mode="json") for name, metric in test.items()})
    return TrialRecord(config, folder.read_epochs(), result, folder.config.stat().st_mtime, test)


def require_device(config: TrialConfig) -> None:
    """Raise UserError where this machine has no such device."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"{config.study}/{config.number} ran on a GPU, and there is none here: run it again where there is one, "
            "or name --device cpu, whose numbers differ in rounding"
        )


def compared(
    then: TrialRecord, now: TrialRecord, weights_then: Place, weights_now: Place, study: Mapping[str, Any]
) -> Comparison | None:
    """Every value of the record beside the new one, to the last bit, but for what a clock says.

    Of a trial that was stopped early, the epochs that it had.

    Args:
        then: as it was recorded.
        now: as it is now.
        weights_then: the recorded file of weights, which need not be there.
        weights_now: the new one, likewise.
        study: what study.json holds.

    Returns:
        None where the record has nothing to compare with: the trial had not ended.
    """
    if then.result is None or now.result is None:
        return None
    old, new = (dict(_values(record, then.state == "PRUNED")) for record in (then, now))
    found = [Difference(what, value, new.get(what)) for what, value in old.items() if new.get(what) != value]
    has_weights = weights_then.is_file()
    if has_weights:
        found += _weights(weights_then, weights_now)
    causes = _causes(then.result.provenance, now.result.provenance, study) if found else []
    return Comparison(len(old), has_weights, found, causes)


def _values(record: TrialRecord, epochs_only: bool) -> Iterator[tuple[str, Any]]:
    """Every value of a trial that must be the same again, by what it is."""
    result = record.result
    if result and not epochs_only:
        yield "state", result.state
        yield "reason", result.reason
        for prefix, metrics in (("", result.metrics), ("test ", record.test)):
            for name, metric in untimed(metrics).items():
                yield from _leaves(f"{prefix}{name}", metric.model_dump(mode="json"))
        for index, row in enumerate(result.profile):
            labels = (row.get(key) for key in ("measure", "group", "layer", "set"))
            yield from _leaves(f"profile {index} ({', '.join(str(label) for label in labels if label)})", row)
        for kind in ("amounts", "exact"):
            for name, value in getattr(result, kind).items():
                yield from _leaves(f"{kind} {name}", value.model_dump(mode="json"))
    for epoch in record.epochs:
        yield from _leaves(f"epoch {epoch.epoch}", epoch.model_dump(mode="json", exclude=TIMED_EPOCH))


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the numbers and words of nested JSON, by their path."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(f"{path}.{key}", inner)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _leaves(f"{path}.{index}", inner)
    else:
        yield path, value


def _weights(then: Place, now: Place) -> Iterator[Difference]:
    """Where the bytes of two files of weights differ: each tensor by its largest weight of both, and by how much."""
    if not now.is_file():
        yield Difference("weights", "in the record", None)
        return
    if then.read_bytes() == now.read_bytes():
        return
    try:
        old, new = read_tensors(then), read_tensors(now)
    except SafetensorError as error:
        yield Difference("weights", f"not readable ({error})", "whole")
        return
    equal = True
    for name, weight in old.items():
        other = new.get(name)
        if other is None or other.shape != weight.shape or other.dtype != weight.dtype:
            yield Difference(f"weights {name}", _described(weight), None if other is None else _described(other))
        elif not torch.equal(_bytes(weight), _bytes(other)):
            at = (weight.double() - other.double()).abs().argmax()
            yield Difference(f"weights {name}", float(weight.flatten()[at]), float(other.flatten()[at]))
        else:
            continue
        equal = False
    if equal:
        yield Difference("weights", "other bytes", "the same tensors")


def _bytes(weight: torch.Tensor) -> torch.Tensor:
    return weight.reshape(-1).view(torch.uint8)  # so that what is no number equals itself


def _described(weight: torch.Tensor) -> str:
    return f"{' x '.join(map(str, weight.shape))} {str(weight.dtype).removeprefix('torch.')}"


def _causes(then: Mapping[str, str], now: Mapping[str, str], study: Mapping[str, Any]) -> list[str]:
    """Return what stands otherwise in the two provenances; the machine's name only where nothing else does."""
    if not then:  # of a trial whose worker was lost
        return []
    names = [name for name in {**then, **now} if name not in NOT_CAUSES and then.get(name) != now.get(name)]
    causes = [f"{name} was {then.get(name, 'not recorded')}, is {now.get(name, 'not recorded')}" for name in names]
    began, here = study.get("provenance", {}).get("git"), revision()
    if began != here:
        causes.append(f"the program was at git {began or 'not recorded'} when the study began, is at {here or 'none'}")
    return causes if names == ["host"] or "host" not in names else [each for each in causes if each[:5] != "host "]

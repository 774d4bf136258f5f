"""Whether a recorded trial is one that a study could have: what `--extend` and `--warm-start` ask of each."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from pydantic_core import PydanticCustomError

from equitune.config.cell import member
from equitune.config.changes import A_DEFAULT, changes
from equitune.config.defaults import differences as differences
from equitune.config.space import Distribution, Scalar
from equitune.config.study import StudySpec
from equitune.config.trial import TrialConfig
from equitune.errors import UserError
from equitune.records.folder import StudyFolder
from equitune.records.info import read_info
from equitune.records.reader import StudyReader

# Of a trial's configuration, what decides none of its final numbers, but for the seed.
INCIDENTAL = {
    "format", "study", "number", "seed", "replicate", "cell", "params", "device",
    "bounds", "rungs", "rung_images", "rung_metrics"
}  # fmt: skip


def require_same_start(folder: StudyFolder, studies: tuple[str, ...]) -> None:
    """Refuses to bring trials to a study that has begun without them.

    Raises:
        UserError: which ones.
    """
    known = read_info(folder.study).get("warm_start", {}).get("studies", [])
    new = [name for name in studies if name not in known]
    if new:
        raise UserError(
            f"--warm-start {new[0]}: only a new study begins with trials of another, and {folder.name} has begun: "
            "leave it out, or give the study another name (study: ...)"
        )


_SECTIONS = {"input", "model", "prior", "downsampler", "stem", "augmentation", "averaging", "training"}


class _OutsideError(Exception):
    """A recorded trial has no value for a parameter, or one that the space does not have."""


def as_here(spec: StudySpec, recorded: TrialConfig) -> TrialConfig | str:
    """Return the trial that a study would make of a recorded trial's parameters, where they differ in nothing that
    decides its
    numbers but the seed; else what is different, as `with model.width 4, here it is 6`."""
    try:
        own = spec.suggest(recorded.number, partial(_value, recorded.params), recorded.cell)
    except _OutsideError as error:
        return str(error)
    for path, before, after in differences(_decisive(recorded), _decisive(own)):
        if isinstance(before, dict | list) or isinstance(after, dict | list):
            return f"with a different {path}"
        return f"with {path.replace('.args.', '.')} {before}, here it is {after}"
    return own


def require_extends(folder: StudyFolder, spec: StudySpec) -> None:
    """Refuses to go on with a study in a search space that does not hold each of its trials.

    Raises:
        UserError: what is different, or which trial lies outside.
    """
    info = read_info(folder.study)
    found = list(changes(info, spec))
    if not found:
        return
    fixed = [
        f"{path} was {old}, is {new}"
        for path, old, new in found
        if path.split(".")[0] not in _SECTIONS or path.endswith(A_DEFAULT)
    ]
    if "grid" in (spec.search.sampler, info.get("identity", {}).get("search", {}).get("sampler")):
        fixed.append("a design is a list of cells, which more replicates extend")
    if fixed:
        raise _refusal(spec, "; ".join(fixed))
    for trial in StudyReader(folder).read().trials:
        own = as_here(spec, trial.config)
        if isinstance(own, str):
            raise _refusal(spec, f"trial {trial.number} is one {own}")
        gone = trial.config.params.keys() - own.params.keys()
        if gone:
            raise _refusal(spec, f"trial {trial.number} is one with a value of {min(gone)}, which varies no more")


def _refusal(spec: StudySpec, why: str) -> UserError:
    return UserError(
        f"study {spec.study} cannot be extended to this: {why}: --extend takes wider ranges, more choices and more "
        "branches; give another study a name of its own (study: ...)"
    )


def _decisive(config: TrialConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude={**dict.fromkeys(INCIDENTAL, True), "data": {"root"}})


def _value(params: Mapping[str, Scalar], name: str, distribution: Distribution) -> Scalar:
    if name not in params:
        raise _OutsideError(f"without a value of {name}")
    try:
        return member(distribution, params[name])
    except PydanticCustomError as error:
        raise _OutsideError(f"with {name} {params[name]}, which {error.message()}") from None

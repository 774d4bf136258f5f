"""`--warm-start`: a new study begins with the trials of others that could as well be its own.

Which ones is written into `study.json` with its first line; their folders are then copied. What a killed driver did not
copy the next one does.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState, create_trial

from equitune.config.study import StudySpec
from equitune.errors import UserError
from equitune.records.checked import DamagedError, is_there, set_aside
from equitune.records.durable import replace, write_json, write_whole
from equitune.records.folder import StudyFolder, TrialFolder, open_study, open_trial
from equitune.records.info import read_info
from equitune.records.names import is_study_file
from equitune.records.place import Place, files_below, read_file
from equitune.records.reader import StudyReader, TrialRecord, read_config, read_result, read_trial
from equitune.results.values import TrialResult
from equitune.search.compatible import as_here
from equitune.search.samplers import optuna_distribution


def warmly_begun(
    spec: StudySpec, folder: StudyFolder, studies: tuple[str, ...], fingerprint: str, say: Callable[[str], None]
) -> dict[str, Any]:
    """Return what a new study's record says of the trials that it begins with; nothing, where it has begun or asks for
    none.

    Raises:
        UserError: as `fitting`.
    """
    if not studies or folder.study.exists():
        return {}
    trials, said = fitting(spec, folder.path.parent, studies, fingerprint)
    for sentence in said:
        say(f"warm start from {sentence}")
    return {"imported": len(trials), "warm_start": {"studies": list(studies), "trials": trials}}


def fitting(spec: StudySpec, root: Place, studies: tuple[str, ...], fingerprint: str) -> tuple[list[str], list[str]]:
    """Return the trials of other studies that could be this study's, as STUDY/NUMBER, and a sentence about each study.

    Args:
        spec: the study that begins.
        root: where studies lie.
        studies: the names of those others.
        fingerprint: of the data.

    Raises:
        UserError: there is no such study, or none of their trials fits; says why.
    """
    if spec.search.design:
        raise UserError("--warm-start is for samplers: a design trains each of its cells, with seeds of its own")
    found: dict[tuple[int, str], str] = {}  # by what makes a trial
    said = []
    for name in studies:
        folder = open_study(root, name)
        if name == spec.study:
            raise UserError(f"--warm-start {name}: a study cannot begin with its own trials")
        record, before = StudyReader(folder).read(), len(found)
        reasons: Counter[str] = Counter()
        for trial in record.trials:
            reason = _why_not(spec, trial, record.info.get("data_fingerprint") == fingerprint)
            if reason:
                reasons[reason] += 1
            else:
                key = (trial.config.seed, str(sorted(trial.config.params.items())))
                found.setdefault(key, f"{name}/{trial.number}")
        others = "; ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        said.append(
            f"{name}: {len(found) - before} of {len(record.trials)} trials fit" + f" (not {others})" * bool(others)
        )
    if not found:
        raise UserError(f"--warm-start: no trial fits study {spec.study}: {'. '.join(said)}")
    return list(found.values()), said


def _why_not(spec: StudySpec, trial: TrialRecord, on_same_data: bool) -> str | None:
    if not on_same_data:
        return "on other data"
    if trial.state != "COMPLETE":
        return trial.state
    unmeasured = [name for name in spec.objectives if name not in trial.metrics or trial.metrics[name].value is None]
    if unmeasured:
        return f"without a value of {unmeasured[0]}"
    own = as_here(spec, trial.config)
    return own if isinstance(own, str) else None


def bring(study: optuna.Study, folder: StudyFolder, spec: StudySpec) -> None:
    """Brings what `study.json` says the study begins with: trials 0 to k - 1, still to be told to the search.

    Raises:
        UserError: a trial that is to be brought is gone.
    """
    names = read_info(folder.study).get("warm_start", {}).get("trials", [])
    for number, name in enumerate(names):
        is_told = len(study.get_trials(deepcopy=False)) > number
        if not _is_whole(folder.trial(number)) and _can_be_had(folder, name, is_told):
            if is_there(folder.trial(number).path) and isinstance(folder.path, Path):
                set_aside(folder.trial(number).path)
            other, _, its_number = name.rpartition("/")
            _copy(open_trial(folder.path.parent, other, int(its_number)), folder.trial(number), spec, name)
    for number in range(len(study.get_trials(deepcopy=False)), len(names)):
        params = read_config(folder.trial(number)).params
        distributions = {key: optuna_distribution(value) for key, value in spec.parameters().items() if key in params}
        study.add_trial(create_trial(state=TrialState.RUNNING, params=params, distributions=distributions))


def _is_whole(folder: TrialFolder) -> bool:
    try:
        return bool(read_config(folder)) and bool(read_result(folder))
    except DamagedError:
        return False


def _can_be_had(folder: StudyFolder, name: str, is_told: bool) -> bool:
    """Whether the trial that was brought is still there; one that the search was told of can be trained again."""
    other, _, number = name.rpartition("/")
    return not is_told or is_there(StudyFolder(folder.path.parent / other).trial(int(number)).config)


def _copy(other: TrialFolder, own: TrialFolder, spec: StudySpec, name: str) -> None:
    """Copy a trial's folder, whole or not at all, with its new number; all else is as it was trained.

    In an object store its configuration comes last: without it there is no trial.
    """
    recorded = read_trial(other)
    here = as_here(spec, recorded.config)
    if isinstance(here, str) or recorded.result is None:
        raise UserError(f"--warm-start: trial {name} has changed: give the study another name (study: ...)")
    begun = {"number": own.number, "seed": recorded.config.seed, "device": recorded.config.device}
    config = here.model_copy(update=begun).to_json()
    provenance = recorded.result.provenance | {"warm_start": name}
    result: TrialResult = recorded.result.model_copy(update={"number": own.number, "provenance": provenance})
    left_out = (other.checkpoint.name, other.config.name, other.result.name)
    if not (isinstance(own.path, Path) and isinstance(other.path, Path)):
        for name, file, _ in files_below(other.path):
            if name not in left_out and is_study_file(f"trials/{other.path.name}/{name}"):
                write_whole(own.path / name, file.read_bytes())
        write_json(own.result, result.model_dump(mode="json"))
        write_json(own.config, config)
        return
    partial = own.path.with_name(f".{own.path.name}.brought")
    shutil.rmtree(partial, ignore_errors=True)
    for name, file, num_bytes in files_below(other.path):  # a neighbour's folder: no links, and no other names
        if name not in left_out and is_study_file(f"trials/{other.path.name}/{name}"):
            write_whole(partial / name, read_file(file, num_bytes))
    write_json(partial / own.config.name, config)
    os.utime(partial / own.config.name, (recorded.started, recorded.started))
    write_json(partial / own.result.name, result.model_dump(mode="json"))
    replace(partial, own.path)

"""`--extend`: a study goes on in another search space that holds all of its trials.

Optuna keeps the choices of a parameter for ever, so the trials move to a new Optuna study in the same storage. Which
one is in use stands in `study.json`, which is written last: a driver killed before that has changed nothing.
"""

import time
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from equitune.config.changes import changes
from equitune.config.record import FORMAT
from equitune.config.study import StudySpec
from equitune.records.folder import StudyFolder, write_json, write_whole
from equitune.records.info import read_info
from equitune.search.samplers import optuna_distribution
from equitune.search.study_record import asked
from equitune.search.warm_start import bring


def adapted(
    spec: StudySpec, folder: StudyFolder, source: Path | None, overrides: tuple[str, ...], study: optuna.Study
) -> optuna.Study:
    """Return the Optuna study with what it begins with; in its new search space, where it is extended."""
    bring(study, folder, spec)
    if not any(changes(read_info(folder.study), spec)):
        return study
    return extended(study, folder, spec, source, overrides)


def extended(
    study: optuna.Study, folder: StudyFolder, spec: StudySpec, source: Path | None, overrides: tuple[str, ...]
) -> optuna.Study:
    """Return the study in its new search space, with every trial under its number, those that are not finished, too.

    The caller holds the study's lock, and has found the space to hold every trial.
    """
    info = read_info(folder.study)
    extensions = info.get("extensions", [])
    name = f"{spec.study}, extended {len(extensions) + 1}"
    storage = study._storage
    if name in optuna.get_all_study_names(storage):  # of a driver that was killed on its way
        optuna.delete_study(study_name=name, storage=storage)
    wider = optuna.create_study(storage=storage, study_name=name, directions=study.directions)
    distributions = {key: optuna_distribution(value) for key, value in spec.parameters().items()}
    for trial in study.get_trials(deepcopy=True):
        wider.add_trial(_within(trial, distributions))
    _keep_searchspace(folder, len(extensions) + 1, source)
    change = {
        "time": time.time(),
        "trials": len(study.get_trials(deepcopy=False)),  # that there were
        "changes": [list(change) for change in changes(info, spec)],  # path, before, after
        "overrides_before": info.get("overrides", []),
    }
    in_use = {"optuna_study": name, "extensions": [*extensions, change]}
    write_json(folder.study, {"format": FORMAT} | info | in_use | asked(spec, source, overrides))
    return wider


def _within(trial: FrozenTrial, distributions: dict[str, BaseDistribution]) -> FrozenTrial:
    trial.distributions = {name: distributions[name] for name in trial.params}
    return trial


def _keep_searchspace(folder: StudyFolder, number: int, source: Path | None) -> None:
    """Keep the question as it was asked before beside the new one, as `searchspace.1.yaml` and so on."""
    kept = folder.searchspace.with_suffix(f".{number}.yaml")
    if folder.searchspace.exists() and not kept.exists():
        write_whole(kept, folder.searchspace.read_bytes())
    if source:
        write_whole(folder.searchspace, source.read_bytes())

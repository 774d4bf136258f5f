"""What was measured at the rungs of a study, from the records of its trials."""

from contextlib import suppress

from equitune.config.study import StudySpec
from equitune.records.checked import DamagedError
from equitune.records.folder import StudyFolder, TrialFolder
from equitune.records.reader import read_result
from equitune.results.values import Epoch
from equitune.search.early_stopping import EarlyStopping


def recorded_rungs(spec: StudySpec, folder: StudyFolder) -> EarlyStopping | None:
    """Return the study's early stopping with all that was measured so far, in the order of time; None where it has
    none.

    The last rung of a trial that has not ended is left out: it may not have been judged.
    """
    if spec.search.scheduler is None:
        return None
    early, heard = EarlyStopping(spec.search.scheduler, spec.directions, spec.constraints), []
    for trial in folder.seen("epochs.jsonl", "result.json").trials():
        epochs, result = readable_epochs(trial), None
        with suppress(DamagedError):
            result = read_result(trial)
        if result is None and last_rung(trial, early):
            epochs = epochs[:-1]
        heard += [(epoch.time, trial.number, epoch) for epoch in epochs if epoch.metrics]
        if result and result.state == "COMPLETE":
            early.complete(trial.number)
    for _, number, epoch in sorted(heard, key=lambda item: item[:2]):
        early.hear(number, epoch.epoch, epoch.metrics)
    return early


def readable_epochs(folder: TrialFolder) -> list[Epoch]:
    """Return the epochs of a trial; none where their file is damaged."""
    with suppress(DamagedError):
        return folder.read_epochs()
    return []


def last_rung(folder: TrialFolder, early: EarlyStopping | None) -> Epoch | None:
    """Return the last epoch of a trial that has not ended, where it is a rung that may not have been judged."""
    epochs = readable_epochs(folder) if early else []
    return epochs[-1] if epochs and epochs[-1].metrics else None

"""The study's Optuna storage: a journal file in its folder, which survives the death of its driver."""

import json
from pathlib import Path

import optuna
from optuna.storages.journal import JournalFileBackend

from equitune.errors import UserError
from equitune.records.folder import StudyFolder, read_json
from equitune.spec.study import StudySpec


def open_storage(folder: StudyFolder, spec: StudySpec) -> optuna.Study:
    """Opens or begins the study's storage. The caller holds the study's lock.

    Raises:
        UserError: the journal is damaged elsewhere than at its end.
    """
    _mend_end(folder.journal)
    folder.journal.with_name(folder.journal.name + ".lock").unlink(missing_ok=True)  # a killed driver's; ours is held
    try:
        return optuna.create_study(
            storage=optuna.storages.JournalStorage(JournalFileBackend(str(folder.journal))),
            study_name=study_in_use(folder, spec),
            directions=list(spec.directions.values()),
            load_if_exists=True,
        )
    except (ValueError, KeyError, json.JSONDecodeError) as error:
        raise UserError(
            f"{folder.journal} is damaged ({error}): restore it from a copy, or move the study's folder away; "
            f"the results of its trials stay in {folder.path / 'trials'}"
        ) from None


def study_in_use(folder: StudyFolder, spec: StudySpec) -> str:
    """The name of the Optuna study that holds the search: another one after each extension."""
    return str(read_json(folder.study).get("optuna_study", spec.study))


def _mend_end(journal: Path) -> None:
    """Cuts off a last line that was not written whole: what is appended behind it would be lost with it."""
    if journal.exists():
        data = journal.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            with journal.open("r+b") as file:
                file.truncate(len(whole))

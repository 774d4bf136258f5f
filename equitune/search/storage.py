"""The study's Optuna storage: a journal file in its folder, or PostgreSQL. What it loses, the trials restore."""

import errno
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalFileSymlinkLock

from equitune.config.study import StudySpec
from equitune.errors import UserError
from equitune.records.checked import DamagedError, is_there, set_aside
from equitune.records.durable import sync_folder, truncate
from equitune.records.folder import StudyFolder, TrialFolder
from equitune.records.info import read_info
from equitune.records.reader import read_config
from equitune.search.engine import suggested
from equitune.search.samplers import CellSampler
from equitune.search.study_record import JOURNAL

if TYPE_CHECKING:
    from equitune.search.postgres import HeldStorage

Say = Callable[[str], None]

NO_JOURNAL = (
    "--root {}: the search's journal needs a file system, which an object store is not: add --storage with the address "
    "of a PostgreSQL database, postgresql://USER@HOST:PORT/DATABASE"
)


@contextmanager
def storage_at(url: str | None, folder: StudyFolder, spec: StudySpec) -> "Iterator[HeldStorage | None]":
    """Return the database at an address while the block runs, None for the study's journal. Nothing is begun there yet.

    Raises:
        UserError: it does not answer; another driver holds the study; the study lies elsewhere, or another one here.
    """
    if url is None and folder.is_remote:
        raise UserError(NO_JOURNAL.format(folder.path.parent))
    began = is_there(folder.study)
    info = read_info(folder.study) if began else {}
    recorded = info.get("storage", JOURNAL) if began else None
    if url is None:
        if recorded not in (None, JOURNAL):
            raise UserError(
                f"the search of study {spec.study} lies in {recorded}: go on with --storage and its address"
            )
        yield None
        return
    from equitune.search.postgres import holding

    if recorded == JOURNAL:
        raise UserError(
            f"the search of study {spec.study} lies in {folder.journal}: go on without --storage (EQUITUNE_STORAGE)"
        )
    with holding(url, spec.study) as storage:
        owner = _owner(storage, spec.study)
        if owner is not None and owner["id"] != info.get("id"):
            raise UserError(
                f"{storage.name} holds another study {spec.study}, of the folder {owner['folder']}: give this study a "
                "name of its own (study: ...), or take another database"
            )
        if recorded not in (None, storage.name) and owner is None:
            raise UserError(
                f"the search of study {spec.study} lies in {recorded}, and {storage.name} does not hold it: "
                "go on with --storage and the address it began with"
            )
        yield storage


def study_in_use(folder: StudyFolder, spec: StudySpec) -> str:
    """Return the name of the Optuna study that holds the search: another one after each extension."""
    return str(read_info(folder.study).get("optuna_study", spec.study))


def open_storage(
    folder: StudyFolder,
    spec: StudySpec,
    storage: "HeldStorage | None" = None,
    say: Say = lambda sentence: None,
    adapt: Callable[[optuna.Study], optuna.Study] = lambda study: study,
) -> optuna.Study:
    """Open or begin the study's storage: its journal where none is given. The caller holds the study's lock.

    What the trials' folders know and the storage does not is restored as begun: the engine then tells how they ended.
    Before that `adapt` may put another Optuna study in the place of the one in use.
    """
    study = adapt(_open_journal(folder, spec, say) if storage is None else _open(storage, folder, spec))
    if storage is not None:
        study.set_user_attr("owner", {"id": read_info(folder.study)["id"], "folder": _place(folder)})
    _restore(study, folder, spec, say)
    return study


def _open(storage: Any, folder: StudyFolder, spec: StudySpec) -> optuna.Study:
    directions, name = list(spec.directions.values()), study_in_use(folder, spec)
    return optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)


def _open_journal(folder: StudyFolder, spec: StudySpec, say: Say) -> optuna.Study:
    """Return a journal that cannot be read is kept beside the new one."""
    journal = folder.journal
    if not isinstance(journal, Path):
        raise UserError(NO_JOURNAL.format(folder.path.parent))
    journal.with_name(journal.name + ".lock").unlink(missing_ok=True)  # a killed driver's; ours is held
    _mend_end(journal, say)
    try:
        return _open(_journal(journal), folder, spec)
    except OSError:
        raise
    except Exception as error:  # Optuna reads what it finds, and fails in as many ways as a file can be broken
        say(f"{journal} is damaged ({error}): kept as {set_aside(journal)}")
        return _open(_journal(journal), folder, spec)


def _journal(path: Path) -> optuna.storages.JournalStorage:
    """Optuna locks a journal by a symbolic link; some file systems have none."""
    lock: Any = JournalFileSymlinkLock(str(path))
    probe = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        probe.symlink_to(path.name)
        probe.unlink()
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        lock = JournalFileOpenLock(str(path))
    backend = JournalFileBackend(str(path), lock_obj=lock)  # flushes each line
    sync_folder(path.parent)  # it has made the file
    return optuna.storages.JournalStorage(backend)


def _mend_end(journal: Path, say: Say) -> None:
    """Cuts off a last line that was not written whole: what is appended behind it would be lost with it."""
    if journal.exists():
        data = journal.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            truncate(journal, len(whole))
            say(f"{journal} ended within a line, as a kill may leave it: that line is gone, and all before it is kept")


def _restore(study: optuna.Study, folder: StudyFolder, spec: StudySpec, say: Say) -> None:
    """Brings back what the trials' folders know and the storage lost: trials, or parameters of a begun one."""
    begun = [trial for trial in folder.seen("config.json").trials() if is_there(trial.config)]
    known = study.get_trials(deepcopy=False)
    lost = begun[-1].number + 1 - len(known) if begun else 0
    if lost > 0:
        say(f"the search's storage lacks {lost} of {begun[-1].number + 1} trials: restored from their folders")
    by_number = {trial.number: trial for trial in begun}
    for frozen in known:
        if frozen.state == optuna.trial.TrialState.RUNNING and frozen.number in by_number:
            _bring_back(study, spec, by_number[frozen.number], frozen.params, frozen.user_attrs)
    for number in range(len(known), len(known) + lost):
        study.sampler = CellSampler({})
        study.ask()  # one without a folder stays without parameters: the engine samples them
        if number in by_number:
            _bring_back(study, spec, by_number[number], {}, {})


def _bring_back(
    study: optuna.Study, spec: StudySpec, recorded: TrialFolder, params: dict[str, Any], attrs: dict[str, Any]
) -> None:
    """Give a begun trial what its folder knows, and its parameters and attributes lack."""
    try:
        config = read_config(recorded)
    except DamagedError:
        return  # the engine makes it again, from what the storage knows
    study.sampler = CellSampler(config.params)
    trial_id = study._storage.get_trial_id_from_study_id_trial_number(study._study_id, recorded.number)
    trial = optuna.Trial(study, trial_id)
    if config.cell is not None and "cell" not in attrs:
        trial.set_user_attr("cell", config.cell)
    if params.keys() != config.params.keys():
        spec.suggest(recorded.number, partial(suggested, trial), config.cell)


def _owner(storage: "HeldStorage", name: str) -> Any:
    """Whose study of that name a database holds; None where there is none, or where it was just begun."""
    try:
        study_id = storage.get_study_id_from_name(name)
    except KeyError:
        return None
    unknown = {"id": None, "folder": "of nobody"} if storage.get_n_trials(study_id) else None
    return storage.get_study_user_attrs(study_id).get("owner", unknown)


def _place(folder: StudyFolder) -> str:
    return str(folder.path) if folder.is_remote else f"{platform.node()}:{folder.path}"

"""A study from its specification to its end: begins or goes on, runs its trials, reads its test split once."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from equitune.config.study import StudySpec
from equitune.data.splits import load_splits
from equitune.driver.lock import driving
from equitune.driver.log import logging_to
from equitune.driver.outcome import Outcome
from equitune.driver.ray_address import prepare, require_ray
from equitune.driver.ray_files import sweep
from equitune.errors import StoreError, UserError
from equitune.records.checked import is_there
from equitune.records.durable import make_folder
from equitune.records.folder import StudyFolder
from equitune.records.patience import hurry
from equitune.search.compatible import require_extends, require_same_start
from equitune.search.study_record import is_finished, require_same_search

if TYPE_CHECKING:
    from equitune.search.postgres import HeldStorage


def run_study(
    spec: StudySpec,
    folder: StudyFolder,
    *,
    source: Path | None = None,
    overrides: tuple[str, ...] = (),
    address: str | None = None,
    extend: bool = False,
    warm_start: tuple[str, ...] = (),
    storage: str | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Outcome:
    """Run a study to its end, or go on with one that was interrupted; finished trials are kept.

    Args:
        spec: the study.
        folder: where it lies; made if it does not exist.
        source: the YAML file, of which a copy is kept.
        overrides: what `--set` changed, recorded.
        address: of a running Ray cluster; None starts a local one and ends it.
        extend: goes on in another search space, which must hold every trial that there is.
        warm_start: studies beside this one, whose fitting trials a new study begins with.
        storage: address of the PostgreSQL database that holds the search; None takes the journal in the folder.
        say: is told what happens, a sentence at a time.

    Raises:
        UserError: the study cannot begin or go on; says why.
    """
    hurry.clear()
    sweep()
    try:
        make_folder(folder.path)
        with _held_first(storage, folder, spec) as held, driving(folder) as token, logging_to(folder.log):
            if is_there(folder.study):
                require_same_start(folder, warm_start)
                (require_extends if extend else require_same_search)(folder, spec)
                if is_finished(folder, spec):
                    return Outcome("complete")
            if address is not None:
                require_ray(address)
            say(f"loading {spec.data.name}")
            splits = load_splits(spec.data, say)
            prepare(address)  # before the library of Ray is imported
            from equitune.driver import session  # imports torch, Optuna and Ray, which takes seconds

            asked = session.Asked(source, overrides, warm_start, storage, address)
            return session.run(spec, folder, splits, asked, held, token, say)
    except StoreError as error:
        raise UserError(f"{error}, and run the same command again; nothing is lost") from error
    except OSError as error:
        raise UserError(
            f"{error.filename or folder.path} cannot be written: {error.strerror or error}: "
            "mend that and run the same command again; nothing is lost"
        ) from error


@contextlib.contextmanager
def _held_first(storage: str | None, folder: StudyFolder, spec: StudySpec) -> "Iterator[HeldStorage | None]":
    """Of a study in an object store, which has no locks, the database that holds it; None of all others."""
    if not folder.is_remote:
        yield None
        return
    from equitune.search.storage import storage_at

    with storage_at(storage, folder, spec) as database:
        yield database

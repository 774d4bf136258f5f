"""Records of trials held against the search's storage: what is lost, damaged or altered is kept beside and made again.

The storage is flushed with each telling. A record may be gone all the same: removed, torn by a power cut, or changed.
"""

from collections.abc import Callable

from optuna.trial import FrozenTrial, TrialState

from equitune.config.space import Distribution, Scalar
from equitune.config.study import StudySpec
from equitune.config.trial import TrialConfig
from equitune.errors import UserError
from equitune.records.checked import DamagedError, is_there, read_record, set_aside
from equitune.records.folder import TrialFolder, write_json
from equitune.records.reader import read_config, read_result
from equitune.results.values import OnTest, TrialResult
from equitune.search.telling import contradiction

Say = Callable[[str], None]


def must_run_again(spec: StudySpec, folder: TrialFolder, told: FrozenTrial, cell: int | None, say: Say) -> bool:
    """Mend the files of a trial that has ended, and return whether it must be trained again.

    A damaged file is renamed to NAME.broken. A configuration is made again from the parameters in the storage. So is
    the record of a trial that was stopped early or FAILED, of which the storage knows all there was.

    Args:
        spec: the study.
        folder: the trial's, which may be gone.
        told: the trial as the storage knows it.
        cell: its place in the list of a design.
        say: is told what was wrong, a sentence for each trial.

    Raises:
        UserError: its parameters are lost in both places.
        NewerError: a newer version of the program has written a file.
    """
    mended = _mend_config(spec, folder, told, cell)
    if is_there(folder.epochs):
        try:
            folder.read_epochs()
        except DamagedError as error:
            mended.append(f"{error.reason} (epochs.jsonl, kept as {set_aside(folder.epochs)})")
    why = _why_not(spec, folder, told, mended)
    if why is None:
        _say(say, told, mended, "mended")
        return False
    kept = f", kept as {set_aside(folder.result)}" if is_there(folder.result) else ""
    mended.append(f"{why} (result.json{kept})")
    if result := _ending(told):
        write_json(folder.result, result.model_dump(mode="json"))
        _say(say, told, mended, f"recorded as {result.state} again")
        return False
    if is_there(folder.test):  # it was measured with the weights of before
        set_aside(folder.test)
    _say(say, told, mended, "trained again under its number")
    return True


def readable_result(folder: TrialFolder, has_params: bool, say: Say) -> TrialResult | None:
    """Return the result of a trial of which the search was told nothing yet; one that cannot be told is set aside.

    Args:
        folder: the trial's.
        has_params: whether the storage knows its parameters, so that a damaged configuration can be made again.
        say: is told what was wrong.
    """
    whole = True
    for path, read in ((folder.config, read_config), (folder.result, read_result)):
        try:
            if is_there(path):
                read(folder)
        except DamagedError as error:
            whole = whole and (path == folder.config and has_params)
            say(f"trial {folder.number}: {path.name} is damaged ({error.reason}): kept as {set_aside(path)}")
    if not is_there(folder.result):
        return None
    if whole and (has_params or is_there(folder.config)):
        return read_result(folder)
    say(f"trial {folder.number}: nothing says of which parameters its result is: kept as {set_aside(folder.result)}")
    return None


def place_in_design(spec: StudySpec, folder: TrialFolder, trial: FrozenTrial) -> int | None:
    """Return the cell of a trial of a design: as told, as recorded, or its number, before trials had a cell."""
    cell: int | None = trial.user_attrs.get("cell")
    if cell is not None or not spec.search.design:
        return cell
    try:
        recorded = read_config(folder).cell
    except DamagedError:
        return trial.number if trial.state.is_finished() else None
    return trial.number if recorded is None else recorded


def rebuilt(spec: StudySpec, told: FrozenTrial, cell: int | None) -> TrialConfig:
    """Return the configuration of a trial from its parameters in the storage.

    Raises:
        UserError: some of them are not there.
    """

    def recorded(name: str, distribution: Distribution) -> Scalar:
        value: Scalar = told.params[name]
        return value

    try:
        return spec.suggest(told.number, recorded, cell)
    except KeyError as error:
        raise UserError(
            f"study {spec.study}: trial {told.number} has ended, and its {error} is neither in its config.json nor in "
            f"the search's storage: restore the folder of the trial from a copy"
        ) from None


def _mend_config(spec: StudySpec, folder: TrialFolder, told: FrozenTrial, cell: int | None) -> list[str]:
    """Make the configuration again where it is damaged, or has other parameters; return what was wrong with it."""
    try:
        config = read_config(folder)
        if config.params == told.params:
            return []
        why = "its parameters are not those that the search proposed"
    except DamagedError as error:
        why = error.reason
    again = rebuilt(spec, told, cell)
    kept = f", kept as {set_aside(folder.config)}" if is_there(folder.config) else ""
    write_json(folder.config, again.to_json())
    return [f"{why} (config.json{kept})"]


def _why_not(spec: StudySpec, folder: TrialFolder, told: FrozenTrial, mended: list[str]) -> str | None:
    """Return why the record of an ended trial cannot stay; None where it says what the search was told.

    A damaged test.json is noted in `mended`: the engine has those tested that lack one.
    """
    try:
        result = read_result(folder)
    except DamagedError as error:
        return error.reason
    if why := contradiction(spec, result, told):
        return why
    if result.state != "COMPLETE":
        return None
    if folder.weights.exists() and folder.weights.stat().st_size == 0:  # as a power cut leaves them
        return f"its weights are empty (kept as {set_aside(folder.weights)})"
    try:
        if is_there(folder.test):
            read_record(OnTest, folder.test)
    except DamagedError as error:
        kept = set_aside(folder.test)
        if not is_there(folder.weights):
            return f"test.json is damaged ({error.reason}; kept as {kept}), and there are no weights to measure"
        mended.append(f"{error.reason} (test.json, kept as {kept})")
    return None


def _ending(told: FrozenTrial) -> TrialResult | None:
    """Return the record of a trial of which the storage knows all that was told; None of one that has numbers."""
    if told.state == TrialState.FAIL:
        return TrialResult(number=told.number, state="FAILED", reason="it FAILED; why was lost with its record")
    if told.state == TrialState.PRUNED and all(value <= 0 for value in told.constraints.values()):
        return TrialResult(number=told.number, state="PRUNED", reason="stopped early; when was lost with its record")
    return None


def _say(say: Say, told: FrozenTrial, mended: list[str], end: str) -> None:
    if mended:
        say(f"trial {told.number}: {'; '.join(mended)}: {end}")

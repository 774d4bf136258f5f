"""A study's record: how it begins, whether it is the same search, and what it keeps at its end."""

import hashlib
import platform
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from equitune import __version__
from equitune.analysis.arms import to_test
from equitune.config.changes import changes, defaults_of
from equitune.config.record import FORMAT
from equitune.config.study import StudySpec
from equitune.errors import UserError
from equitune.records.checked import DamagedError, is_there
from equitune.records.folder import StudyFolder, read_json, write_json, write_whole
from equitune.records.info import read_info
from equitune.records.reader import StudyReader, StudyRecord
from equitune.records.revision import revision
from equitune.search.engine import Engine

JOURNAL = "journal"  # what study.json calls the Optuna storage in the study's folder; a database has an address


def is_finished(folder: StudyFolder, spec: StudySpec) -> bool:
    study = StudyReader(folder).read()
    enough = study.num_settled() >= spec.search.trials + study.info.get("imported", 0)
    same = not any(changes(study.info, spec))
    unaltered = study.info.get("answer") == _digest(study)  # else the search's storage says what is
    again = spec.search.design and any(trial.state == "FAILED" for trial in study.counted())
    return (
        same
        and unaltered
        and study.state == "complete"
        and enough
        and not again
        and all(trial.test for trial in to_test(study))
    )


def record_end(folder: StudyFolder, engine: "Engine") -> None:
    """Keep which budget ended the study, and a digest of its answer; a larger budget goes on."""
    answer = {"ended_by": engine.ended_by(), "answer": _digest(StudyReader(folder).read())}
    write_json(folder.study, {"format": FORMAT} | read_info(folder.study) | answer)


def _digest(study: StudyRecord) -> str:
    """Return a hash of all that a study's trials say: while it stays the same, nobody has changed a number."""
    digest = hashlib.sha256()
    for trial in study.trials:
        for record in (trial.config, trial.result, *trial.test.values()):
            digest.update(record.model_dump_json().encode() if record else b"-")
    return digest.hexdigest()[:16]


def require_same_search(folder: StudyFolder, spec: StudySpec) -> None:
    """Refuses to mix two searches in one folder.

    Raises:
        UserError: another search has this name; says what differs.
    """
    found = [f"{path} was {before}, is {after}" for path, before, after in changes(read_info(folder.study), spec)]
    if found:
        raise UserError(
            f"study {spec.study} exists in {folder.path} with another search space: {'; '.join(found)}: "
            "give the changed study a name of its own (study: ...), or move the old one away; "
            "--extend goes on in a space that holds every trial"
        )


def begin(
    folder: StudyFolder,
    spec: StudySpec,
    source: Path | None,
    overrides: tuple[str, ...],
    storage: str = JOURNAL,
    started: Mapping[str, Any] | None = None,
) -> None:
    """Make the study's record in its folder; one that is there takes over the budget and the references.

    `started` is what a new one says of a warm start.
    """
    if is_there(folder.study):
        taken_over = _budget(spec) | {"references": spec.references, "storage": storage, "ended_by": None}
        write_json(folder.study, {"format": FORMAT} | read_info(folder.study) | taken_over)
        return
    write_json(
        folder.study,
        {
            "format": FORMAT,
            "id": _known_id(folder) or uuid.uuid4().hex,
            "study": spec.study,
            "objectives": spec.directions,
            "references": spec.references,
            "constraints": spec.given_constraints(),
            **_budget(spec),
            **asked(spec, source, overrides),
            "storage": storage,
            "created": time.time(),
            "provenance": provenance(),
            **(started or {}),
        },
    )
    if source:
        write_whole(folder.searchspace, source.read_bytes())


def _known_id(folder: StudyFolder) -> str | None:
    """Return the id of a study whose study.json is gone, and which has runs in MLflow: they stay its own."""
    try:
        known = read_json(folder.runs)["study_id"]
    except (DamagedError, KeyError, TypeError):
        return None
    return known if isinstance(known, str) else None


def asked(spec: StudySpec, source: Path | None, overrides: tuple[str, ...]) -> dict[str, Any]:
    """Return what study.json keeps of the question: the search space, and where it came from."""
    return {
        "fingerprint": spec.fingerprint(),
        "identity": spec.identity(),
        "defaults": defaults_of(spec),
        "overrides": list(overrides),
        "source": str(source) if source else None,
    }


def _budget(spec: StudySpec) -> dict[str, float | None]:
    return spec.search.model_dump(include={"trials", "replicates", "hours", "gpu_hours"})


def provenance() -> dict[str, str]:
    """Return the program and the place that a study began with."""
    found = {"equitune": __version__, "python": platform.python_version(), "host": platform.node()}
    git = revision()
    return found | {"git": git} if git else found

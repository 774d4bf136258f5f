"""All studies under a root, a line each."""

import os
import time
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from equitune.analysis.pareto import front
from equitune.errors import StoreError, UserError
from equitune.records.checked import is_there
from equitune.records.folder import StudyFolder
from equitune.records.place import Place, RemotePath
from equitune.records.reader import StudyReader
from equitune.report.arms import ARROW
from equitune.report.front import shown
from equitune.results.values import Measurement

MLFLOW_FILES = "mlartifacts"  # what a tracking store beside the studies keeps there


@dataclass(frozen=True)
class Best:
    """The best value that a study has found in one objective."""

    direction: str
    trial: int
    metric: Measurement


@dataclass(frozen=True)
class ListedStudy:
    """One line of the list; `reason` says why there is nothing else to say of a folder."""

    study: str
    state: str  # running, complete or interrupted; unreadable, of a folder that is damaged or no study
    changed: float  # Unix time, in seconds
    reason: str | None = None
    damaged: tuple[str, ...] = ()  # a sentence for each file of a trial that cannot be read
    ended: int = 0
    planned: int = 0
    front: int = 0
    best: dict[str, Best] = field(default_factory=dict)  # by objective


def listed(root: Place) -> list[ListedStudy]:
    """Every folder under a root as a study, the one that changed last first. Results are read, epochs are not."""
    found = [_line_of(StudyFolder(root / name)) for name in _folders(root) if name != MLFLOW_FILES]
    return sorted(found, key=lambda study: (-study.changed, study.study))


def _folders(root: Place) -> list[str]:
    if isinstance(root, RemotePath):
        return [entry.name for entry in root.iterdir()]
    if not root.is_dir():
        return []
    with os.scandir(root) as entries:
        return [entry.name for entry in entries if not entry.name.startswith(".") and _is_folder(entry)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether a study may lie there; a link that leads nowhere, or to itself, is listed as one that cannot be read."""
    try:
        return entry.is_dir() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:
        return True


def as_json(root: Place) -> list[dict[str, Any]]:
    """Return what `equitune list --json` prints: a stable interface, to which keys may be added."""
    return [
        {
            "study": study.study,
            "state": study.state,
            "reason": study.reason,
            "damaged": list(study.damaged),
            "ended": study.ended,
            "planned": study.planned,
            "front": study.front,
            "changed": study.changed,
            "best": {
                name: {
                    "direction": best.direction,
                    "trial": best.trial,
                    "value": best.metric.value,
                    "stderr": best.metric.stderr,
                }
                for name, best in study.best.items()
            },
        }
        for study in listed(root)
    ]


def list_table(studies: list[ListedStudy]) -> Table:
    """Return a row each; each objective has a line with its best value and the trial that has it."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("study", "state"):
        table.add_column(name, overflow="fold")
    for name in ("trials", "front"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("best of each objective")
    table.add_column("last changed", no_wrap=True)
    for study in studies:
        changed = time.strftime("%Y-%m-%d %H:%M", time.localtime(study.changed))
        if study.reason:
            table.add_row(study.study, study.state, "–", "–", study.reason, changed)
            continue
        best = "\n".join(
            f"{name} {ARROW[each.direction]} {shown(each.metric)} (trial {each.trial})"
            for name, each in study.best.items()
        )
        if study.damaged:
            best += f"\n{len(study.damaged)} damaged: equitune show {study.study} names them"
        trials = f"{study.ended} of {study.planned}"
        table.add_row(study.study, study.state, trials, str(study.front), best or "–", changed)
    return table


def _line_of(folder: StudyFolder) -> ListedStudy:
    """Return a study's line: one that cannot be read says why, and hides no other."""
    try:
        return _listed(folder)
    except StoreError:
        raise
    except (UserError, OSError) as error:
        reason = str(error) if isinstance(error, UserError) else f"it cannot be read: {error.strerror or error}"
        return ListedStudy(folder.name, "unreadable", 0.0, f"damaged: {reason}")


def _listed(folder: StudyFolder) -> ListedStudy:
    folder = folder.seen("study.json", "config.json", "result.json")
    changed = _last_changed(folder)
    if not is_there(folder.study):
        return ListedStudy(folder.name, "unreadable", changed, "no study: it has no study.json")
    try:
        study = StudyReader(folder, brief=True).read()
        members = front(study)
    except UserError as error:
        return ListedStudy(folder.name, "unreadable", changed, f"damaged: {error}")
    best = {}
    for name, direction in study.objectives.items():
        values = {trial.number: value for trial in members if (value := trial.metrics[name].value) is not None}
        if values:
            number = (max if direction == "maximize" else min)(values, key=values.__getitem__)
            metric = next(trial.metrics[name] for trial in members if trial.number == number)
            best[name] = Best(direction, number, metric)
    return ListedStudy(
        study=folder.name,
        state=study.state,
        changed=changed,
        ended=study.num_settled(),
        planned=study.num_planned,
        front=len(members),
        best=best,
        damaged=study.damaged,
    )


def _last_changed(folder: StudyFolder) -> float:
    """When a file of the study was last made or replaced: where that is a trial's, its folder is newer for it."""
    if isinstance(folder.path, RemotePath):
        return float(folder.path.files.last_modified())
    newest = folder.path.stat().st_mtime
    for path in (folder.study, folder.driver, folder.path / "trials"):
        if path.exists():
            newest = max(newest, path.stat().st_mtime)
    if (folder.path / "trials").is_dir():
        with os.scandir(folder.path / "trials") as trials:
            newest = max([newest, *(trial.stat(follow_symlinks=False).st_mtime for trial in trials)])
    return newest

"""All studies under a root, a line each."""

import os
import time
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from equitune.analysis.pareto import front
from equitune.errors import UserError
from equitune.records.folder import StudyFolder
from equitune.records.place import Place, RemotePath
from equitune.records.reader import StudyReader
from equitune.records.results import Measurement
from equitune.report.arms import ARROW
from equitune.report.front import shown

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
    ended: int = 0
    planned: int = 0
    front: int = 0
    best: dict[str, Best] = field(default_factory=dict)  # by objective


def listed(root: Place) -> list[ListedStudy]:
    """Every folder under a root as a study, the one that changed last first. Results are read, epochs are not."""
    found = [_listed(StudyFolder(root / name)) for name in _folders(root) if name != MLFLOW_FILES]
    return sorted(found, key=lambda study: (-study.changed, study.study))


def _folders(root: Place) -> list[str]:
    if isinstance(root, RemotePath):
        return [entry.name for entry in root.iterdir()]
    if not root.is_dir():
        return []
    return [entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith(".")]


def as_json(root: Place) -> list[dict[str, Any]]:
    """What `equitune list --json` prints: a stable interface, to which keys may be added."""
    return [
        {
            "study": study.study,
            "state": study.state,
            "reason": study.reason,
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
    """A row each; each objective has a line with its best value and the trial that has it."""
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
        trials = f"{study.ended} of {study.planned}"
        table.add_row(study.study, study.state, trials, str(study.front), best or "–", changed)
    return table


def _listed(folder: StudyFolder) -> ListedStudy:
    folder = folder.seen("study.json", "config.json", "result.json")
    changed = _last_changed(folder)
    if not folder.study.is_file():
        return ListedStudy(folder.name, "unreadable", changed, "no study: it has no study.json")
    try:
        study = StudyReader(folder, brief=True).read()
        members = front(study)
    except (UserError, OSError) as error:
        return ListedStudy(folder.name, "unreadable", changed, f"damaged: {error}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # JSON, but not that of a study
        reason = f"damaged: study.json is not that of a study ({type(error).__name__}: {error})"
        return ListedStudy(folder.name, "unreadable", changed, reason)
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
            newest = max([newest, *(trial.stat().st_mtime for trial in trials)])
    return newest

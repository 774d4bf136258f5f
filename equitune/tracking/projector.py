"""Projects a study's folder into MLflow: once, or again and again while the study runs.

It reads what lies in the folder and sends what the store does not have yet, so it can stop, fail and begin again at any
moment; points carry the time of their record, which makes sending them twice harmless. Numbers go first; pictures and
files, which cost more, follow when there is time.
"""

import json
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from equitune.analysis.hypervolume import ended_at
from equitune.analysis.pareto import front
from equitune.config.record import FORMAT
from equitune.errors import UserError
from equitune.records.folder import StudyFolder, write_json
from equitune.records.reader import StudyReader, StudyRecord, TrialRecord
from equitune.tracking.orphans import FRONT
from equitune.tracking.progress import Progress
from equitune.tracking.store import FILES, Point, Store, metric_points, sentence

WriteFront = Callable[[StudyRecord, Path], list[Path]]
WriteProfile = Callable[[TrialRecord, Path], bool]

_STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "INFEASIBLE": "KILLED", "FAILED": "FAILED", "RUNNING": "RUNNING"}
_STUDY_STATUS = {"complete": "FINISHED", "interrupted": "KILLED", "running": "RUNNING"}

log = logging.getLogger(__name__)
log.addHandler(logging.NullHandler())  # without a log file, nothing is said on the terminal


class Projector:
    """Keeps the runs of one study up to date. Pictures are drawn by functions that it is given."""

    def __init__(
        self,
        folder: StudyFolder,
        tracking_uri: str,
        write_front: WriteFront,
        write_profile: WriteProfile,
        *,
        everything: bool = True,
        reader: StudyReader | None = None,
    ) -> None:
        """`everything`: sends also what the store says it has, of which somebody may have removed a part.

        `reader`: of the folder, where there is one already: what it keeps grows with the trials.
        """
        self._folder, self._reader = folder, reader or StudyReader(folder)
        self.store = Store(tracking_uri, folder)
        self._write_front, self._write_profile = write_front, write_profile
        self._everything = everything
        self._progress: Progress | None = None
        self._unsent: list[Point] = []
        self._epochs_sent: dict[int, int] = {}
        self._finished: set[int] = set()
        self._tested: set[int] = set()
        self._drawn: set[int] = set()
        self._num_ended_drawn = -1
        self._places: dict[str, Any] | None = None  # as the study's folder knows them

    def open(self) -> None:
        """Connect, which takes seconds the first time: MLflow is imported, and its tables are made."""
        if self._progress is not None:
            return
        study = self._reader.read()
        self.store.open(study)
        if not self._everything:
            self._finished = {t.number for t in study.ended() if self.store.has_status(t.number, _STATUS[t.state])}
            self._drawn = self._finished & self.store.with_files
        self._progress = Progress(self.store.steps_sent())

    def step(self) -> None:
        """Send every number that is new. What fails raises, and is sent with the next step."""
        self.open()
        study = self._reader.read()
        for trial in study.trials:
            if trial.number not in self._finished:
                self._send_trial(study, trial)
            if trial.test and trial.number not in self._tested:
                self.store.log(trial.number, points=_test_points(trial))
                self._tested.add(trial.number)
        assert self._progress is not None
        self._unsent += self._progress.points(study)
        self.store.log(None, points=self._unsent)
        self._unsent = []
        self._mark_front(study)
        self.store.set_status(None, _STUDY_STATUS[study.state], _last_s(study))
        if (places := self.store.places()) != self._places:
            write_json(self._folder.runs, {"format": FORMAT, "study_id": study.info["id"]} | places)
            self._places = places

    def draw_next(self) -> bool:
        """Draws and sends the study's pictures, or the files of one trial, the front's first; False: nothing is left.

        Call it after a step.
        """
        study = self._reader.read()
        ended = [trial for trial in study.ended() if trial.number in self._finished]
        if len(ended) != self._num_ended_drawn:
            self._send_pictures(study)
            self._num_ended_drawn = len(ended)
            return True
        left = [trial for trial in ended if trial.number not in self._drawn]
        left.sort(key=lambda trial: self.store.fronts.get(trial.number) != "true")
        if left:
            self._send_files(left[0])
            self._drawn.add(left[0].number)
        return bool(left)

    def sees_the_end(self) -> bool:
        """Whether the last trial has ended and is not sent yet: then there is nothing left to rest for."""
        study = self._reader.read()
        return study.state == "complete" and len(self._finished) < len(study.trials)

    def _send_trial(self, study: StudyRecord, trial: TrialRecord) -> None:
        new = trial.epochs[self._epochs_sent.get(trial.number, 0) :]
        self.store.ensure_run(study, trial)
        self.store.log(trial.number, points=[point for epoch in new for point in _epoch_points(epoch)])
        self._epochs_sent[trial.number] = len(trial.epochs)
        if trial.result is None:
            self.store.set_status(trial.number, "RUNNING")
            return
        tags = {"equitune.state": trial.state, "equitune.reason": trial.reason or ""}
        tags |= {f"equitune.{name}": value for name, value in trial.result.provenance.items()}
        tags |= {f"equitune.exact.{symmetry}": verdict.said for symmetry, verdict in trial.exact.items()}
        if broken := study.violations(trial):
            tags["equitune.violates"] = "; ".join(f"{name}: {reason}" for name, reason in broken.items())
        self.store.log(trial.number, points=_final_points(trial), tags=tags)
        self.store.set_status(trial.number, _STATUS[trial.state], ended_at(trial))
        self._finished.add(trial.number)

    def _send_files(self, trial: TrialRecord) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            picture, table = Path(scratch) / "profile.png", Path(scratch) / "profile.json"
            if self._write_profile(trial, picture):
                self.store.add_file(trial.number, picture)
            if trial.result and trial.result.profile:
                table.write_text(json.dumps(_table(trial.result.profile)), encoding="utf-8")
                self.store.add_table(trial.number, table)
            folder = self._folder.trial(trial.number)
            for path in (folder.config, folder.result, folder.weights, folder.log):
                if path.exists():
                    self.store.add_file(trial.number, path)
        self.store.log(trial.number, tags={FILES: "true"})

    def _mark_front(self, study: StudyRecord) -> None:
        """Set the front as a tag on the runs of its members, and of those that are not."""
        members = {trial.number for trial in front(study)}
        for trial in study.ended():
            said = str(trial.number in members).lower()
            if self.store.fronts.get(trial.number) != said:
                self.store.log(trial.number, tags={FRONT: said})
                self.store.fronts[trial.number] = said

    def _send_pictures(self, study: StudyRecord) -> None:
        """Send the front as picture, page and table to the study's run."""
        with tempfile.TemporaryDirectory() as scratch:
            for path in self._write_front(study, Path(scratch)):
                self.store.add_file(None, path)
        if self._folder.searchspace.exists():
            self.store.add_file(None, self._folder.searchspace)


def sync(folder: StudyFolder, tracking_uri: str, write_front: WriteFront, write_profile: WriteProfile) -> None:
    """Projects a whole study, once.

    Raises:
        UserError: the tracking store does not answer.
    """
    try:
        projector = Projector(folder, tracking_uri, write_front, write_profile)
        projector.step()
        while projector.draw_next():
            pass
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"MLflow at {tracking_uri} cannot be written: {sentence(error)}") from error


def _last_s(study: StudyRecord) -> float:
    """When the study's last trial reported, as Unix time."""
    return max((trial.epochs[-1].time for trial in study.trials if trial.epochs), default=study.info["created"])


def _epoch_points(epoch: Any) -> list[Point]:
    names = ("train_loss", "validation_loss", "validation_accuracy", "lr", "images_per_s")
    points = [Point(name, getattr(epoch, name), epoch.time, epoch.epoch) for name in names]
    return points + [Point(f"rung_{name}", value, epoch.time, epoch.epoch) for name, value in epoch.metrics.items()]


def _final_points(trial: TrialRecord) -> list[Point]:
    time_s = ended_at(trial)
    points = list(metric_points(trial.metrics, time_s, step=trial.config.training.epochs))
    for layer, amount in trial.amounts.items():  # a metric each, in a section of their own, with its two values
        points.append(Point(f"amount/{layer}", amount.before, trial.started, 0))
        points.append(Point(f"amount/{layer}", amount.after, time_s, trial.config.training.epochs))
    return points


def _test_points(trial: TrialRecord) -> list[Point]:
    sampled = {name: metric for name, metric in trial.test.items() if metric.split == "test"}
    return list(metric_points(sampled, ended_at(trial), step=trial.config.training.epochs, prefix="test_"))


def _table(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Rows of unequal columns as MLflow's UI reads a table."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return {"columns": columns, "data": [[row.get(name) for name in columns] for row in rows]}

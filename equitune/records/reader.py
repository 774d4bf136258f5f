"""Reads a study back from its folder, again and again at little cost: what has ended is read once."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from equitune.config.objectives import Bound
from equitune.config.trial import TrialConfig
from equitune.errors import StoreError
from equitune.records.checked import DamagedError, is_there, read_record
from equitune.records.folder import StudyFolder, TrialFolder
from equitune.records.info import read_info
from equitune.records.place import Place
from equitune.results.values import Amount, Epoch, Epochs, Measurement, OnTest, TrialResult, Verdict

Trial = TypeVar("Trial", TrialConfig, TrialResult)

HEARTBEAT_LOST_S = 30.0  # a driver touches its file every 5 s


@dataclass(frozen=True)
class TrialRecord:
    """One trial as it stands."""

    config: TrialConfig
    epochs: Sequence[Epoch]
    result: TrialResult | None  # None: it has not ended
    started: float  # Unix time, in seconds
    test: dict[str, Measurement] = field(default_factory=dict)
    has_worker: bool = True  # whether a worker has claimed it, and not been lost since
    damaged: tuple[str, ...] = ()  # a sentence for each file of it that cannot be read

    @property
    def number(self) -> int:
        return self.config.number

    @property
    def cell(self) -> int:
        """Its place in the list of a design; of other trials, and of designs from before, its number."""
        return self.number if self.config.cell is None else self.config.cell

    @property
    def state(self) -> str:
        return self.result.state if self.result else "RUNNING"

    @property
    def reason(self) -> str | None:
        return self.result.reason if self.result else None

    @property
    def metrics(self) -> dict[str, Measurement]:
        return self.result.metrics if self.result else {}

    @property
    def amounts(self) -> dict[str, Amount]:
        return self.result.amounts if self.result else {}

    @property
    def exact(self) -> dict[str, Verdict]:
        return self.result.exact if self.result else {}

    def violations(self, constraints: Mapping[str, Bound]) -> dict[str, str]:
        """Return the constraints that it violates, each with what is wrong; none while it is not complete.

        A metric without a value violates its constraint.
        """
        if self.state != "COMPLETE":
            return {}
        values = {name: self.metrics[name].value if name in self.metrics else None for name in constraints}
        reasons = {name: bound.why_not(values[name]) for name, bound in constraints.items()}
        return {name: reason for name, reason in reasons.items() if reason}


@dataclass(frozen=True)
class StudyRecord:
    """A study as it stands."""

    name: str
    objectives: dict[str, str]  # metric -> maximize or minimize
    num_planned: int
    is_driven: bool  # whether a driver is at work
    info: dict[str, Any]  # study.json
    trials: list[TrialRecord]
    references: dict[str, float] = field(default_factory=dict)  # objective -> the worst value that counts, where given
    constraints: dict[str, Bound] = field(default_factory=dict)  # metric -> where its values may lie
    damaged: tuple[str, ...] = ()  # a sentence for each file that cannot be read; what it told is left out

    @property
    def state(self) -> str:
        """`running`, `complete`, or `interrupted`: the same command goes on."""
        by_time = self.ended_by is not None and not self.ended_by.startswith("trials") and not self.is_driven
        is_at_end = by_time or self.num_settled() >= self.num_planned
        if is_at_end and not self.damaged:
            return "complete"
        return "running" if self.is_driven else "interrupted"

    @property
    def ended_by(self) -> str | None:
        """The budget that ended the study, such as `hours: 2.0 of 2.0`; None: it goes on, or nobody said."""
        said: str | None = self.info.get("ended_by")
        return said

    @property
    def replicates(self) -> int:
        """How often each combination of parameters is trained."""
        return int(self.info.get("replicates", 1))

    def violations(self, trial: TrialRecord) -> dict[str, str]:
        """Return the constraints that a complete trial violates, each with what is wrong."""
        return trial.violations(self.constraints)

    def feasible(self) -> list[TrialRecord]:
        """Return the complete trials that keep every constraint: those that a front is made of."""
        return [trial for trial in self.trials if trial.state == "COMPLETE" and not self.violations(trial)]

    def ended(self) -> list[TrialRecord]:
        return [trial for trial in self.trials if trial.result is not None]

    def counted(self) -> list[TrialRecord]:
        """Return the trials that count, one a cell: of a design, a cell whose trial failed is trained again."""
        return list({trial.cell: trial for trial in self.trials}.values())

    def num_settled(self) -> int:
        """How many of those that count have ended."""
        return sum(trial.result is not None for trial in self.counted())


class StudyReader:
    """Reads one study; keeps what cannot change any more. Several threads may share one, and so keep it once.

    Args:
        folder: the study's.
        brief: leaves out the epochs, which are most of a study, and what was measured on the test split.
    """

    def __init__(self, folder: StudyFolder, brief: bool = False) -> None:
        self.folder = folder
        self._brief = brief
        self._reading = threading.Lock()
        self._kept: dict[int, TrialRecord] = {}
        self._configs: dict[int, TrialConfig] = {}
        self._seen: StudyFolder | None = None  # the last look at a folder in an object store

    def read(self) -> StudyRecord:
        """Return the study as it stands now. Files of its trials that are damaged are left out, and named in `damaged`.

        Raises:
            UserError: `study.json` is missing or not whole, or a newer version of the program has written a file.
            StoreError: it lies in an object store that refuses, or does not answer.
        """
        with self._reading:
            return self._read()

    def _read(self) -> StudyRecord:
        names = ("study.json", "config.json", "result.json", *(() if self._brief else ("epochs.jsonl", "test.json")))
        folder = self._seen = self.folder.seen(*names, but=self._kept, before=self._seen)
        info = read_info(folder.study)
        trials: list[TrialRecord] = []
        damaged: list[str] = []
        for number in folder.numbers():
            record = self._kept.get(number)
            if record is None or (not record.test and not self._brief and folder.is_tested(number)):
                try:
                    record = self._read_trial(folder.trial(number))
                except DamagedError as error:
                    damaged.append(str(error))
            if record is not None:
                trials.append(record)
                damaged += record.damaged
        return StudyRecord(
            name=info["study"],
            objectives=info["objectives"],
            references=info.get("references", {}),
            constraints=constraints_of(info),
            num_planned=info["trials"] + info.get("imported", 0),
            is_driven=is_driven(folder),
            info=info,
            trials=trials,
            damaged=tuple(damaged),
        )

    def _read_trial(self, folder: TrialFolder) -> TrialRecord | None:
        if not is_there(folder.config) and not is_there(folder.result):
            return None  # between the folder and its first file
        record = read_trial(folder, self._configs.get(folder.number), self._brief)
        self._configs[folder.number] = record.config
        if record.result is not None and not record.damaged:
            self._kept[folder.number] = record
        return record


def read_trial(folder: TrialFolder, config: TrialConfig | None = None, brief: bool = False) -> TrialRecord:
    """One trial as it stands. Of its files, `damaged` names those without which it is still a trial.

    Args:
        folder: the trial's, which has a configuration.
        config: that configuration, where it has been read before.
        brief: leaves out its epochs, and what was measured on the test split.

    Raises:
        DamagedError: its configuration or its result is missing, not whole, or of another trial.
        NewerError: a newer version of the program has written a file.
    """
    config = config or read_config(folder)
    result = read_result(folder) if is_there(folder.result) else None
    damaged: list[str] = []
    test: dict[str, Measurement] = {}
    epochs: Sequence[Epoch] = ()
    if not brief:
        with _noting(damaged):
            test = read_record(OnTest, folder.test).metrics if is_there(folder.test) else {}
        with _noting(damaged):
            epochs = folder.read_epochs()
    return TrialRecord(
        config=config,
        epochs=Epochs(tuple(epoch.model_dump_json() for epoch in epochs)) if result else epochs,
        result=result,
        started=folder.config.stat().st_mtime,
        test=test,
        damaged=tuple(damaged),
        has_worker=result is not None or folder.worker.exists(),
    )


def read_config(folder: TrialFolder) -> TrialConfig:
    """Return a trial's configuration. Raises DamagedError and NewerError, as `read_trial`."""
    return _of(folder, read_record(TrialConfig, folder.config), folder.config)


def read_result(folder: TrialFolder) -> TrialResult:
    """Return how a trial ended. Raises DamagedError and NewerError, as `read_trial`."""
    return _of(folder, read_record(TrialResult, folder.result), folder.result)


def _of(folder: TrialFolder, record: Trial, path: Place) -> Trial:
    """Return the record of a trial, where that is the one whose folder this is."""
    if folder.path.parent.name == "trials" and record.number != folder.number:
        raise DamagedError(path, f"it is that of trial {record.number}")
    return record


@contextmanager
def _noting(damaged: list[str]) -> Iterator[None]:
    try:
        yield
    except DamagedError as error:
        damaged.append(str(error))


def constraints_of(info: Mapping[str, Any]) -> dict[str, Bound]:
    """Return the constraints of the study with this study.json; none where it is older than they are."""
    return {name: Bound(**bound) for name, bound in info.get("constraints", {}).items()}


def is_driven(folder: StudyFolder) -> bool:
    """Whether a driver is at work on a study: its heartbeat is fresh."""
    try:
        return time.time() - folder.heartbeat.stat().st_mtime < HEARTBEAT_LOST_S
    except StoreError:
        raise
    except OSError:
        return False

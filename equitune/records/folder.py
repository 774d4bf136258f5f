"""The one small door to a study's folder. Nothing else knows where its files lie: on a disk, or in an object store.

<root>/<study>/
  searchspace.yaml study.json     the question as asked, and as understood
  study.journal                   Optuna's storage, unless that is a database
  driver.lock driver.json         who searches now; in an object store, which has no locks, `heartbeat` beats beside it
  usage.json mlflow.json          the time that the study has taken; where its runs are
  trials/00017/                   config.json epochs.jsonl checkpoint.pt result.json test.json
                                  weights.safetensors log.txt; worker.json: who trains it; NAME.broken: a
                                  damaged file that was made again
  front.png front.html front.csv  the answer; arms.csv, where there are replicates
  study.log                       what the libraries had to say
  attempts/                       Ray Tune's own files, one folder an attempt; disposable, and on a disk alone
"""

import errno
import os
import platform
import re
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from equitune import catalog
from equitune.errors import GivenUp, TakenOver, UserError
from equitune.records.checked import DamagedError, is_there, read_bytes
from equitune.records.checked import read_json as read_json
from equitune.records.durable import append as append
from equitune.records.durable import write_json as write_json
from equitune.records.durable import write_whole as write_whole
from equitune.records.place import Place, RemotePath, place_of, require_answer
from equitune.records.seen import Seen
from equitune.results.values import Epoch

NUMBER = "0[0-9]{4}|[1-9][0-9]{4,8}"  # a trial's folder
REST_S = 2.0  # between two looks at a folder in an object store, for each of which somebody pays


class TrialFolder:
    """The files of one trial, whose folder is named by its number. Its worker writes them, but for `config.json`.

    A worker may outlive its driver, or go on on a machine that the driver has given up. One that has its driver's token
    and claimed the trial writes for as long as that driver holds the study and no other worker claimed the trial.
    """

    def __init__(self, path: Place, number: int | None = None, *, token: str | None = None) -> None:
        self.path = path
        self._token = token
        self._claim: str | None = None
        self.number = int(path.name) if number is None else number
        self.config = path / "config.json"
        self.epochs = path / "epochs.jsonl"
        self.checkpoint = path / "checkpoint.pt"
        self.weights = path / "weights.safetensors"
        self.result = path / "result.json"
        self.worker = path / "worker.json"
        self.test = path / "test.json"
        self.log = path / "log.txt"

    def claim(self) -> None:
        """Take the trial from whoever had it before. Raises TakenOver where the driver is not ours."""
        self.require_held()
        self._claim = uuid.uuid4().hex
        write_json(self.worker, {"pid": os.getpid(), "host": platform.node(), "claim": self._claim})

    def release(self) -> None:
        """Take the trial from whoever had it: until somebody claims it, it has no worker. Raises OSError."""
        self.worker.unlink(missing_ok=True)

    def require_held(self) -> None:
        """Raise TakenOver where another driver holds the study, or none; GivenUp where somebody else has the trial."""
        if self._token is not None and _said(self.path.parent.parent / "driver.json").get("token") != self._token:
            raise TakenOver(errno.ESTALE, "another driver has taken this study over", str(self.path))
        if self._claim is not None and _said(self.worker).get("claim") != self._claim:
            raise GivenUp(errno.ESTALE, "another worker has taken this trial over", str(self.path))

    def is_held(self) -> bool:
        """Whether `require_held` finds nothing. Raises StoreError."""
        try:
            self.require_held()
        except TakenOver:
            return False
        return True

    def append_epoch(self, epoch: Epoch) -> None:
        self.require_held()
        append(self.epochs, epoch.model_dump_json() + "\n")

    def read_epochs(self) -> list[Epoch]:
        """Return the epochs so far, in order. After a crash one may stand twice or torn: the last whole line counts.

        Raises:
            DamagedError: something else stands there, such as a folder.
        """
        found: dict[int, Epoch] = {}
        if is_there(self.epochs):
            for line in read_bytes(self.epochs).split(b"\n"):
                try:
                    epoch = Epoch.model_validate_json(line)
                except ValueError:
                    continue
                found[epoch.epoch] = epoch
        return [found[number] for number in sorted(found)]


class StudyFolder:
    """A study's folder, which may not exist yet."""

    def __init__(self, path: Place) -> None:
        self.path = path
        self.name = path.name
        self.searchspace = path / "searchspace.yaml"
        self.study = path / "study.json"
        self.journal = path / "study.journal"
        self.lock = path / "driver.lock"
        self.driver = path / "driver.json"
        self.attempts = path / "attempts"
        self.heartbeat = self.driver if isinstance(path, Path) else path / "heartbeat"  # which a driver touches
        self.log = path / "study.log"
        self.usage = path / "usage.json"
        self.runs = path / "mlflow.json"

    @property
    def is_remote(self) -> bool:
        """Whether it lies in an object store, where there are no locks and no folders, and each look is a request."""
        return isinstance(self.path, RemotePath)

    @property
    def rest_s(self) -> float:
        """Seconds that whoever looks again and again rests between two looks, at least."""
        return REST_S if self.is_remote else 0.0

    def seen(self, *names: str, but: Collection[int] = (), before: "StudyFolder | None" = None) -> "StudyFolder":
        """Return the folder as it stands, to be read many times.

        On a disk, or where it was seen already, itself. In an object store what one
        listing shows; files of these names are fetched together.

        Args:
            names: the files that will be read.
            but: numbers of trials whose files will not.
            before: an earlier look: what has not changed since is not fetched again.

        Raises:
            StoreError: the store refuses, or does not answer.
        """
        if not isinstance(self.path, RemotePath) or isinstance(self.path.files, Seen):
            return self
        left_out = {f"{number:05d}" for number in but}

        def is_wanted(key: str) -> bool:
            parts = key.rsplit("/", 2)
            return parts[-1] in names and parts[-2] not in left_out

        earlier = before.path.files if before and isinstance(before.path, RemotePath) else None
        return StudyFolder(self.path.through(Seen(self.path, is_wanted, earlier)))

    def holder(self) -> dict[str, Any]:
        """Return what `driver.json` says of who searches now, or did; empty where it says nothing."""
        return _said(self.driver)

    def used_hours(self) -> dict[str, float]:
        """Return the time that the study has taken: `hours` of its drivers, `gpu_hours` of its trials."""
        said = _said(self.usage)
        used_s = {name: said.get(name) for name in ("wall_s", "gpu_s")}
        wall_s, gpu_s = (value if isinstance(value, int | float) else 0.0 for value in used_s.values())
        return {"hours": wall_s / 3600, "gpu_hours": gpu_s / 3600}

    def trial(self, number: int) -> TrialFolder:
        return TrialFolder(self.path / "trials" / f"{number:05d}")

    def trials(self) -> Iterator[TrialFolder]:
        """Return the trials that have a folder, by number."""
        return map(self.trial, self.numbers())

    def numbers(self) -> list[int]:
        """Return the numbers of the trials that have a folder, in order."""
        parent = self.path / "trials"
        if isinstance(parent, RemotePath):
            names = [entry.name for entry in parent.iterdir()]
        else:
            names = os.listdir(parent) if parent.is_dir() else []
        return sorted(int(name) for name in names if re.fullmatch(NUMBER, name))

    def is_tested(self, number: int) -> bool:
        """Whether a trial has been measured on the test split: asked of all again and again, so in few steps."""
        if self.is_remote:
            return self.trial(number).test.exists()
        return os.path.exists(f"{self.path}/trials/{number:05d}/test.json")


def _said(path: Place) -> dict[str, Any]:
    try:
        return dict(read_json(path))
    except (DamagedError, ValueError, TypeError):
        return {}


def studies_root(root: str | os.PathLike[str] | None = None) -> Place:
    """Where studies lie: `--root`, EQUITUNE_ROOT, or ./studies. A path, or a URL such as s3://bucket/studies.

    Raises:
        UserError: it is a URL that cannot be, or whose store does not answer or refuses.
    """
    found = place_of(os.fspath(root or os.environ.get("EQUITUNE_ROOT") or "studies"))
    require_answer(found)
    return found.expanduser().absolute() if isinstance(found, Path) else found


def studies_in(root: Place) -> list[str]:
    """Return the names of the studies that lie there."""
    if isinstance(root, Path):
        names = os.listdir(root) if root.is_dir() else []
        return sorted(name for name in names if os.path.lexists(root / name / "study.json"))
    return sorted(folder.name for folder in root.iterdir() if (folder / "study.json").is_file())


def open_study(root: Place, name: str) -> StudyFolder:
    """Return an existing study.

    Raises:
        UserError: there is none of that name; names the nearest.
    """
    folder = StudyFolder(root / name)
    if not is_there(folder.study):
        raise UserError(catalog.unknown("study", name, studies_in(root)) + f" (in {root})")
    return folder


def named_trial(text: str) -> tuple[str, int] | None:
    """Return the study and the number of a trial, where a text names one: `capacity/12`."""
    named = re.fullmatch(r"([^@:]+)/(\d+)", text)
    return (named[1], int(named[2])) if named else None


def open_trial(root: Place, study: str, number: int) -> TrialFolder:
    """Return a recorded trial.

    Raises:
        UserError: there is no such study, named with the nearest, or no such trial, with the numbers there are.
    """
    folder = open_study(root, study)
    trial = folder.trial(number)
    if not is_there(trial.config):
        numbers = folder.numbers()
        known = f"its trials are {min(numbers)} to {max(numbers)}" if numbers else "it has none"
        raise UserError(f"{study}/{number}: study {study} has no trial {number}: {known}")
    return trial

"""Workers that hang: Ray sees one that dies, but not one that is stopped, or waits for ever for a file or a device.

A trial is silent from one report to the next. A silence is measured against the slowest one of its kind in this study,
so that nothing has to be configured; where no such silence is known yet, it is told and nothing is done.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from equitune.config.trial import TrialConfig

FLOOR_S = 600.0  # no worker is given up before; longer than an object store may stay away (5 minutes)
UNKNOWN_S = 1800.0  # after which a silence is told whose like has not been seen before
MOST_TICK_S = 5.0  # a longer pause between two looks was the driver's own: it slept, or waited for its storage

Awaited = Literal["start", "epoch", "rung", "measuring", "testing"]
WHAT = {
    "start": "has not ended its first epoch",
    "epoch": "has not ended an epoch",
    "rung": "has not ended an epoch after which it is measured",
    "measuring": "has not been measured",
    "testing": "has not been measured on the test split",
}

log = logging.getLogger(__name__)


@dataclass
class _Trial:
    """A trial with a worker."""

    config: TrialConfig
    awaited: Awaited
    since_s: float
    own_s: float = 0.0  # its slowest epoch so far; before the second one its start, which held an epoch
    num_own: int = 0  # of which that is the slowest
    is_told: bool = False


@dataclass(frozen=True)
class Silence:
    """A worker that has been silent for too long.

    Attributes:
        number: of its trial.
        what: what has not happened.
        silent_s: seconds since its last report.
        usual_s: the slowest silence of this kind so far, of a network of this cost; None: there was none.
        limit_s: when the worker is given up; None: never.
    """

    number: int
    what: str
    silent_s: float
    usual_s: float | None
    limit_s: float | None

    @property
    def is_over(self) -> bool:
        """Return whether the worker is to be given up."""
        return self.limit_s is not None and self.silent_s > self.limit_s


@dataclass
class Watchdog:
    """Finds the workers that have been silent for many times as long as is usual.

    Attributes:
        multiple: of the usual time after which a worker is given up; it is told at half of that. None: never.
        work_of: the multiply-adds of a trial's network; those of a study may differ by a factor of 100.
        now: seconds on a clock of which only differences count.
        floor_s: no worker is given up before.
        most_tick_s: the most that counts of the time between two calls.
    """

    multiple: float | None
    work_of: Callable[[TrialConfig], float] = lambda config: 1.0
    now: Callable[[], float] = time.monotonic
    floor_s: float | None = None
    most_tick_s: float = MOST_TICK_S
    _trials: dict[int, _Trial] = field(default_factory=dict)
    _slowest: dict[Awaited, tuple[float, TrialConfig]] = field(default_factory=dict)
    _work: dict[int, float] = field(default_factory=dict)
    _clock_s: float = 0.0
    _looked_s: float | None = None

    def begin(self, number: int, config: TrialConfig, num_epochs: int = 0, is_test: bool = False) -> None:
        """Note that a trial that has so many epochs already, or its test, has got a worker."""
        awaited = "testing" if is_test else _after(config, num_epochs) if num_epochs else "start"
        self._trials[number] = _Trial(config, "start" if awaited == "epoch" else awaited, self._tick())

    def hear(self, number: int, epoch: int) -> None:
        """Note that a trial has reported an epoch."""
        trial = self._trials.get(number)
        if trial is None:
            return
        self._note(trial)
        silent_s = self._clock_s - trial.since_s
        if trial.awaited == "epoch":
            trial.own_s, trial.num_own = max(trial.own_s if trial.num_own else 0.0, silent_s), trial.num_own + 1
        elif not trial.num_own:
            trial.own_s = max(trial.own_s, silent_s)
        trial.since_s, trial.is_told = self._clock_s, False
        trial.awaited = _after(trial.config, epoch)

    def end(self, number: int, is_complete: bool = False) -> None:
        """Note that a trial has no worker any more. `is_complete`: it has reported what it was to measure."""
        trial = self._trials.pop(number, None)
        if trial and is_complete and trial.awaited in ("measuring", "testing"):
            self._note(trial)

    def look(self) -> Iterator[Silence]:
        """Yield each silence once when it is to be told, and once more when its worker is to be given up."""
        now_s = self._tick()
        if self.multiple is None:
            return
        floor_s = FLOOR_S if self.floor_s is None else self.floor_s
        for number, trial in list(self._trials.items()):
            silent_s = now_s - trial.since_s
            if silent_s <= floor_s / 2:
                continue
            usual_s = self._usual_s(trial)
            limit_s = None if usual_s is None else max(floor_s, self.multiple * usual_s)
            silence = Silence(number, WHAT[trial.awaited], silent_s, usual_s, limit_s)
            if silence.is_over:
                del self._trials[number]
                yield silence
            elif not trial.is_told and silent_s > (UNKNOWN_S if limit_s is None else limit_s / 2):
                trial.is_told = True
                yield silence

    def _tick(self) -> float:
        now = self.now()
        if self._looked_s is not None:
            self._clock_s += min(max(0.0, now - self._looked_s), self.most_tick_s)
        self._looked_s = now
        return self._clock_s

    def _note(self, trial: _Trial) -> None:
        silent_s = self._tick() - trial.since_s
        if silent_s >= self._slowest.get(trial.awaited, (0.0, trial.config))[0]:
            self._slowest[trial.awaited] = silent_s, trial.config

    def _usual_s(self, trial: _Trial) -> float | None:
        """Return the slowest such silence: of the trial itself where it has had one, else of the study, at
        this cost.
        """
        if trial.awaited == "epoch":
            return trial.own_s
        known = self._slowest.get(trial.awaited)
        if known is None:
            return None
        seconds, config = known
        steps = config.training.batch_size / trial.config.training.batch_size  # small batches may take as long as large
        work, known_work = self._work_of(trial.config), self._work_of(config)
        if not (math.isfinite(work) and known_work > 0):
            return None
        return max(seconds * max(1.0, work / known_work) * max(1.0, steps), trial.own_s)

    def _work_of(self, config: TrialConfig) -> float:
        if config.number not in self._work:
            try:
                self._work[config.number] = self.work_of(config)
            except Exception:  # the trial says what is wrong with its network; one of unknown cost is never given up
                log.warning("nothing is known of the cost of trial %d", config.number, exc_info=True)
                self._work[config.number] = math.inf
        return self._work[config.number]


def _after(config: TrialConfig, epoch: int) -> Awaited:
    """Return what a trial reports next after an epoch."""
    if epoch >= config.training.epochs:
        return "measuring"
    return "rung" if epoch + 1 in config.rungs else "epoch"

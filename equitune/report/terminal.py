"""The terminal: a live view of a study that runs, the front as a table, plain lines where there is no terminal."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from equitune.analysis.pareto import front
from equitune.background import repeating
from equitune.errors import StoreError, UserError
from equitune.records.folder import StudyFolder
from equitune.records.reader import StudyReader, StudyRecord, TrialRecord
from equitune.report.arms import arms_table, heading, metric_columns, note
from equitune.report.front import exact_under, short, shown, violated

REFRESH_S = 0.5
BEAT_S = 25.0  # a view without a terminal prints a line at least so often: whoever follows it knows that it lives
MOST_ROWS = 12  # of the live front
MOST_PARAMS = 6  # that have a column each


class StudyView:
    """Shows how a study goes, from its folder alone."""

    def __init__(self, folder: StudyFolder, console: Console, doing: str = "starting") -> None:
        self.reader = StudyReader(folder)
        self._folder, self._console = folder, console
        self._doing = doing
        self._ended_before: set[int] | None = None
        self._printed: set[int] = set()
        self._printing = threading.Lock()
        self._last_line = time.monotonic()

    @contextmanager
    def showing(self) -> Iterator["StudyView"]:
        """Keep the view fresh from a thread of its own while the block runs."""
        every_s = max(REFRESH_S, self._folder.rest_s)
        if self._console.is_terminal:
            with (
                Live(self._live(), console=self._console, refresh_per_second=4, transient=True) as live,
                repeating(lambda: live.update(self._live()), every_s),
            ):
                yield self
        else:
            with repeating(self._print_news, every_s):
                yield self

    def say(self, sentence: str) -> None:
        """Show what the search does now."""
        self._doing = sentence
        if not self._console.is_terminal:
            self._print_news()
            self._print(sentence)

    def _read(self) -> StudyRecord | None:
        try:
            study = self.reader.read()
        except (UserError, StoreError):
            return None  # it has just begun, or nobody knows
        if self._ended_before is None:
            self._ended_before = {trial.number for trial in study.ended()}
            self._printed |= self._ended_before
        return study

    def _live(self) -> RenderableType:
        study = self._read()
        if study is None:
            return Text(f"{self._folder.name}: {self._doing} ...")
        settled = study.num_settled()
        head = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=study.num_planned, completed=settled, width=30)
        head.add_row(
            Text(study.name, style="bold"), bar, f"{settled} of {study.num_planned} trials", self._time_left(study)
        )
        used = [f"{hours:.3g} of {limit:g} {what}" for what, hours, limit in self._hours(study)]
        parts: list[RenderableType] = [head, Text("; ".join([self._doing, *used]), style="dim")]
        parts += [_running(trial) for trial in study.trials if trial.result is None and study.is_driven]
        if any(trial.state == "COMPLETE" for trial in study.trials):
            parts.append(answer(study, most=MOST_ROWS))
        return Group(*parts)

    def _print_news(self) -> None:
        with self._printing:
            study = self._read()
            for trial in study.ended() if study else []:
                if trial.number not in self._printed and study:
                    self._printed.add(trial.number)
                    values = ", ".join(f"{name} {shown(trial.metrics.get(name))}" for name in study.objectives)
                    broken = violated(study, trial)
                    how = f"trial {trial.number} {trial.state}: {trial.reason or values}"
                    how += f" (violates {broken})" if broken else ""
                    so_far = len({each.cell for each in study.trials if each.number in self._printed})
                    self._print(f"{so_far}/{study.num_planned} {how}")
            if time.monotonic() - self._last_line > BEAT_S:
                self._print(self._beat(study))

    def _beat(self, study: StudyRecord | None) -> str:
        """Return a sentence for a time in which nothing ended."""
        if study is None:
            return f"{self._folder.name}: {self._doing}"
        begun = [trial for trial in study.trials if trial.result is None]
        at_work = [trial for trial in begun if trial.has_worker]
        epochs = sum(len(trial.epochs) for trial in at_work)
        how = f"{study.num_settled()} of {study.num_planned} trials ended"
        how += f", {len(at_work)} at work, {epochs} epochs so far" if at_work else ""
        how += f", {len(begun) - len(at_work)} waiting for a worker" if len(begun) > len(at_work) else ""
        how += "" if at_work else f"; {self._doing}"
        left = self._time_left(study)
        return f"{study.name}: {how}, {left}" if left else f"{study.name}: {how}"

    def _print(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)
        self._last_line = time.monotonic()

    def _time_left(self, study: StudyRecord) -> str:
        new = [trial for trial in study.trials if trial.number not in (self._ended_before or set())]
        num_ended = sum(trial.result is not None for trial in new)
        if not num_ended:
            return ""
        per_trial_s = (time.time() - min(trial.started for trial in new)) / num_ended
        left_s = per_trial_s * (study.num_planned - study.num_settled())
        for what, hours, limit in self._hours(study):
            if what == "hours":
                left_s = min(left_s, max(0.0, limit - hours) * 3600)
        return f"about {duration(left_s)} left"

    def _hours(self, study: StudyRecord) -> Iterator[tuple[str, float, float]]:
        """Of the budgets of time that a study has: which one, what is used of it and what there is, in hours."""
        used = self._folder.used_hours()
        for name, what in (("hours", "hours"), ("gpu_hours", "GPU-hours")):
            if limit := study.info.get(name):
                yield what, used[name], limit


def answer(
    study: StudyRecord, metrics: tuple[str, ...] = (), against: int = 0, most: int | None = None
) -> RenderableType:
    """Return what a study found: its arms where it has replicates, else its front.

    Raises:
        UserError: there is no arm `against` which to take differences, or no such metric.
    """
    if study.replicates == 1:
        return Group(front_table(study, most, metrics), *chosen(study, most))
    return Group(arms_table(study, metrics, against, most), Text(note(study, against), style="dim"))


def front_table(study: StudyRecord, most: int | None = None, metrics: tuple[str, ...] = ()) -> Table:
    """Return the Pareto front: objectives with standard errors, and what the search chose. Arrows say what is better.

    Once the test split has been read, each objective has a second line: its value there. Where the search chose more
    than fits, `chosen` says it below.

    Raises:
        UserError: no trial reports one of the further `metrics`.
    """
    columns = metric_columns(study, metrics)
    members = front(study)
    params = _params(members) if _fit(members) else []
    has_amounts = "relaxation" not in columns and any(
        "relaxation" in trial.metrics for trial in members
    )  # how far layers left their symmetry
    table = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
    table.add_column("trial", justify="right", no_wrap=True)
    for name in columns:
        table.add_column(heading(study, name), justify="right", no_wrap=True)
    if has_amounts:
        table.add_column("relax-\nation", justify="right", no_wrap=True)
    for name in params:
        table.add_column(name.replace(".", "\n"), justify="right")
    has_exact = any(exact_under(trial) != "–" for trial in members)
    if has_exact:
        table.add_column("exact\nunder")
    for trial in members[:most]:
        values = [shown(trial.metrics.get(name)) for name in columns]
        values += [shown(trial.metrics.get("relaxation"))] * has_amounts
        values += [short(trial.config.params.get(name, "–")) for name in params]
        table.add_row(str(trial.number), *values, *[exact_under(trial)] * has_exact)
        if trial.test:
            on_test = [trial.test.get(name) for name in columns]
            values = [shown(metric) if metric and metric.split == "test" else "" for metric in on_test]
            table.add_row("test", *values, style="dim")
    if most is not None and len(members) > most:
        table.add_row("...")
    return table


def chosen(study: StudyRecord, most: int | None = None) -> list[Text]:
    """Return what the search chose for each trial of the front, a line each; nothing where the table has a column for
    it.
    """
    members = front(study)
    if _fit(members):
        return []
    said = {
        trial.number: ", ".join(
            f"{name.split('.', 1)[-1]} {short(value)}" for name, value in trial.config.params.items()
        )
        for trial in members[:most]
    }
    return [Text(f"trial {number}: {values}", style="dim") for number, values in said.items()]


def _params(trials: list[TrialRecord]) -> list[str]:
    return sorted({name for trial in trials for name in trial.config.params})


def _fit(trials: list[TrialRecord]) -> bool:
    return len(_params(trials)) <= MOST_PARAMS


def summary(study: StudyRecord) -> list[str]:
    """How the trials that count ended, in a sentence; a line for each that did not complete or breaks a constraint."""
    counted = study.counted()
    counts = Counter(trial.state for trial in counted)
    states = ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "no trial yet"
    lines = [f"{study.name}: {study.state}, {study.num_settled()} of {study.num_planned} trials ({states})"]
    if study.ended_by and not study.ended_by.startswith("trials"):
        lines.append(f"  ended by {study.ended_by}")
    lines += [f"  {sentence}" for sentence in study.damaged]
    again = len(study.trials) - len(counted)
    if again:
        what = "trials that failed are" if again > 1 else "trial that failed is"
        lines.append(f"  {again} {what} not counted: the same cells were trained again")
    stopped = [trial for trial in study.trials if trial.state == "PRUNED"]
    if stopped:
        saved = sum(trial.config.training.epochs - len(trial.epochs) for trial in stopped)
        planned = sum(trial.config.training.epochs for trial in study.trials)
        lines.append(f"  early stopping saved {saved:,} of {planned:,} epochs")
    reasons = [(trial, trial.reason or violated(study, trial)) for trial in counted if trial.state != "PRUNED"]
    return lines + [f"  trial {trial.number} {trial.state}: {reason}" for trial, reason in reasons if reason]


@contextmanager
def busy(sentence: str, console: Console) -> Iterator[None]:
    """Say what takes its time while the block runs: on a terminal, beside what is printed for good; else nowhere."""
    if not console.is_terminal:
        yield
        return
    with console.status(Text(f"{sentence} ...")):
        yield


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _running(trial: TrialRecord) -> Text:
    epochs, total = len(trial.epochs), trial.config.training.epochs
    if not trial.has_worker:
        return Text(
            f"  trial {trial.number}: waiting for a worker" + (f" after epoch {epochs}/{total}" if epochs else "")
        )
    last = f", accuracy {trial.epochs[-1].validation_accuracy:.3f}" if trial.epochs else ""
    what = "measuring" if epochs == total else f"epoch {epochs}/{total}"
    return Text(f"  trial {trial.number}: {what}{last}")

"""The report's panels: equivariance over depth, and beside augmentation, capacity and prior."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from equitune.analysis.importance import distributions
from equitune.analysis.pareto import front
from equitune.records.reader import StudyRecord, TrialRecord
from equitune.report import figures
from equitune.report.arms import metric_names
from equitune.report.front import measured, point, short
from equitune.report.parts import Picture, Section
from equitune.report.profile import PANELS, profile_figures

MOST_PANELS = 12
MOST_PROFILES = 4
COSTS = {"accuracy", "loss", "parameters", "multiply_adds", "seconds", "relaxation"}


def profiles(study: StudyRecord) -> Section:
    section = Section("depth", "Equivariance over depth")
    chosen = extremes(study)
    models = {f"trial {trial.number}": trial.result.profile for trial in chosen if trial.result}
    for title, quantity, draw in profile_figures(models):
        section.parts.append(Picture(f"depth-{slug(title)}-{quantity}", f"{title}: {PANELS[quantity]}.", draw))
    if section.parts:
        said = ", ".join(
            f"trial {trial.number} ({why})" for trial, why in zip(chosen, _why(study, chosen), strict=True)
        )
        section.parts.insert(0, f"Of {said}. Dotted: chance; dashed: the same network before training.")
    return section


def extremes(study: StudyRecord) -> list[TrialRecord]:
    """Return the members of the front that are best in one of the objectives."""
    members = front(study)
    best = [min(members, key=lambda trial: loss(study, trial, name)) for name in study.objectives] if members else []
    return list({trial.number: trial for trial in best}.values())[:MOST_PROFILES]


def _why(study: StudyRecord, chosen: Sequence[TrialRecord]) -> Iterator[str]:
    members = front(study)
    best = {name: min(loss(study, member, name) for member in members) for name in study.objectives} if members else {}
    for trial in chosen:
        names = [name.replace("_", " ") for name, least in best.items() if loss(study, trial, name) == least]
        yield "best " + " and ".join(names)


def loss(study: StudyRecord, trial: TrialRecord, name: str) -> float:
    """Return an objective of a trial, lower is better."""
    value = point(trial, name)[0]
    return -value if study.objectives[name] == "maximize" else value


def panels(study: StudyRecord) -> Iterator[Section]:
    """Augmentation, capacity and prior beside equivariance: the three findings of 2304.02628, as seen here."""
    drawn, drawn_from = measured(study), distributions(study)
    metrics = equivariances(study)[:2] + ["accuracy"] * ("accuracy" in metric_names(study))
    for key, title, names in (
        ("augmentation", "Augmentation and training", ("augmentation", "averaging", "training")),
        ("capacity", "Capacity", ("model", "input")),
        ("prior", "Convolution prior and downsampling", ("prior", "downsampler", "stem")),
    ):
        section = Section(key, title)
        params = sorted(
            {name for trial in drawn for name in trial.config.params if name.split(".")[0] in names},
            key=lambda name: (name.count("."), name),
        )
        columns: list[tuple[str, Callable[[TrialRecord], object], bool]] = [
            (name, partial(_param, name), getattr(drawn_from.get(name), "log", False)) for name in params
        ]
        if key == "capacity":
            columns.append(("number of parameters", _size, True))
        for what, value_of, is_log in columns:
            for metric in metrics:
                picture = _panel(drawn, what, value_of, metric, is_log)
                if picture and len(section.parts) < MOST_PANELS:
                    section.parts.append(picture)
        yield section


def _param(name: str, trial: TrialRecord) -> object:
    return trial.config.params.get(name)


def _size(trial: TrialRecord) -> object:
    return trial.metrics["parameters"].value


def _panel(
    trials: list[TrialRecord], what: str, value_of: Callable[[TrialRecord], object], metric: str, is_log: bool
) -> Picture | None:
    """One metric at every value of a parameter; nothing where the parameter takes one value alone."""
    pairs = [(value_of(trial), point(trial, metric)[0]) for trial in trials if metric in trial.metrics]
    pairs = [(value, number) for value, number in pairs if value is not None and math.isfinite(number)]
    values = dict.fromkeys(value for value, _ in pairs)
    if len(values) < 2:
        return None
    numbers = figures.numbers_of(value for value, _ in pairs)
    caption = f"{metric.replace('_', ' ')} at each {what} (n = {len(pairs)} trials)."
    name, y_label = f"{slug(what)}-{metric}", metric.replace("_", " ")
    if numbers is not None and len(values) > 4:
        ys = [number for _, number in pairs]
        return Picture(name, caption, lambda: figures.against_numbers(numbers, ys, what, y_label, is_log))
    in_order = sorted(values, key=str if numbers is None else lambda value: float(value))
    groups = {short(value): [number for other, number in pairs if other == value] for value in in_order}
    return Picture(name, caption, lambda: figures.against_names(groups, what, y_label))


def equivariances(study: StudyRecord) -> list[str]:
    """Return the metrics that say how equivariant a trial is: of the objectives, else of all."""
    chosen = [name for name in study.objectives if name not in COSTS]
    return chosen or [name for name in metric_names(study) if name.endswith("_error")][:3]


def slug(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text).strip("-")

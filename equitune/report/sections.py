"""What a report says of a study, section by section."""

import json
import re
import time
from collections import Counter
from functools import partial
from itertools import combinations

from equitune.analysis.pareto import front
from equitune.analysis.summary import analyse
from equitune.records.folder import StudyFolder
from equitune.records.reader import StudyRecord
from equitune.report import conclusions, figures, panels
from equitune.report.arms import shown_split
from equitune.report.front import (
    axis_names,
    exact_under,
    interactive_front,
    measured,
    settings,
    short,
    shown,
    violated,
)
from equitune.report.parts import Chapter, Picture, Section, Table
from equitune.report.terminal import duration

LOCAL_UI = "http://127.0.0.1:5000"
WEB = re.compile("https?://")
PROGRAMS = ("equitune", "git", "python", "torch")


def chapter_of(study: StudyRecord, folder: StudyFolder) -> Chapter:
    """Return the report of one study; a section that has nothing to say is left out."""
    said = analyse(study, split=shown_split(study))
    every = (
        _ran(study, _question(folder)),
        conclusions.in_words(study, said),
        _front(study, _links(folder)),
        conclusions.over_time(study, said),
        conclusions.effects(study, said),
        conclusions.importance(said),
        panels.profiles(study),
        conclusions.relation(study, said),
        *panels.panels(study),
        _amounts(study),
        _endings(study),
        _controls(study),
        _again(study),
    )
    return Chapter(study.name, [section for section in every if section.parts])


def _question(folder: StudyFolder) -> str | None:
    """Return what the study's file asks in its first lines: `# Question: ...`."""
    try:
        lines = folder.searchspace.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    asked: list[str] = []
    for line in lines:
        text = line.removeprefix("#").strip()
        if not line.startswith("#") or (asked and text.split(":")[0] in ("Command", "Cost", "Result")):
            break
        if asked or text.startswith("Question:"):
            asked.append(text.removeprefix("Question:").strip())
    return " ".join(asked) or None


def _links(folder: StudyFolder) -> dict[int, str]:
    """Return the trials' runs in the MLflow UI, which `equitune ui` opens where they are in no server."""
    try:
        places = json.loads(folder.runs.read_text(encoding="utf-8"))
        at = f"{places['ui'] or LOCAL_UI}/#/experiments/{places['experiment']}/runs"
        # A link that is no web address could be a script.
        return {int(number): f"{at}/{run}" for number, run in places["runs"].items()} if WEB.match(at) else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _ran(study: StudyRecord, question: str | None) -> Section:
    states = Counter(trial.state for trial in study.trials)
    seconds = sum(sum(trial.result.seconds.values()) for trial in study.ended() if trial.result)
    splits = study.info.get("splits", {})
    identity = study.info.get("identity", {})
    provenance = next((trial.result.provenance for trial in study.ended() if trial.result), {})
    versions = {**study.info.get("provenance", {}), **provenance}
    facts = [
        ["trials", f"{len(study.ended())} of {study.num_planned} ended"],
        ["how they ended", ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none began"],
        ["state", study.state],
        ["computing time", f"{duration(seconds)} in all trials"],
        ["objectives", ", ".join(f"{name} ({direction})" for name, direction in study.objectives.items())],
        *([["constraints", _constraints(study)]] if study.constraints else []),
        ["data", f"{identity.get('data', {}).get('name', '?')}, fingerprint {study.info.get('data_fingerprint', '?')}"],
        ["images", ", ".join(f"{split} n = {n:,}" for split, n in splits.items()) or "?"],
        ["sampler, seed", ", ".join(str(value) for value in identity.get("search", {}).values())],
        ["replicates", str(study.replicates)],
        ["versions", ", ".join(f"{key} {versions[key]}" for key in PROGRAMS if key in versions)],
        ["device", " ".join(versions[key] for key in ("device", "device_name") if key in versions) or "?"],
        ["begun", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(study.info["created"]))],
    ]
    parts: list[str | Table | Picture] = [question] if question else []
    return Section("ran", "What was asked, and what ran", [*parts, Table("study", ["", ""], facts)])


def _front(study: StudyRecord, links: dict[int, str]) -> Section:
    members = front(study)
    if not members:
        return Section("front", "The front", ["No trial has completed yet: there is no front."])
    one = len(study.objectives) == 1
    section = Section("front", "The ranking" if one else "The front")
    x, y, _ = axis_names(study)
    drawn = measured(study)
    numbers = {member.number for member in members}
    what = (
        "the front is the best of them" if one else "those of the front are not beaten by any other in all objectives"
    )
    section.parts.append(
        Picture(
            "front",
            f"Every complete trial; {what}. Bars: one standard error over images. Hover for the configuration.",
            lambda: figures.scatter(study, drawn, numbers, x, y),
            interactive_front(study, links),
        )
    )
    params = sorted({name for trial in members for name in trial.config.params})
    section.parts.extend(
        Picture(
            f"front-{across}-{upwards}",
            f"{_words(across)} against {_words(upwards)}.",
            partial(figures.scatter, study, drawn, numbers, across, upwards),
        )
        for upwards, across in list(combinations(study.objectives, 2))[1:]
    )
    ranked = members
    if one:
        ranked = sorted(drawn, key=lambda trial: (bool(study.violations(trial)), panels.loss(study, trial, y)))
    tested = [name for name in study.objectives if any(name in trial.test for trial in ranked if trial.test)]
    header = ["trial", *study.objectives, *(f"test {name}" for name in tested), *params, "exact under"]
    rows = [
        [
            str(trial.number),
            *(shown(trial.metrics.get(name)) for name in study.objectives),
            *(shown(trial.test.get(name)) if trial.test else "–" for name in tested),
            *(short(trial.config.params.get(name, "–")) for name in params),
            exact_under(trial),
        ]
        for trial in ranked
    ]
    caption = "Validation split, ± one standard error over images" + (
        "; the test split was read once, for the trials that have values of it." if tested else "."
    )
    section.parts.append(Table("front", header, rows, caption, links={str(at): link for at, link in links.items()}))
    return section


def _amounts(study: StudyRecord) -> Section:
    section = Section("amounts", "How much symmetry was left")
    trials = [trial for trial in front(study) if trial.amounts]
    rows = [
        [str(trial.number), layer, amount.kind, f"{amount.before:.3f}", f"{amount.after:.3f}", amount.unit]
        for trial in trials
        for layer, amount in trial.amounts.items()
    ]
    if rows:
        header = ["trial", "layer", "kind", "before training", "after", "unit"]
        caption = "0 is strict, 1 is free, where the unit is 1; learned by the trials of the front."
        section.parts.append(Table("amounts", header, rows, caption))
    return section


def _endings(study: StudyRecord) -> Section:
    section = Section("endings", "Trials that did not complete, or violate a constraint")
    rows = [
        [str(trial.number), trial.state, trial.reason or violated(study, trial), settings(trial.config.params)]
        for trial in study.ended()
        if trial.state != "COMPLETE" or study.violations(trial)
    ]
    if rows:
        section.parts.append(
            Table("endings", ["trial", "state", "reason", "configuration"], rows, f"{len(rows):,} trials.")
        )
    return section


def _controls(study: StudyRecord) -> Section:
    section = Section("controls", "Controls and chance levels")
    rows = [
        [
            str(trial.number),
            name,
            shown(metric),
            _optional(metric.chance),
            _optional(metric.untrained),
            f"{metric.n:,}" if metric.n else "–",
        ]
        for trial in panels.extremes(study)
        for name, metric in sorted(trial.metrics.items())
        if metric.chance is not None or metric.untrained is not None
    ]
    if rows:
        header = ["trial", "metric", "value", "chance", "untrained", "n"]
        caption = "Chance: what unrelated images score. Untrained: the same network before training."
        section.parts.append(Table("controls", header, rows, caption))
    return section


def _again(study: StudyRecord) -> Section:
    overrides = "".join(f" --set {override}" for override in study.info.get("overrides", []))
    source = study.info.get("source") or "searchspace.yaml"
    lines = [f"equitune search {source}{overrides}"]
    members = front(study)
    if members:
        lines.append(f"equitune trial {study.name}/{members[0].number}")
    return Section("again", "How to run it again", [f"`{line}`" for line in lines])


def _constraints(study: StudyRecord) -> str:
    return ", ".join(
        f"{name} {kind.replace('_', ' ')} {short(limit)}"
        for name, bound in study.constraints.items()
        for kind, limit in bound.given().items()
    )


def _words(name: str) -> str:
    return name.replace("_", " ")


def _optional(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"

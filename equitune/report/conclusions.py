"""The report's conclusions: what `equitune analyze` computes, as sentences, tables and pictures."""

import math
from functools import partial
from itertools import groupby

from equitune.analysis.effects import Comparison
from equitune.analysis.findings import Verdict, described, findings
from equitune.analysis.pareto import front
from equitune.analysis.summary import Analysis
from equitune.records.reader import StudyRecord
from equitune.report import figures
from equitune.report.analysis import correlation_cells, effect_cells, number, reference_words
from equitune.report.arms import metric_names
from equitune.report.front import measured
from equitune.report.panels import equivariances
from equitune.report.parts import Picture, Section, Table

MOST_EFFECTS = 16  # in one picture
MOST_SENTENCES = 20  # of one verdict
CAPTIONS: dict[Verdict, str] = {  # the strongest verdict first
    "found": "",
    "suggested": "Intervals exclude 0, but there are too few replicates for the test to say so.",
    "not enough evidence": "Which is no evidence of nothing.",
}


def in_words(study: StudyRecord, said: Analysis) -> Section:
    """Return the findings, each with its numbers; then what is only suggested, and what there is not enough evidence
    for.
    """
    section = Section("findings", "What was found")
    every = findings(study, said)
    if every and all(finding.verdict != "found" for finding in every):
        section.parts.append("Nothing that was compared has enough evidence.")
    for verdict, caption in CAPTIONS.items():
        sentences = [finding.sentence for finding in every if finding.verdict == verdict]
        left_out = f" {len(sentences) - MOST_SENTENCES} more are left out." if len(sentences) > MOST_SENTENCES else ""
        if sentences:
            rows = [[sentence] for sentence in sentences[:MOST_SENTENCES]]
            is_folded = verdict == "not enough evidence"
            section.parts.append(Table(verdict.replace(" ", "-"), [verdict], rows, caption + left_out, is_folded))
    return section


def over_time(study: StudyRecord, said: Analysis) -> Section:
    """How the hypervolume grew, and below which reference point."""
    section = Section("hypervolume", "Hypervolume over time")
    if said.steps:
        numbers = [0, *(step.ended for step in said.steps), len(study.ended())]
        values = [0.0, *(step.value for step in said.steps), said.steps[-1].value]
        caption = f"Hypervolume of the front after each trial; at the end {number(values[-1])}."
        section.parts.append(Picture("hypervolume", caption, partial(figures.hypervolume, numbers, values)))
        section.parts.append(f"{reference_words(said.reference).capitalize()}.")
    return section


def effects(study: StudyRecord, said: Analysis) -> Section:
    """Effects of arms, factors and pairs of factors on each objective."""
    section = Section("effects", "Effects")
    for kind, title, comparisons in (
        ("arms", "of arms", said.arm_effects),
        ("factors", "of factors, averaged over the others", said.factor_effects),
        ("interactions", "of two factors beyond their sum", said.interactions),
    ):
        for objective, members in groupby(comparisons, key=lambda comparison: comparison.objective):
            found = [each for each in members if not math.isnan(each.effect.low)]
            if not found:
                continue
            words = objective.replace("_", " ")
            rows = [(_what(each, said), each.effect.mean, each.effect.low, each.effect.high) for each in found]
            caption = f"Effects {title}, on {words}: mean and 95 % interval over replicates, {said.split} split."
            draw = partial(figures.forest, rows[:MOST_EFFECTS], f"change of {words}")
            section.parts.append(Picture(f"effects-{kind}-{objective}", caption, draw))
            section.parts.append(_table(f"effects-{kind}-{objective}", caption, found, said))
    return section


def importance(said: Analysis) -> Section:
    """How much each parameter decides each objective."""
    section = Section("importance", "Importance of parameters")
    for each in said.importance:
        words = each.objective.replace("_", " ")
        if each.reason:
            section.parts.append(f"{words}: not known: {each.reason}.")
            continue
        names = sorted(each.ped_anova.keys() | each.fanova, key=lambda name: -each.ped_anova.get(name, 0.0))
        rows = [(name, (each.ped_anova.get(name, 0.0), each.fanova.get(name, 0.0))) for name in names]
        caption = (
            f"{words}: what tells the best {each.best} of {each.trials} trials from the others (PED-ANOVA, together "
            "1), and the share of variance each explains by itself (fANOVA; only of parameters that every trial has)."
        )
        draw = partial(figures.bars, rows, ("PED-ANOVA", "fANOVA"), f"importance for {words}")
        section.parts.append(Picture(f"importance-{each.objective}", caption, draw))
    return section


def relation(study: StudyRecord, said: Analysis) -> Section:
    """Equivariance against accuracy, with rank correlations over all trials and at equal capacity."""
    section = Section("relation", "Equivariance against accuracy")
    drawn, members = measured(study), {trial.number for trial in front(study)}
    if len(drawn) < 3 or "accuracy" not in metric_names(study):
        return section
    for name in equivariances(study):
        draw = partial(figures.scatter, study, drawn, members, name, "accuracy")
        section.parts.append(Picture(f"relation-{name}", f"{name.replace('_', ' ')} against accuracy.", draw))
    rows = [
        [each.metric, over, *correlation_cells(found)]
        for each in said.correlations
        if each.is_objective
        for over, found in (("all trials", each.overall), ("equally many parameters", each.within))
        if not math.isnan(found.rho)
    ]
    if rows:
        header = ["metric", "over", "Spearman's correlation with accuracy", "95 % interval", "p", "trials"]
        section.parts.append(Table("correlations", header, rows, "Bootstrap interval over trials; p of shuffling."))
    return section


def _table(name: str, caption: str, comparisons: list[Comparison], said: Analysis) -> Table:
    rows = [[_what(each, said), *effect_cells(each.effect)] for each in comparisons]
    return Table(name, ["change", "effect", "95 % interval", "n", "p", "Holm's p"], rows, caption)


def _what(comparison: Comparison, said: Analysis) -> str:
    return " × ".join(described(change, said.arms) for change in comparison.changes)

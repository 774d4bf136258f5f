"""A study's analysis as shown to people: short tables, and what their numbers are; and the same for machines."""

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from itertools import groupby
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from equitune.analysis.arms import Arm
from equitune.analysis.correlation import RankCorrelation
from equitune.analysis.effects import Change, Comparison
from equitune.analysis.findings import described
from equitune.analysis.front_uncertainty import FrontUncertainty
from equitune.analysis.hypervolume import Reference
from equitune.analysis.importance import Importance
from equitune.analysis.paired import Effect, smallest_p
from equitune.analysis.summary import Analysis, analyse
from equitune.records.reader import StudyRecord
from equitune.report.arms import ARROW, shown_split
from equitune.report.front import settings
from equitune.report.terminal import duration

MOST_ROWS = 24  # of a table
SIGNIFICANT = 0.05
MARKS = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)  # of the trials, at which the hypervolume is shown


def lines(study: StudyRecord, against: int = 0) -> Iterator[RenderableType]:
    """Yield what `equitune analyze` prints: sentences as text, numbers as tables.

    Raises:
        UserError: there is no arm of that number.
    """
    said = analyse(study, against, shown_split(study))
    if said.reference.point is None:
        yield Text("no complete trial has a value of every objective: nothing to analyse yet")
        return
    yield from hypervolume_lines(study, said)
    yield from front_lines(study, said)
    yield from effect_lines(study, said)
    yield from importance_lines(said.importance)
    yield from correlation_lines(said)


def hypervolume_lines(study: StudyRecord, said: Analysis) -> Iterator[RenderableType]:
    """Yield the reference point, and how the hypervolume below it grew."""
    yield heading("Hypervolume")
    if not said.steps:
        yield Text("0: no trial beats the reference point in every objective")
    else:
        table = plain_table("trials ended", "after", "hypervolume", "of the end")
        ended, final = len(study.ended()), said.steps[-1].value
        for mark in dict.fromkeys(math.ceil(ended * mark) for mark in MARKS):
            reached = [step for step in said.steps if step.ended <= mark]
            value = reached[-1].value if reached else 0.0
            after = duration(3600 * reached[-1].hours) if reached else "–"
            table.add_row(str(mark), after, number(value), f"{value / final:.0%}")
        yield table
        last = said.steps[-1]
        yield Text(f"grew last with trial {last.trial}, the {last.ended}. of {ended} to end", style="dim")
    yield Text(reference_words(said.reference), style="dim")


def front_lines(study: StudyRecord, said: Analysis) -> Iterator[RenderableType]:
    """Yield the front, or how sure each arm's place on it is."""
    uncertain = said.front_uncertainty
    yield heading("Front")
    if uncertain is None or uncertain.replicates < 2:
        numbers = ", ".join(str(trial.number) for trial in said.front)
        yield Text(f"{len(said.front)} of {len(study.ended())} trials: {numbers}")
        return
    table = plain_table("arm", "on the front", "of resamples", last="what it is")
    ranked = sorted(uncertain.arms, key=lambda member: (-member.share, member.arm.number))
    ever = [member for member in ranked if member.share > 0 or member.is_on_front]
    for member in ever[:MOST_ROWS]:
        on_front = "yes" if member.is_on_front else "no"
        table.add_row(str(member.arm.number), on_front, f"{member.share:.0%}", settings(member.arm.params))
    yield table
    yield from _more(len(ever) - MOST_ROWS, "arms")
    never = len(ranked) - len(ever)
    yield Text(
        f"arm means over {uncertain.replicates} replicates, {said.split} split; of resamples: how often on the front "
        f"when replicates are drawn anew, the same for all arms; {never} of {len(ranked)} arms never are",
        style="dim",
    )
    yield Text(_of_means(uncertain), style="dim")


def effect_lines(study: StudyRecord, said: Analysis) -> Iterator[RenderableType]:
    """Effects of arms, main effects of factors and interactions, each with its interval and test."""
    if said.baseline is None:
        yield heading("Effects")
        yield Text("none: effects need replicates (search: {sampler: grid, replicates: 5})")
        return
    if not said.arm_effects:
        yield heading("Effects")
        yield Text("none: there is one arm alone")
    kinds = (
        (f"Effects of arms, beside arm {said.baseline.number}", said.arm_effects),
        ("Main effects of factors, averaged over the others", said.factor_effects),
        ("Interactions: by how much two effects do not add up", said.interactions),
    )
    for title, comparisons in kinds:
        concerned: dict[str, list[str]] = {}  # sentence -> objectives
        for objective, members in groupby(comparisons, key=lambda comparison: comparison.objective):
            found = list(members)
            yield heading(f"{title}: {objective} {ARROW[study.objectives[objective]]}")
            yield effects_table(found, said.arms)
            yield from _more(len(found) - MOST_ROWS, "comparisons")
            for sentence in notes(found):
                concerned.setdefault(sentence, []).append(objective)
        for sentence, objectives in concerned.items():
            of = "" if len(objectives) == len(study.objectives) else f"{', '.join(objectives)}: "
            yield Text(of + sentence, style="dim")
    if any(comparisons for _, comparisons in kinds):
        yield Text(
            f"{said.split} split, paired by replicate. Interval: 95 %, studentised bootstrap; with fewer than 5 "
            "replicates, or too many ties, Student's. p: of flipping signs; Holm: corrected over its table. "
            "Not seen: the interval includes 0.",
            style="dim",
        )


def effects_table(comparisons: list[Comparison], found: list[Arm]) -> Table:
    """One line a comparison, also where no effect is seen."""
    table = plain_table("effect", "95 % interval", "n", "p", "Holm", "seen", first="change")
    for comparison in comparisons[:MOST_ROWS]:
        effect = comparison.effect
        seen = "–" if math.isnan(effect.low) else "yes" if effect.is_seen else "no"
        what = " × ".join(_change(change, found) for change in comparison.changes)
        table.add_row(what, *effect_cells(effect), seen, style=None if effect.is_seen else "dim")
    return table


def effect_cells(effect: Effect) -> tuple[str, str, str, str, str]:
    """Return the mean, its interval, n, p, and p corrected by Holm's rule; a dash for what there is not."""
    ends = "–" if math.isnan(effect.low) else f"{number(effect.low, '+')} to {number(effect.high, '+')}"
    return number(effect.mean, "+"), ends, str(effect.n), p_value(effect.p), p_value(effect.p_holm)


def notes(comparisons: list[Comparison]) -> Iterator[str]:
    """Yield what the numbers of one table cannot say: missing pairs, no chance involved, too few
    replicates for a test.
    """
    missing = sum(comparison.most_pairs - comparison.pairs for comparison in comparisons)
    if missing:
        pairs = sum(comparison.most_pairs for comparison in comparisons)
        yield f"{missing} of {pairs} pairs lack a trial with a value"
    tested = [comparison.effect for comparison in comparisons if not math.isnan(comparison.effect.p)]
    if not tested:
        if any(comparison.effect.n > 1 for comparison in comparisons):
            yield "no matter of chance: the same in every replicate"
        return
    n = max(effect.n for effect in tested)
    least = min(1.0, smallest_p(n) * len(tested))
    if least > SIGNIFICANT:
        needed = math.ceil(1 + math.log2(len(tested) / SIGNIFICANT))
        yield (
            f"{n} replicates cannot bring p below {p_value(smallest_p(n))}, nor Holm's over {len(tested)} comparisons "
            f"below {p_value(least)}: that {SIGNIFICANT} can be reached takes {needed} replicates; go by the intervals"
        )


def importance_lines(found: list[Importance]) -> Iterator[RenderableType]:
    """Parameters by objective, as `PED-ANOVA / fANOVA`."""
    yield heading("Importance")
    known = [each for each in found if each.reason is None]
    if known:
        table = plain_table(*(each.objective.replace("_", "\n") for each in known), first="parameter")
        for name in sorted({name for each in known for name in each.ped_anova | each.fanova}):
            table.add_row(name, *(f"{_share(each.ped_anova, name)} / {_share(each.fanova, name)}" for each in known))
        yield table
        yield Text(
            f"PED-ANOVA (what tells the best {known[0].best} of {known[0].trials} trials from the others; together 1)"
            " / fANOVA (share of variance by itself; only of parameters that every trial has)",
            style="dim",
        )
    yield from (Text(f"{each.objective}: not known: {each.reason}") for each in found if each.reason)


def correlation_lines(said: Analysis) -> Iterator[RenderableType]:
    """Spearman's correlation with accuracy; of the objectives, or of every metric where none of them is one."""
    shown = [each for each in said.correlations if each.is_objective] or said.correlations
    if not shown:
        return
    yield heading("Rank correlation with accuracy")
    table = plain_table("Spearman's", "95 % interval", "p", "trials", first="metric", second="over")
    for each in shown:
        table.add_row(each.metric.replace("_", " "), "all trials", *correlation_cells(each.overall))
        strata = each.within.strata
        within = f"equal parameters, {strata} {'stratum' if strata == 1 else 'strata'}"
        table.add_row("", within, *correlation_cells(each.within))
    yield table
    yield Text(
        "below 0 of an error: the more equivariant, the more accurate; bootstrap interval over trials, p of shuffling; "
        "a stratum: 4 trials or more of equally many parameters, weighed by trials - 1",
        style="dim",
    )


def as_json(study: StudyRecord, against: int = 0) -> dict[str, Any]:
    """Return what `equitune analyze --json` prints: a stable interface, to which keys may be added; null is no value.

    Raises:
        UserError: there is no arm of that number.
    """
    said = analyse(study, against, shown_split(study))
    uncertain = said.front_uncertainty
    return {
        "study": study.name,
        "state": study.state,
        "objectives": study.objectives,
        "split": said.split,
        "hypervolume": {
            "value": said.steps[-1].value if said.steps else None if said.reference.point is None else 0.0,
            "reference": _plain(said.reference),
            "steps": _plain(said.steps),
        },
        "front": [trial.number for trial in said.front],
        "front_uncertainty": uncertain
        and {
            "arms": [
                {"arm": member.arm.number, "front": member.is_on_front, "share": _plain(member.share)}
                for member in uncertain.arms
            ],
            "replicates": uncertain.replicates,
            "hypervolume": _plain(uncertain.hypervolume),
            "interval": _plain(uncertain.interval),
        },
        "arms": [{"arm": arm.number, "params": arm.params} for arm in said.arms] if said.baseline else [],
        "effects": _plain(said.arm_effects),
        "factors": _plain(said.factor_effects),
        "interactions": _plain(said.interactions),
        "importance": _plain(said.importance),
        "correlations": _plain(said.correlations),
    }


def plain_table(*columns: str, first: str | None = None, second: str | None = None, last: str | None = None) -> Table:
    """Return a table without lines: numbers stand to the right and do not wrap, texts to the left and do."""
    table = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
    for text in (first, second):
        if text:
            table.add_column(text, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    if last:
        table.add_column(last, overflow="fold")
    return table


def heading(text: str) -> Text:
    return Text(f"\n{text}", style="bold")


def number(value: float, sign: str = "") -> str:
    """`0.1234`, `12,345` of what is counted in hundreds, `1.2e-05` of what would be 0 else, – of none."""
    if math.isnan(value):
        return "–"
    if 0 < abs(value) < 0.0005:
        return f"{value:{sign}.2g}"
    return f"{value:{sign},.0f}" if abs(value) >= 100 else f"{value:{sign}.4f}"


def reference_words(reference: Reference) -> str:
    values = {name: f"{name} {number(value)}" for name, value in (reference.point or {}).items()}
    given = [text for name, text in values.items() if name in reference.given]
    worst = [text for name, text in values.items() if name not in reference.given]
    parts = [f"given: {', '.join(given)}"] * bool(given)
    parts += [f"the worst of any complete trial: {', '.join(worst)}"] * bool(worst)
    return f"reference point, {'; '.join(parts)}"


def _of_means(uncertain: FrontUncertainty) -> str:
    interval = uncertain.interval
    return (
        f"hypervolume of the arms' means {number(uncertain.hypervolume)}; of endless replicates "
        f"{number(interval.mean)}, 95 % interval {number(interval.low)} to {number(interval.high)}"
    )


def _change(change: Change, found: list[Arm]) -> str:
    """`model.width 4 → 8`; of an arm, its number before what it changes of its baseline."""
    words = described(change, found)
    return f"{change.after}: {words}" if change.factor == "arm" else words


def correlation_cells(found: RankCorrelation) -> tuple[str, str, str, str]:
    """Rho, its interval, p, and how many trials count; a dash for what there is not."""
    if math.isnan(found.rho):
        return "–", "–", "–", str(found.trials)
    return f"{found.rho:+.2f}", f"{found.low:+.2f} to {found.high:+.2f}", p_value(found.p), str(found.trials)


def p_value(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}" if value >= 0.0005 else "<0.001"


def _share(shares: dict[str, float], name: str) -> str:
    return f"{shares[name]:.2f}" if name in shares else "–"


def _more(count: int, what: str) -> Iterator[RenderableType]:
    if count > 0:
        yield Text(f"... and {count} more {what}: equitune analyze --json has all", style="dim")


def _plain(value: Any) -> Any:
    """Value objects as JSON; None for what is not finite."""
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""Everything that `equitune analyze` says of a study, as numbers."""

from dataclasses import dataclass

from equitune.analysis.arms import Arm, arm_of, arms
from equitune.analysis.correlation import Correlated, correlations
from equitune.analysis.effects import Comparison, arm_effects, factor_effects
from equitune.analysis.front_uncertainty import FrontUncertainty, front_uncertainty
from equitune.analysis.hypervolume import Reference, Step, over_time, reference_point
from equitune.analysis.importance import Importance, importance
from equitune.analysis.interactions import interactions
from equitune.analysis.pareto import front
from equitune.records.reader import StudyRecord, TrialRecord


@dataclass(frozen=True)
class Analysis:
    """The conclusions of one study.

    Attributes:
        split: of the numbers by arm; all others are of the validation split, which the search sees.
        baseline: the arm that the others are compared with; None: there are no replicates, and no effects.
        front_uncertainty: None: there are no replicates.
    """

    split: str
    reference: Reference
    steps: list[Step]
    front: list[TrialRecord]
    arms: list[Arm]
    baseline: Arm | None
    front_uncertainty: FrontUncertainty | None
    arm_effects: list[Comparison]
    factor_effects: list[Comparison]
    interactions: list[Comparison]
    importance: list[Importance]
    correlations: list[Correlated]


def analyse(study: StudyRecord, against: int = 0, split: str = "validation") -> Analysis:
    """Analyses a study, which may still run.

    Args:
        against: the arm that the others are compared with, where there are replicates.
        split: `validation` or `test`: that of the numbers by arm.

    Raises:
        UserError: there is no arm of that number.
    """
    reference, found = reference_point(study), arms(study)
    is_replicated = study.replicates > 1 and bool(found)
    split = split if is_replicated else "validation"
    return Analysis(
        split=split,
        reference=reference,
        steps=over_time(study, reference),
        front=front(study),
        arms=found,
        baseline=arm_of(found, against) if is_replicated else None,
        front_uncertainty=front_uncertainty(study, split) if is_replicated else None,
        arm_effects=arm_effects(study, against, split) if is_replicated else [],
        factor_effects=factor_effects(study, against, split) if is_replicated else [],
        interactions=interactions(study, against, split) if is_replicated else [],
        importance=importance(study),
        correlations=correlations(study, split),
    )

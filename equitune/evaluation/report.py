"""What a measure hands back."""

from dataclasses import dataclass, field
from typing import Any

from equitune.evaluation.estimate import Estimate
from equitune.results.values import Measurement


@dataclass(frozen=True)
class Report:
    """The metrics of a measure, its rows for the profile over depth, and what intervals and comparisons follow from."""

    metrics: dict[str, Measurement]
    profile: list[dict[str, Any]] = field(default_factory=list)
    estimates: dict[str, Estimate] = field(default_factory=dict, compare=False)  # by metric, or by layer/set/quantity
    controls: dict[str, Any] = field(default_factory=dict)  # what the whole run is measured against

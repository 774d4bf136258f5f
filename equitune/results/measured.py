"""Value objects of a measurement of models: what was measured, on what, and how models differ. Written as JSON."""

from typing import Any

from equitune.config.strict import Strict
from equitune.results.values import Measurement


class MeasuredModel(Strict):
    """One model's numbers."""

    name: str
    provenance: dict[str, str]
    notices: list[str]
    metrics: dict[str, Measurement]
    profile: list[dict[str, Any]]  # one row a layer, group element set and measure
    controls: dict[str, dict[str, Any]]  # by measure and group


class Difference(Strict):
    """A paired difference of two models on the same images and group elements."""

    metric: str
    model: str
    baseline: str
    value: float  # the model's minus the baseline's
    stderr: float
    low: float | None  # of the 95 % bootstrap interval over images; None: too few have no value in some resamples
    high: float | None
    n: int


class MeasurementRecord(Strict):
    """One call of `equitune measure`."""

    request: dict[str, Any]  # every option, resolved
    data: dict[str, Any]  # name, split, n, fingerprint
    models: list[MeasuredModel]
    differences: list[Difference]  # every other model beside the first
    provenance: dict[str, str]

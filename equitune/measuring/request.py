"""What `equitune measure` was asked for, and the measures that follow from it."""

import hashlib
import json
from typing import Any

from equitune import __version__, catalog
from equitune.config.call import checked_call, parsed
from equitune.config.objectives import declared_metrics
from equitune.config.space import Call
from equitune.config.strict import Strict
from equitune.errors import UserError
from equitune.measuring.images import SplitName

DEFAULT_GROUPS = ("translation",)


class Request(Strict):
    """Everything that decides the numbers of a measurement."""

    models: tuple[str, ...]
    data: str | None = None  # None: that of the first model, a recorded trial
    split: SplitName = "test"
    size: int | None = None
    measures: tuple[str, ...] = ("equivariance", "consistency")
    groups: tuple[str, ...] = DEFAULT_GROUPS
    layers: tuple[str, ...] = ()  # patterns; none: all that the models declare
    images: int | None = None
    batch_size: int = 128
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0
    special_tokens: int | None = None
    mean: tuple[float, ...] | None = None  # per channel, in place of what the models declare
    std: tuple[float, ...] | None = None

    def fingerprint(self) -> str:
        """Return a hash of the request: the same one goes on where it was interrupted."""
        text = json.dumps([__version__, self.model_dump(mode="json")], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def calls_of(request: Request, total_stride: int) -> list[Call]:
    """Each measure of each group, its arguments filled in.

    Args:
        request: names them.
        total_stride: in pixels, of the layers of all models together: all see the same lattice shifts.

    Raises:
        UserError: a measure or an argument does not exist, a group is not used, or a metric is measured twice.
    """
    calls = []
    for text in request.measures:
        where = f"--measure {text}"
        name, given = parsed(text, where)
        parameters = catalog.describe("measure", name).parameters
        common: dict[str, Any] = {}
        if request.images is not None and "most_images" in parameters:
            common["most_images"] = request.images
        groups = [given["group"]] if "group" in given else request.groups
        for group in groups if "group" in parameters else [None]:
            more = common if group is None else {**common, "group": group}
            if group == "translation" and "lattice_px" in parameters:
                more = {**more, "lattice_px": total_stride}
            calls.append(checked_call("measure", name, more | given, where))
    _require_all_heard(request, calls)
    return calls


def _require_all_heard(request: Request, calls: list[Call]) -> None:
    """Raise UserError where a group is not used, or a metric would be measured twice."""
    unused = [group for group in request.groups if group not in {call.args.get("group") for call in calls}]
    if unused and request.groups != DEFAULT_GROUPS:
        raise UserError(f"--group {unused[0]}: none of the measures takes it: {', '.join(request.measures)}")
    by_metric: dict[str, Call] = {}
    for call in calls:
        for metric in declared_metrics((call,)):
            if metric in by_metric:
                raise UserError(f"{metric} would be measured twice: name {said(call)} once, with all its arguments")
            by_metric[metric] = call


def said(call: Call) -> str:
    """Return a measure in a sentence: `equivariance of translation`."""
    return call.name + (f" of {call.args['group']}" if "group" in call.args else "")

"""The `search` section of a study: who proposes its trials, and when it has had enough of them."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from equitune.spec.space import Scalar
from equitune.spec.strict import Mistakes, Strict, mapping_with_text_keys, rule, shown


def _values(data: Any) -> dict[str, Any]:
    """Parameter names with their values, as written."""
    if not isinstance(data, dict):
        raise rule(f"must be a mapping from parameters to values, but got {shown(data)}")
    mistakes, values = Mistakes(), mapping_with_text_keys(data, "values")
    for name, value in values.items():
        if isinstance(value, dict | list):
            sentence = f"takes one value, but got {shown(value)}: write whole names, such as {name}.NAME: 8"
            mistakes.add((name,), sentence)
    mistakes.raise_any()
    return values


def _best(data: Any) -> Any:
    if isinstance(data, str):
        raise rule(f"must be a mapping from parameters to values, or STUDY/NUMBER of a recorded trial, but got {data}")
    return _values(data)


Design = Literal["factorial", "one_at_a_time", "leave_one_out", "toggles"]


class SearchSpec(Strict):
    """Who proposes the trials, and when the study has had enough of them."""

    sampler: Literal["tpe", "random", "nsga2", "grid"] = "tpe"
    trials: Annotated[int, Field(ge=1)] = 20  # of a design: cells times replicates
    replicates: Annotated[int, Field(ge=1)] = 1  # of each cell of a design, with seeds paired over the cells
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    baseline: Annotated[dict[str, Scalar], BeforeValidator(_values)] | None = None  # what everything is compared with
    design: Design | None = None  # the list of trials, in place of a sampler; `sampler: grid` is `design: factorial`
    best: Annotated[dict[str, Scalar], BeforeValidator(_best)] | None = None  # of toggles: what is taken apart

    def identity(self) -> dict[str, Any]:
        """What makes two searches the same one: all but the budget."""
        given = {"baseline": self.baseline, "best": self.best}
        if self.design != "factorial":
            given |= {"design": self.design}  # type: ignore[dict-item]
        return {"sampler": self.sampler, "seed": self.seed} | {
            name: value for name, value in given.items() if value is not None
        }

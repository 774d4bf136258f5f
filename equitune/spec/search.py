"""The `search` section of a study: who proposes its trials, and when it has had enough of them."""

from typing import Annotated, Literal

from pydantic import Field

from equitune.spec.strict import Strict


class SearchSpec(Strict):
    """Who proposes the trials, and when the study has had enough of them."""

    sampler: Literal["tpe", "random", "nsga2", "grid"] = "tpe"
    trials: Annotated[int, Field(ge=1)] = 20  # of a grid: cells times replicates
    replicates: Annotated[int, Field(ge=1)] = 1  # of each cell of a grid, with seeds paired over the cells
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

"""When a study has had enough: its front grows no more."""

from typing import Annotated

from pydantic import Field

from equitune.config.strict import Strict


class Plateau(Strict):
    """No more trials when the hypervolume has grown by no more than a share over the last ones."""

    trials: Annotated[int, Field(ge=1, le=1_000_000)] = 20  # that have ended
    gain: Annotated[float, Field(ge=0)] = 0.01  # of the hypervolume before them

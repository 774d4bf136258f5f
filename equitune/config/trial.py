"""One trial with every value filled in: what a worker needs to train and measure it, anywhere, again."""

from typing import Annotated, Any, Literal

from pydantic import Field

from equitune.catalog import Arguments
from equitune.config.objectives import Bound
from equitune.config.record import Record
from equitune.config.space import Call, Scalar, Values
from equitune.config.strict import Strict


class TrainingConfig(Arguments):
    """How a trial trains."""

    epochs: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    batch_size: Annotated[int, Field(ge=2, le=1_000_000)] = 64
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 3e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # of sgd
    warmup_epochs: Annotated[float, Field(ge=0, le=1_000_000)] = 1.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    symmetry_penalty: Annotated[float, Field(ge=0)] = 0.0  # times the mean squared amount of the layers
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False


class InputConfig(Arguments):
    """How large the images are that a network sees."""

    size: Annotated[int, Field(ge=4, le=1024)] | None = None  # side in px that they are resized to; None: as they are

    def shape_of(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return the shape (C, H, W) of a trial's images, from that of the data's: all that needs it asks here."""
        return shape if self.size is None else (shape[0], self.size, self.size)


class DataConfig(Strict):
    """Which images, and how they are split. `args` are those of the data set's own file."""

    name: str = "digits"
    task: Literal["class", "turned", "half_turn", "axis", "six_nine", "quadrant", "placed"] = "class"
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.2
    test: Annotated[float, Field(gt=0, lt=1)] = 0.2  # where the data set has no test split of its own
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    limit: Annotated[int, Field(ge=1)] | None = None  # at most so many images before the splits
    root: str | None = None  # None: --data-root, EQUITUNE_DATA or ./data
    args: Values = {}


class TrialConfig(Record):
    """Everything that decides a trial's numbers, on a given device and software."""

    study: str
    number: Annotated[int, Field(ge=0)]
    seed: Annotated[int, Field(ge=0)]
    replicate: Annotated[int, Field(ge=0)] = 0  # trials of equal replicate share the seed, whatever their parameters
    cell: Annotated[int, Field(ge=0)] | None = None  # place in the list of a design, whatever the number
    params: dict[str, Scalar]  # what the search chose, by parameter name
    data: DataConfig
    input: InputConfig = InputConfig()
    model: Call
    prior: Call | None
    downsampler: Call | None = None  # None: the model's own
    stem: Call | None = None  # likewise
    augmentation: tuple[Call, ...]
    averaging: Call | None = None  # around the model; None: the model alone
    training: TrainingConfig
    measures: tuple[Call, ...]
    bounds: dict[str, Bound] = {}  # on what is known before training; outside of them the trial does not train
    rungs: tuple[int, ...] = ()  # epochs after which `rung_metrics` are measured cheaply
    rung_images: Annotated[int, Field(ge=1)] = 64  # of the validation split, by each measure at a rung
    rung_metrics: tuple[str, ...] = ()  # the study's objectives, then its other constrained metrics
    device: str = "cpu"

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    @classmethod
    def from_json_text(cls, text: str) -> "TrialConfig":
        return cls.model_validate_json(text)  # as JSON, whose lists stand for our tuples

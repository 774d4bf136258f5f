"""`study.json`: what a study is, as it was begun and extended."""

from typing import Annotated, Any, Literal

from pydantic import Field

from equitune.config.objectives import Bound
from equitune.config.record import Record
from equitune.config.strict import Strict
from equitune.records.checked import read_json, read_record
from equitune.records.place import Place


class WarmStart(Strict):
    """The trials of other studies that a study began with."""

    studies: tuple[str, ...]
    trials: tuple[str, ...]  # STUDY/NUMBER


class Extension(Strict):
    """One widening of the search space."""

    time: float
    trials: int  # that there were
    changes: tuple[tuple[str, Any, Any], ...]  # path, before, after
    overrides_before: tuple[str, ...]


class StudyInfo(Record):
    """The keys of `study.json`. Those with a default came later than the first ones, or come with a later step."""

    study: str
    objectives: Annotated[dict[str, Literal["maximize", "minimize"]], Field(min_length=1)]
    trials: Annotated[int, Field(ge=1)]
    id: str = ""
    references: dict[str, float] = {}
    constraints: dict[str, Bound] = {}
    replicates: Annotated[int, Field(ge=1)] = 1
    hours: float | None = None
    gpu_hours: float | None = None
    fingerprint: str = ""
    identity: dict[str, Any] = {}  # every default filled in
    defaults: dict[str, Any] = {}  # of the arguments that the study's file does not name
    overrides: tuple[str, ...] = ()
    source: str | None = None
    storage: str = "journal"
    created: float = 0.0
    provenance: dict[str, str] = {}
    data_fingerprint: str | None = None
    splits: dict[str, int] = {}
    image_shape: tuple[int, ...] = ()
    gpus_of_a_trial: float | None = None
    imported: Annotated[int, Field(ge=0)] = 0
    warm_start: WarmStart = WarmStart(studies=(), trials=())
    optuna_study: str = ""
    extensions: tuple[Extension, ...] = ()
    ended_by: str | None = None
    answer: str | None = None  # a digest of what the trials said when the study ended


def read_info(path: Place) -> dict[str, Any]:
    """Return what a `study.json` says, checked, without the number of its format: the keys that it has.

    Raises:
        DamagedError: it is missing, not whole or that of no study.
        NewerError: a later version of the program has written it.
    """
    read_record(StudyInfo, path)
    said = {key: value for key, value in read_json(path).items() if key != "format"}
    return {"id": "", "created": 0.0, "provenance": {}} | said

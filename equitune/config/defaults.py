"""Defaults within a study's identity: what a study's file does not say, and a later version of the program may.

Two versions of the program ask the same question where what the file says is equal and no default that both know has
another value. A setting that one of them does not know has its default there.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from equitune import catalog
from equitune.config.stopping import SchedulerSpec
from equitune.config.trial import DataConfig

if TYPE_CHECKING:
    pass

LEFT_OUT = {"root", "args", "task"}  # of the data: where they lie; what is read apart; `class`, if nothing is said


def completed(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded identity, of any version, with the defaults that it lacks."""
    found = {key: dict(value) if isinstance(value, Mapping) else value for key, value in identity.items()}
    if isinstance(data := found.get("data"), dict):
        args = _of_component("dataset", data.get("name")) | (data.get("args") or {})
        known = {key: value for key, value in _of_model(DataConfig).items() if key not in LEFT_OUT}
        found["data"] = known | data | {"args": args}
    found["measures"] = [
        {**call, "args": _of_component("measure", call.get("name")) | call.get("args", {})}
        for call in found.get("measures", [])
    ]
    if isinstance(search := found.get("search"), dict) and isinstance(scheduler := search.get("scheduler"), Mapping):
        found["search"] = search | {"scheduler": _of_model(SchedulerSpec) | dict(scheduler)}
    return found


def stated(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return an identity without what is equal to its default: a setting that comes later changes nothing in it."""
    found = dict(identity)
    data = {key: value for key, value in found["data"].items() if value != _of_model(DataConfig).get(key, ...)}
    data["args"] = _without(found["data"]["args"], _of_component("dataset", found["data"]["name"]))
    found["data"] = {"name": found["data"]["name"]} | data
    found["measures"] = [
        {"name": call["name"], "args": _without(call["args"], _of_component("measure", call["name"]))}
        for call in found["measures"]
    ]
    if scheduler := found["search"].get("scheduler"):
        found["search"] = found["search"] | {"scheduler": _without(scheduler, _of_model(SchedulerSpec))}
    return found


def differences(before: Any, after: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two pieces of plain data differ: the path, and both values."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            yield from differences(before.get(key), after.get(key), f"{path}.{key}" if path else key)
    elif before != after:
        yield path, before, after


def _of_component(kind: str, name: Any) -> dict[str, Any]:
    """Return the defaults of a component; none where there is no such component any more."""
    if name not in catalog.names(kind):
        return {}
    parameters = catalog.describe(kind, name).parameters
    given = {key: default for key, (_, default) in parameters.items() if default is not ...}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}  # as JSON has it


def _of_model(model: type[BaseModel]) -> dict[str, Any]:
    fields = model.model_fields.items()
    return {key: field.default for key, field in fields if field.default is not PydanticUndefined}


def _without(args: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in args.items() if key not in defaults or defaults[key] != value}

"""Where a study asks something else than its record does."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from equitune import catalog
from equitune.config.defaults import _of_component, _of_model, completed, differences
from equitune.config.space import Section
from equitune.config.study import StudySpec
from equitune.config.trial import InputConfig, TrainingConfig

A_DEFAULT = " (a default)"  # behind the place of one that differs


_SETTINGS: dict[str, type[BaseModel]] = {"training": TrainingConfig, "input": InputConfig}


def defaults_of(spec: StudySpec) -> dict[str, Any]:
    """Return the default of each argument that the study's file does not name, by its place, as JSON."""
    found = {}
    for section in spec.sections():
        for label, calls in section.branches.items():
            prefix = f"{section.path}.{label}" if section.is_choice else section.path
            for call in calls:
                path = prefix if call.name in (section.path, label) else f"{prefix}.{call.name}"
                for name, default in _defaults(section, call.name).items():
                    if name not in call.args:
                        found[f"{path}.{name}"] = default
    for part in catalog.PARTS:
        if getattr(spec, part) is None:
            for calls in spec.model.branches.values():
                found |= {f"model.{calls[0].name}.{part}": own for own in catalog.parts(calls[0].name, part)[:1]}
    return found


def changes(info: Mapping[str, Any], spec: StudySpec) -> Iterator[tuple[str, Any, Any]]:
    """Where a study asks something else than its record: the path, what was asked, and what is.

    Args:
        info: what its study.json says.
        spec: the study as it is asked for now.
    """
    recorded, asked = completed(info.get("identity", {})), spec.identity()
    if [call.get("name") for call in recorded["measures"]] == [call["name"] for call in asked["measures"]]:
        recorded, asked = _by_place(recorded), _by_place(asked)
    yield from differences(recorded, asked)
    before, after = info.get("defaults", {}), defaults_of(spec)
    for path in before.keys() & after.keys():
        if before[path] != after[path]:
            yield f"{path}{A_DEFAULT}", before[path], after[path]


def _by_place(identity: dict[str, Any]) -> dict[str, Any]:
    """Return an identity whose measures are named, so that what differs in one of them is."""
    calls = identity.get("measures", [])
    names = [call.get("name") for call in calls]
    if len(set(names)) < len(names):
        return identity
    return identity | {"measures": {call["name"]: call["args"] for call in calls}}


def _defaults(section: Section, name: str) -> dict[str, Any]:
    if section.path in _SETTINGS:
        return _of_model(_SETTINGS[section.path])
    return _of_component(catalog.PARTS.get(section.path, section.path), name)

"""YAML -> StudySpec. The only file that reads YAML; every mistake gets its file, line and column.

The reader is safe by construction: it builds nothing but mappings, lists, text, numbers, true, false and null, and
bounds size, depth and the expansion of aliases.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from equitune.catalog import shortened
from equitune.config.shipped import shipped_names
from equitune.config.strict import Location, checked, why_not_number, why_not_text
from equitune.config.study import StudySpec
from equitune.errors import PASSWORD, UserError

MAX_BYTES = 200_000
MAX_DEPTH = 30
MAX_NODES = 20_000
MAX_MISTAKES = 100  # that are said

_NULL, _BOOL, _INT, _FLOAT, _STR = (f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str"))
_MAP, _SEQ = yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, yaml.resolver.BaseResolver.DEFAULT_SEQUENCE_TAG

# YAML 1.2's plain scalars: 1e-3 is a number; `no`, `on`, 0x1f, 1:30 and 2026-01-01 are text.
_PLAIN = [
    (_NULL, re.compile(r"~|null|Null|NULL|")),
    (_BOOL, re.compile(r"true|True|TRUE|false|False|FALSE")),
    (_INT, re.compile(r"[-+]?[0-9]+")),
    (
        _FLOAT,
        re.compile(
            r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
        ),
    ),
]


class _Reader(yaml.SafeLoader):
    """PyYAML's safe loader with the plain scalars of YAML 1.2."""

    yaml_implicit_resolvers: dict[Any, Any] = {}


for _tag, _pattern in _PLAIN:
    _Reader.add_implicit_resolver(_tag, re.compile(f"(?:{_pattern.pattern})$"), None)


@dataclass
class _Document:
    """Plain data, and where each part of it stands: location -> (line, column), counted from 1."""

    name: str
    data: Any = None
    places: dict[Location, tuple[int, int]] = field(default_factory=dict)
    overrides: dict[Location, str] = field(default_factory=dict)

    def sentence(self, location: Location, text: str) -> str:
        """`file:line:column path: text`, at the innermost part of the location that the file has."""
        known = [location[:size] for size in range(len(location) + 1)]
        overridden = next((part for part in known if part in self.overrides), None)
        if overridden is not None:
            within = ".".join(str(part) for part in location[len(overridden) :])
            return f"--set {self.overrides[overridden]}: {within}{': ' if within else ''}{text}"
        line, column = next(self.places[part] for part in reversed(known) if part in self.places)
        path = ".".join(shortened(str(part)) for part in location)
        return f"{self.name}:{line}:{column} {path}{':' if path else ''} {text}"


def load_study(
    path: Path,
    overrides: tuple[str, ...] = (),
    require: Callable[[StudySpec], None] = lambda spec: None,
    recorded: Callable[[str], dict[str, Any]] | None = None,
) -> StudySpec:
    """Read and check a study.

    Args:
        path: of the YAML file.
        overrides: each is `dotted.path=value`, its value written as YAML.
        require: what else must hold of a study whose file is right; raises a ValidationError with places in it.
        recorded: gives the parameters of a recorded trial, STUDY/NUMBER, which `search.best` may name.

    Raises:
        UserError: with one line for each mistake: file:line:column, the path, the rule, what was given.
    """
    document = _read(path)
    for override in overrides:
        _override(document, override)
    if recorded is not None:
        _look_up_best(document, recorded)
    try:
        spec = checked(StudySpec, document.data)
        require(spec)
    except ValidationError as error:
        found = error.errors()
        lines = [document.sentence(details["loc"], details["msg"]) for details in found[:MAX_MISTAKES]]
        if len(found) > MAX_MISTAKES:
            lines.append(f"{path}: and {len(found) - MAX_MISTAKES:,} more mistakes: mend these first")
        raise UserError("\n".join(lines)) from None
    return spec


def _read(path: Path) -> _Document:
    document = _Document(str(path))
    try:
        if not path.is_file():
            raise UserError(
                f"{path}: no such file: name a study's YAML file, or a study that comes with equitune: "
                f"{', '.join(shipped_names())}"
            )
        if path.stat().st_size > MAX_BYTES:
            raise UserError(
                f"{path}: a study has at most {MAX_BYTES:,} bytes, but this file has {path.stat().st_size:,}"
            )
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: a study is UTF-8 text, but byte {error.start} is not: {error.reason}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    document.data = _parse(text, document)
    return document


def _parse(text: str, document: _Document) -> Any:
    """Text -> plain data, noting the place of every part in the document."""
    if found := PASSWORD.search(text):  # of the comments too: all of it is copied
        line = text.count("\n", 0, found.start()) + 1
        raise UserError(
            f"{document.name}:{line}: an address with a password: a study is copied into its folder and into MLflow, "
            "where others read it: give secrets by the environment"
        )
    try:
        root = yaml.compose(text, _Reader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise UserError(f"{document.name}{place} is not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{document.name} is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{document.name}: is nested too deeply: a study has at most {MAX_DEPTH} levels") from None
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{document.name}:1:1 a study is a mapping, such as `study: capacity` and what follows")
    return _Builder(document).plain(root, ())


class _Builder:
    """Turns YAML's node graph into plain data; counts nodes as visited, so that aliases cannot multiply."""

    def __init__(self, document: _Document) -> None:
        self.document = document
        self.count = 0

    def plain(self, node: yaml.Node, location: Location) -> Any:
        self.count += 1
        self.document.places.setdefault(location, (node.start_mark.line + 1, node.start_mark.column + 1))
        if len(location) > MAX_DEPTH:
            self.refuse(location, f"is nested too deeply: a study has at most {MAX_DEPTH} levels")
        if self.count > MAX_NODES:
            self.refuse(location, f"expands to too much: a study has at most {MAX_NODES:,} values, aliases counted out")
        if isinstance(node, yaml.MappingNode) and node.tag == _MAP:
            return self.mapping(node, location)
        if isinstance(node, yaml.SequenceNode) and node.tag == _SEQ:
            return [self.plain(item, (*location, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, location)
        return self.refuse(location, f"tags that construct objects are not taken, but got {node.tag}: write plain data")

    def mapping(self, node: yaml.MappingNode, location: Location) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag not in (_STR, _INT, _BOOL, _FLOAT, _NULL):
                self.document.places[(*location, "?")] = place
                self.refuse((*location, "?"), "a key must be plain text")
            key = key_node.value
            if reason := why_not_text(key):
                self.document.places[(*location, "?")] = place
                self.refuse((*location, "?"), f"a key {reason}")
            self.document.places[(*location, key)] = place
            if key in found:
                self.refuse((*location, key), "stands twice: remove one")
            if key == "<<":
                self.refuse((*location, key), "merge keys are not taken: write the values out")
            found[key] = self.plain(value_node, (*location, key))
        return found

    def scalar(self, node: yaml.ScalarNode, location: Location) -> Any:
        text = node.value
        if node.tag == _STR:
            reason = why_not_text(text)
            return self.refuse(location, reason) if reason else text
        if node.tag == _NULL:
            return None
        try:
            if node.tag == _BOOL:
                return {"true": True, "false": False}[text.lower()]
            if node.tag == _INT:
                return self.number(int(text), location)
            if node.tag == _FLOAT:
                return self.number(float(re.sub(r"\.(inf|nan)$", r"\1", text.lower())), location)
        except (ValueError, KeyError):
            return self.refuse(location, f"is not a {node.tag.rsplit(':', 1)[-1]}: {text[:40]!r}")
        return self.refuse(location, f"tags that construct objects are not taken, but got {node.tag}: write plain data")

    def number(self, number: float, location: Location) -> float:
        reason = why_not_number(number)
        return self.refuse(location, reason) if reason else number

    def refuse(self, location: Location, text: str) -> Any:
        raise UserError(self.document.sentence(location, text))


def _override(document: _Document, override: str) -> None:
    """Set one value of the document's data. A path's missing mappings are made; a scalar on its way is replaced."""
    path, separator, text = override.partition("=")
    keys = tuple(path.split("."))
    if not separator or not all(keys):
        raise UserError(f"--set takes path=value, such as model.width=16, but got {override!r}")
    value = _parse(f"value: {text}", _Document(f"--set {override}"))["value"]
    target: Any = document.data
    location: Location = ()
    for position, name in enumerate(keys):
        key: Any = _index(target, name, override) if isinstance(target, list) else name
        location = (*location, key)
        if position == len(keys) - 1:
            target[key] = value
        else:
            child = target[key] if isinstance(target, list) else target.get(key)
            if isinstance(child, str):  # `model: resnet` is short for `model: {name: resnet}`
                child = {"name": child}
            target[key] = child if isinstance(child, dict | list) else {}
            target = target[key]
    document.overrides[location] = override


def _look_up_best(document: _Document, recorded: Callable[[str], dict[str, Any]]) -> None:
    """Put the values of the trial that `search.best` names in its place."""
    search = document.data.get("search")
    if isinstance(search, dict) and isinstance(search.get("best"), str):
        try:
            search["best"] = recorded(search["best"])
        except UserError as error:
            raise UserError(document.sentence(("search", "best"), str(error))) from None


def _index(items: list[Any], text: str, override: str) -> int:
    if not (text.isdecimal() and int(text) < len(items)):
        raise UserError(f"--set {override}: a list is set by position, 0 to {len(items) - 1}, but got {text!r}")
    return int(text)

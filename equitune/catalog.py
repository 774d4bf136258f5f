"""Component name <-> module file. `equitune/priors/conv.py` is `prior: conv`; there is no list to keep.

Signatures are read from the source text, so a study is checked without importing torch. By convention the
parameters of an entry function after its bare `*` are those that a study may set; the ones before it are
handed over by the program.
"""

import ast
import difflib
import importlib
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from equitune.errors import UserError

# The folder of each kind, and the one function that every module in it defines.
KINDS = {
    "dataset": ("datasets", "load"),
    "model": ("models", "build"),
    "prior": ("priors", "build"),
    "downsampler": ("downsamplers", "build"),
    "augmentation": ("augmentations", "augment"),
    "averaging": ("averagings", "average"),
    "measure": ("measures", "measure"),
}

# What a model may be built of -> the kind of component that it is.
PARTS = {"prior": "prior", "downsampler": "downsampler", "stem": "prior"}

# The names that an annotation of a component's parameter may use.
_ANNOTATIONS: dict[str, Any] = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "Annotated": Annotated,
    "Field": Field,
    "Literal": Literal,
}


class Arguments(BaseModel):
    """Base of the models that hold a component's arguments: exact types, finite numbers, no unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Component:
    """One file of the catalogue, as its source text declares it."""

    kind: str
    name: str
    summary: str
    parameters: dict[str, tuple[Any, Any]]  # name -> (annotation, default or ...)
    annotations: dict[str, str]  # name -> its type and bounds, for people: "int >= 1"
    constants: dict[str, Any]  # the literal UPPER_CASE constants of the module


def names(kind: str) -> list[str]:
    """Return the components of a kind: the modules of its folder that do not begin with an underscore."""
    return sorted(path.stem for path in _folder(kind).glob("*.py") if not path.name.startswith("_"))


@cache
def describe(kind: str, name: str) -> Component:
    """Read what a component declares, without importing it.

    Raises:
        UserError: no such component; names the nearest one.
    """
    if name not in names(kind):
        raise UserError(unknown(kind, name, names(kind)))
    tree = ast.parse((_folder(kind) / f"{name}.py").read_text(encoding="utf-8"))
    entry = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == KINDS[kind][1])
    parameters = {
        arg.arg: (_annotation(arg), ... if default is None else ast.literal_eval(default))
        for arg, default in zip(entry.args.kwonlyargs, entry.args.kw_defaults, strict=True)
    }
    written = {arg.arg: _readable(arg.annotation) for arg in entry.args.kwonlyargs if arg.annotation}
    summary = (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ")
    return Component(kind, name, summary, parameters, written, _constants(tree))


@cache
def arguments(kind: str, name: str) -> type[Arguments]:
    """Return the pydantic model of what a study may set on a component: types, bounds and defaults of its signature."""
    fields: dict[str, Any] = describe(kind, name).parameters
    return create_model(f"{name} ({kind})", __base__=Arguments, **fields)


def parts(model: str, part: str) -> list[str]:
    """Return the components that a model takes as a part of it, a key of PARTS; its default first.

    A model names its default, `PRIOR = "conv"`, and takes all that are for the same features, `FEATURES = "maps"`, but
    for those that it names in `NO_PRIOR`.
    """
    constants, kind = describe("model", model).constants, PARTS[part]
    default = constants.get(part.upper())
    if default is None:
        return []
    same, without = _features(kind, default), {default, *constants.get(f"NO_{part.upper()}", [])}
    return [default, *(name for name in names(kind) if name not in without and _features(kind, name) == same)]


def entry(kind: str, name: str) -> Callable[..., Any]:
    """Import a component and return its entry function.

    Raises:
        UserError: no such component.
    """
    return getattr(module(kind, name), KINDS[kind][1])  # type: ignore[no-any-return]


def module(kind: str, name: str) -> types.ModuleType:
    """Import the module of a component, raising UserError where there is none."""
    describe(kind, name)
    return importlib.import_module(f"equitune.{KINDS[kind][0]}.{name}")


def group(name: str) -> types.ModuleType:
    """Import the module of a group of symmetries, which is a file of equitune/groups."""
    return importlib.import_module(f"equitune.groups.{name}")


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """Return the sentence for a name that does not exist: the nearest known one, and all of them."""
    known, name = list(known), shortened(str(name))
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    guess = f"did you mean '{nearest[0]}'? " if nearest else ""
    return f"unknown {what} '{name}': {guess}known: {', '.join(known) or 'none'}"


def shortened(text: str) -> str:
    """Cut a text within a sentence to a readable length."""
    return text if len(text) <= 60 else f"{text[:57]}..."


def _features(kind: str, name: str) -> Any:
    """Return what a prior is a prior of; None of a component that does not say."""
    return describe(kind, name).constants.get("FEATURES")


def _folder(kind: str) -> Path:
    return Path(__file__).parent / KINDS[kind][0]


def _annotation(arg: ast.arg) -> Any:
    if arg.annotation is None:
        raise TypeError(f"parameter '{arg.arg}' of a component needs an annotation")
    code = compile(ast.Expression(arg.annotation), "<annotation>", "eval")
    return eval(code, {"__builtins__": {}, **_ANNOTATIONS})  # noqa: S307 - our own source text, never a user's


_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def _readable(annotation: ast.expr) -> str:
    """`Annotated[int, Field(ge=1)]` as `int >= 1`, `Literal["a", "b"]` as `a | b`."""
    match annotation:
        case ast.Subscript(value=ast.Name(id="Literal"), slice=options):
            return " | ".join(str(ast.literal_eval(option)) for option in getattr(options, "elts", [options]))
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[kind, ast.Call(keywords=bounds)])):
            said = [f"{_BOUNDS[bound.arg or '']} {ast.unparse(bound.value)}" for bound in bounds]
            return f"{ast.unparse(kind)} {', '.join(said)}"
    return ast.unparse(annotation)


def _constants(tree: ast.Module) -> dict[str, Any]:
    found = {}
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(target, ast.Name) and target.id.isupper():
            try:
                found[target.id] = ast.literal_eval(node.value or ast.Constant(None))
            except ValueError:
                continue  # computed, hence not part of the declaration
    return found

"""The house: imports point down, a room's private names stay in it, each library has its door."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import equitune

PACKAGE = Path(equitune.__file__).parent

# From the top. A room may import from the rooms below its own layer, never from those beside it.
LAYERS = [
    {"__main__"},
    {"cli", "notebook"},
    {"driver", "remote", "report", "tracking"},
    {"preflight"},
    {"search"},
    {"training", "measuring"},
    {"networks", "analysis"},
    {"models", "priors", "downsamplers", "augmentations", "averagings", "datasets", "measures"},  # components only
    {"evaluation", "importing"},
    {"layers", "data"},
    {"groups", "records"},
    {"results"},
    {"config"},
    {"catalog"},
    {"background", "errors", "interrupts"},
    {"printable"},
    {""},  # the package itself
    {"torchvision_mend"},
]
# Library: the rooms and modules that may import it.
DOORS = {
    "ray": {"driver", "remote"},
    "optuna": {"search", "analysis.importance", "preflight.plan", "driver.log", "driver.session"},
    "psycopg2": {"search.postgres"},
    "sqlalchemy": {"search.postgres"},
    "mlflow": {"tracking"},
    "yaml": {"config.load"},
    "matplotlib": {"report", "notebook"},
    "plotly": {"report", "notebook"},
    "jinja2": {"report"},
    "rich": {"report", "cli"},
    "click": {"cli"},
    "fsspec": {"data.cache", "records.place"},
    "timm": {"models"},
    "torchvision": {"data", "models"},
    "torch": {
        "torchvision_mend",
        "groups",
        "data",
        "layers",
        "evaluation",
        "importing",
        "models",
        "priors",
        "downsamplers",
        "augmentations",
        "averagings",
        "measures",
        "networks",
        "training",
        "measuring",
    },
}
# Own modules that are imported inside a function, outside cli, with the reason.
DEFERRED = {
    ("__main__", "cli"): "a Ctrl-C is obeyed while the rest is imported",
    ("driver.run_study", "driver.session"): "torch, Optuna and Ray take seconds, and the user is told something first",
    ("driver.run_study", "search.storage"): "Optuna: only a study in an object store needs it so early",
    ("search.storage", "search.postgres"): "its driver is an extra that not everybody installs",
}
# Modules that import by a name that they compute: the catalogue, and the package's one lazy attribute.
BY_NAME = {"catalog", ""}


class Import(NamedTuple):
    """One own module, or one name of it, that a module imports."""

    target: str  # `search.engine`
    name: str  # `Engine`; nothing for the module itself
    is_deferred: bool


@cache
def modules() -> Mapping[str, str]:
    """The text of every module, by its name within the package."""
    found: dict[str, str] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path.read_text()
    return found


def room_of(module: str) -> str:
    return module.partition(".")[0]


def layer_of(room: str) -> int:
    return next(level for level, rooms in enumerate(LAYERS) if room in rooms)


@cache
def parsed(text: str) -> ast.Module:
    return ast.parse(text)


def own_imports(text: str, known: Iterable[str]) -> list[Import]:
    """Every own module that a text imports: at its top, for types alone, or inside a function."""
    return _own_imports(text, frozenset(known))


@cache
def _own_imports(text: str, names: frozenset[str]) -> list[Import]:
    return list(_each_own_import(parsed(text), names))


def _each_own_import(tree: ast.Module, names: frozenset[str]) -> Iterator[Import]:
    inside = {id(node) for call in ast.walk(tree) if isinstance(call, FUNCTIONS) for node in ast.walk(call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if room_of(alias.name) == "equitune":
                    yield Import(alias.name.partition(".")[2], "", id(node) in inside)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            if room_of(node.module or "") != "equitune":
                continue
            base = (node.module or "").partition(".")[2]
            for alias in node.names:
                full = f"{base}.{alias.name}".strip(".")
                yield Import(*((full, "") if full in names else (base, alias.name)), id(node) in inside)


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def libraries(text: str) -> Iterator[str]:
    for node in ast.walk(parsed(text)):
        if isinstance(node, ast.Import):
            yield from (room_of(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield room_of(node.module or "")


def upward(texts: Mapping[str, str]) -> list[str]:
    """Imports of rooms that are not below."""
    return [
        f"{module} imports {each.target}, which is not below it"
        for module, text in texts.items()
        for each in own_imports(text, texts)
        if room_of(each.target) != room_of(module) and layer_of(room_of(each.target)) <= layer_of(room_of(module))
    ]


def trespassing(texts: Mapping[str, str]) -> list[str]:
    """Imports of another room's private modules and names."""
    return [
        f"{module} imports {each.target} {each.name}, which is private"
        for module, text in texts.items()
        for each in own_imports(text, texts)
        if room_of(each.target) != room_of(module)
        and any(part.startswith("_") and part != "__version__" for part in (*each.target.split("."), each.name))
    ]


def deferred(texts: Mapping[str, str]) -> set[tuple[str, str]]:
    """Own modules that are imported inside functions, outside cli."""
    return {
        (module, each.target)
        for module, text in texts.items()
        if room_of(module) != "cli"
        for each in own_imports(text, texts)
        if each.is_deferred
    }


def by_name(texts: Mapping[str, str]) -> set[str]:
    """Modules that import by a name that they compute."""
    return {
        module
        for module, text in texts.items()
        for node in ast.walk(parsed(text))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__", "exec", "eval")
        and "equitune" in ast.unparse(node)
    }


def past_doors(texts: Mapping[str, str]) -> list[str]:
    """Imports of libraries that have a door elsewhere."""
    return [
        f"{module} imports {library}: only {', '.join(sorted(DOORS[library]))} may"
        for module, text in texts.items()
        for library in libraries(text)
        if library in DOORS and not DOORS[library] & {module, room_of(module)}
    ]


def cycles(texts: Mapping[str, str]) -> list[list[str]]:
    """Modules that import each other, by whatever import."""
    edges = {module: {each.target for each in own_imports(text, texts)} - {module} for module, text in texts.items()}
    while leaves := [module for module, targets in edges.items() if not targets & edges.keys()]:
        for module in leaves:
            del edges[module]
    while roots := [module for module in edges if not any(module in targets for targets in edges.values())]:
        for module in roots:
            del edges[module]
    return [sorted(edges)] if edges else []


def test_imports_point_down() -> None:
    assert upward(modules()) == []


def test_private_names_stay_in_their_room() -> None:
    assert trespassing(modules()) == []


def test_own_modules_are_imported_at_the_top() -> None:
    assert deferred(modules()) == DEFERRED.keys()


def test_the_shell_defers_its_imports_and_they_are_few() -> None:
    """Help is instant, so a command imports what it needs; that is one import of each module, not a habit."""
    found = [each for module, text in modules().items() for each in statements(text) if room_of(module) == "cli"]
    assert len(found) <= 65


def statements(text: str) -> list[ast.ImportFrom]:
    """The statements inside functions that import own modules."""
    tree = parsed(text)
    inside = {id(node): node for call in ast.walk(tree) if isinstance(call, FUNCTIONS) for node in ast.walk(call)}
    return [
        node
        for node in inside.values()
        if isinstance(node, ast.ImportFrom) and room_of(node.module or "") == "equitune"
    ]


def test_no_modules_import_each_other() -> None:
    assert cycles(modules()) == []


def test_only_the_catalogue_imports_by_name() -> None:
    assert by_name(modules()) <= BY_NAME


def test_each_library_has_its_door() -> None:
    assert past_doors(modules()) == []


def test_files_stay_small() -> None:
    sizes = {name: len(text.splitlines()) for name, text in modules().items()}
    assert {name: size for name, size in sizes.items() if size > 350} == {}


TYPES_ONLY = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    "


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("config.study", "from equitune.training.run import run_trial"),
        ("models.resnet", "from equitune.priors.conv import build"),
        ("models.resnet", "from equitune.priors import conv"),
        ("search.engine", "import equitune.driver.session"),
        ("report.front", f"{TYPES_ONLY}from equitune.driver.run_study import run_study"),
        ("errors", "from equitune.catalog import names"),
        ("records.folder", "def read():\n    from equitune.search.engine import Engine"),
    ],
)
def test_an_import_that_points_up_is_seen(module: str, text: str) -> None:
    assert upward({**modules(), module: text})


@pytest.mark.parametrize(
    "text",
    ["from equitune.models._head import Head", "from equitune.models.resnet import _Block", "import equitune._x"],
)
def test_a_private_name_of_another_room_is_seen(text: str) -> None:
    assert trespassing({**modules(), "measuring.load": text})


def test_a_deferred_import_is_seen() -> None:
    added = {"search.budget": "def used():\n    from equitune.search.engine import Engine"}
    assert deferred({**modules(), **added}) - DEFERRED.keys() == {("search.budget", "search.engine")}


@pytest.mark.parametrize("how", ["", TYPES_ONLY, "def f():\n    "])
def test_modules_that_import_each_other_are_seen(how: str) -> None:
    texts = {
        "a.x": "from equitune.b.y import z",
        "b.y": f"{how}from equitune.a.x import w",
        "c": "from equitune.a import x",
    }
    assert cycles(texts) == [["a.x", "b.y"]]


@pytest.mark.parametrize(
    "call", ["importlib.import_module(f'equitune.groups.{name}')", "__import__('equitune.search')"]
)
def test_an_import_by_name_is_seen(call: str) -> None:
    assert "groups.element" in by_name({**modules(), "groups.element": f"found = {call}"})


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("analysis.pareto", "import torch"),
        ("search.engine", "def f():\n    import ray"),
        ("search.engine", "import torch"),
        ("config.study", f"{TYPES_ONLY}import torch"),
        ("config.load", "from ray import tune"),
    ],
)
def test_a_library_past_its_door_is_seen(module: str, text: str) -> None:
    assert past_doors({**modules(), module: text})


HEAVY = ("torch", "ray")


@pytest.mark.parametrize(("rooms", "are_free"), [(("config", "search"), True), (("networks",), False)])
def test_what_decides_needs_neither_torch_nor_ray(rooms: tuple[str, ...], are_free: bool) -> None:
    """Not even by what it imports; the networks are the broken twin."""
    wanted = [f"equitune.{module}" for module in modules() if room_of(module) in rooms]
    program = f"import importlib, sys\nfor name in {wanted}:\n    importlib.import_module(name)\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (not set(HEAVY) & set(done.stdout.split())) == are_free

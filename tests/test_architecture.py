"""The house: imports point down, rooms of one layer do not import each other, each library has its door."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "equitune"

# From the top; a room may import the rooms of the layers below its own.
LAYERS = [
    {"__main__"},
    {"cli", "notebook"},
    {"search", "report", "tracking"},
    {"trial", "analysis"},
    {"models", "priors", "downsamplers", "augmentations", "averagings", "datasets", "measures"},
    {"groups", "records"},
    {"spec"},
    {"background", "catalog", "errors", "interrupts", "printable", "torchvision_mend", ""},  # "": the package itself
]
# library -> the rooms that may import it.
DOORS = {
    "ray": {"search"},
    "optuna": {"search", "analysis.importance"},
    "psycopg2": {"search.postgres"},
    "sqlalchemy": {"search.postgres"},
    "mlflow": {"tracking"},
    "yaml": {"spec.load"},
    "matplotlib": {"report", "notebook"},
    "plotly": {"report", "notebook"},
    "jinja2": {"report"},
    "rich": {"report", "cli"},
    "click": {"cli"},
    "fsspec": {"datasets._cache", "records.place"},
    "timm": {"models"},
    "torchvision": {"datasets", "models"},
    "torch": {
        "torchvision_mend",
        "groups",
        "models",
        "priors",
        "downsamplers",
        "augmentations",
        "averagings",
        "measures",
        "trial",
        "search.trainable",
    },
}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or inside its functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(module: str) -> str:
    """`equitune.config.load` -> `spec`."""
    return ([*module.split("."), ""])[1]


def layer_of(room: str) -> int:
    return next(level for level, rooms in enumerate(LAYERS) if room in rooms)


def violations(name: str, path: Path) -> list[str]:
    """What a module imports that it must not."""
    own, found = room_of(name), []
    for imported in imports(path):
        if imported.split(".")[0] == "equitune":
            other = room_of(imported)
            if not any(other in rooms for rooms in LAYERS):
                continue  # a name within the package, such as __version__
            if other != own and layer_of(other) <= layer_of(own) and layer_of(own) < len(LAYERS) - 1:
                found.append(f"{name} imports {imported}, which is not below it")
        door = DOORS.get(imported.split(".")[0])
        allowed = {own, ".".join(name.split(".")[1:])}
        if door is not None and not door & allowed:
            found.append(f"{name} imports {imported}: only {', '.join(sorted(door))} may")
    return found


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found.append((".".join(part for part in parts if part != "__init__"), path))
    return found


def test_every_module_keeps_to_its_layer_and_its_doors() -> None:
    assert [line for name, path in modules() for line in violations(name, path)] == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("equitune.config.study", "from equitune.training.run import run_trial"),
        ("equitune.models.resnet", "from equitune.priors.conv import build"),
        ("equitune.analysis.pareto", "import torch"),
        ("equitune.training.epoch", "def f():\n    import ray"),
        ("equitune.report.front", "from equitune.driver.run_study import run_study"),
    ],
)
def test_a_broken_twin_is_caught(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(text)
    assert violations(name, path)


def test_files_stay_small() -> None:
    sizes = {name: len(path.read_text().splitlines()) for name, path in modules()}
    assert {name: size for name, size in sizes.items() if size > 350} == {}

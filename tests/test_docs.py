"""The documentation is read off the program, or is run."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from equitune.config.load import load_study

REPOSITORY = Path(__file__).parent.parent
DOCS = REPOSITORY / "docs"

TRIAL = """\
study: added
data: {name: stripes, images: 60}
model: {name: plain, depth: 2}
prior: separable
augmentation: {transpose: {probability: 0.3}}
training: {epochs: 1}
measures: [{name: equivariance, group: jigsaw}, {name: confidence, temperature: 2.0}]
objectives: {confidence: maximize}
"""
RUN_TRIAL = """\
from pathlib import Path
from equitune.data.splits import load_splits
from equitune.config.load import load_study
from equitune.data.on_device import to_device
from equitune.training.run import run_trial
spec = load_study(Path("study.yaml"), ())
config = spec.suggest(0, lambda name, distribution: None)
result = run_trial(config, to_device(load_splits(spec.data), "cpu"))
assert result.state == "COMPLETE", result
assert 0 < result.metrics["confidence"].value < 1
assert result.metrics["jigsaw_error"].value > 0
"""


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def test_generated_pages_are_what_the_program_says() -> None:
    for path, text in runpy.run_path(str(DOCS / "generate.py"))["texts"]().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is old: run `python docs/generate.py`"


@pytest.mark.parametrize("path", [REPOSITORY / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda path: path.name)
def test_every_study_in_the_text_is_valid_and_every_link_leads_somewhere(path: Path, tmp_path: Path) -> None:
    for text in blocks(path, "yaml"):
        (tmp_path / "study.yaml").write_text(text)
        load_study(tmp_path / "study.yaml", ())
    for target in re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (path.parent / target).exists(), target


@pytest.mark.slow
def test_the_examples_of_new_components_pass_their_conformance_suites(tmp_path: Path) -> None:
    for name in ("equitune", "tests"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    added = []
    for text in blocks(DOCS / "adding.md", "python"):
        path = tmp_path / text.splitlines()[0].removeprefix("# ")
        path.write_text(text.split("\n", 1)[1])
        added.append(path.stem)
    assert len(added) == 8
    (changes,) = blocks(DOCS / "adding.md", "diff")
    for name, change in re.findall(r"# (\S+)\n((?:[-+ ].*\n)+)", changes):
        path = tmp_path / name
        before, after = ("".join(re.findall(f"^[ {sign}](.*\n)", change, re.MULTILINE)) for sign in "-+")
        assert path.read_text().count(before) == 1, before
        path.write_text(path.read_text().replace(before, after))

    def run(*command: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    suites = [
        f"tests/test_{name}.py"
        for name in (
            "catalog",
            "datasets",
            "models",
            "downsamplers",
            "augmentations",
            "averagings",
            "measures",
            "groups",
        )
    ]
    ran = run("-m", "pytest", "-v", "-p", "no:cacheprovider", *suites, "-k", " or ".join(added))
    for name in added:
        assert re.search(rf"\[.*{name}.*\] PASSED", ran), f"no suite has taken {name} up"
    (tmp_path / "study.yaml").write_text(TRIAL)
    run("-c", RUN_TRIAL)


@pytest.mark.slow
def test_the_example_of_a_model_from_outside_is_exact_where_the_page_says(tmp_path: Path) -> None:
    (script,) = blocks(DOCS / "measures.md", "python")
    (tmp_path / "mine.py").write_text(script)
    (line,) = [line for block in blocks(DOCS / "measures.md", "sh") for line in block.splitlines() if "mine" in line]
    measure = ["-c", "from equitune.cli import main; main()", *line.split()[1:]]
    for command in (["mine.py"], measure):
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    exactness = "lattice set not exact from output on, substride set not exact from taps.max_pool2d on"
    assert exactness in done.stdout
    assert exactness in (DOCS / "measures.md").read_text(encoding="utf-8")

"""What the README tells a new user to type works, and ends as it says."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]


def run(line: str, folder: Path) -> str:
    """Runs a line with this environment's programs first in the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        shlex.split(line, comments=True), cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, line + done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_main_line_gives_a_front_and_every_other_command_follows(tmp_path: Path) -> None:
    """Without the installation, which CI itself does by the README's second line."""
    shutil.copytree(REPOSITORY / "searchspaces", tmp_path / "searchspaces")
    main, *others = [line for line in LINES if "equitune" in line]
    said = run(main.rsplit("&& .venv/bin/", 1)[1], tmp_path)
    assert "capacity: complete, 24 of 24 trials (24 COMPLETE)" in said
    study = json.loads(run("equitune show capacity --json", tmp_path))
    assert sum(trial["front"] for trial in study["trials"]) >= 4
    assert max(trial["metrics"]["accuracy"]["value"] for trial in study["trials"]) >= 0.97
    for name in ("front.png", "front.html", "front.csv"):
        assert (tmp_path / "studies" / "capacity" / name).exists()
    assert len(others) == 12
    for line in others:
        assert run(line, tmp_path)
    assert (tmp_path / "studies" / "capacity" / "report.html").stat().st_size > 1_000_000
    (example,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "report.md").read_text(), re.DOTALL)
    (tmp_path / "example.py").write_text(example)
    said = run("python example.py", tmp_path)
    assert "accuracy_stderr" in said
    assert (tmp_path / "hypervolume.png").stat().st_size > 0


def test_both_lines_of_set_up_begin_with_a_fresh_environment() -> None:
    setup = [line for line in LINES if "pip install" in line]
    assert len(setup) == 2
    for line in setup:
        assert line.startswith("python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt ")
    assert "grep -m 1 -F \"pip install -q -c constraints.txt -e '.[dev]'\"" in (REPOSITORY / ".ci" / "run").read_text()

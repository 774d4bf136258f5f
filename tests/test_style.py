"""The linter, the formatter and the type checker are satisfied."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check .", "mypy"])
def test_the_code_is_in_order(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command.split()], cwd=Path(__file__).parent.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr

"""What takes its time says so: on a terminal alone, and never in what is printed for good."""

import io
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from invented import invent
from rich.console import Console

from equitune.cli import cli
from equitune.cli.output import open_console
from equitune.config.study import StudySpec


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("command", [("analyze",), ("analyze", "--json"), ("report", "--format", "csv")])
def test_analysing_says_so_on_a_terminal(
    command: tuple[str, ...], is_terminal: bool, tmp_path: Path, small_spec: StudySpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    invent(tmp_path / "small", small_spec, 4)
    shown = io.StringIO()

    def opened(*, stderr: bool = False) -> Console:
        return Console(file=shown, force_terminal=is_terminal, width=200) if stderr else open_console()

    for module in ("analyze", "report"):
        monkeypatch.setattr(sys.modules[f"equitune.cli.{module}"], "open_console", opened)
    name, *options = command
    result = CliRunner().invoke(cli, [name, "small", "--root", str(tmp_path), *options])
    assert result.exit_code == 0, result.output
    assert ("analysing 4 trials ..." in shown.getvalue()) == is_terminal
    assert "analysing 4 trials" not in result.output
    if name == "report":
        assert ("drawing " in shown.getvalue()) == is_terminal

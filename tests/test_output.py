"""What others wrote is shown on the terminal and never acts there; the program's own colours stay."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from invented import invent

from equitune.cli import cli
from equitune.cli.output import echo_json, open_console
from equitune.config.study import StudySpec
from equitune.errors import StoreError, UserError
from equitune.printable import printable
from equitune.records.folder import StudyFolder, read_json, write_json

PACKAGE = Path(__file__).parent.parent / "equitune"
# A clipboard's content (OSC 52), a colour, a line written over, a bell, C1's own escape, text from right to left.
EVIL = "\x1b]52;c;ZXZpbA==\x07\x1b[31m\rred\x9b2J\u202eright\x7f\u2066"
ACTING = {chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))} - {"\n", "\t"} | set("\u202e\u2066")


def acting(text: str) -> set[str]:
    return set(text) & ACTING


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;x\x07", r"\x1b]0;x\x07"),
        ("\x9b2J", r"\x9b2J"),
        ("a\u202eb", r"a\u202eb"),
        ("50 %\rdone", r"50 %\rdone"),
        ("a line\r\n\tanother\n", "a line\r\n\tanother\n"),
        ("Größe ± 0.1 – 日本 é 🙂 \\x1b", "Größe ± 0.1 – 日本 é 🙂 \\x1b"),
        ("half \ud800", r"half \ud800"),
    ],
)
def test_what_acts_is_shown_as_text(text: str, shown: str) -> None:
    assert printable(text) == shown == printable(shown)


@pytest.mark.parametrize("error", [UserError(EVIL), StoreError(5, "away", f"s3://b/{EVIL}")])
def test_a_sentence_of_an_error_acts_on_nothing(error: Exception) -> None:
    assert acting(str(error)) == set()
    assert r"\x1b]52" in str(error)


@pytest.fixture
def evil(tmp_path: Path, small_spec: StudySpec) -> StudyFolder:
    """A study of a stranger, with controls wherever its records hold text."""
    folder = invent(tmp_path / "small", small_spec, 4, states={2: "FAILED"})
    write_json(folder.study, read_json(folder.study) | {"ended_by": f"trials {EVIL}"})
    result = read_json(folder.trial(2).result)
    write_json(folder.trial(2).result, result | {"reason": f"because {EVIL}"})
    for number in (0, 1):
        config, result = read_json(folder.trial(number).config), read_json(folder.trial(number).result)
        config["params"] |= {f"model.{EVIL}": f"[link=file:///etc/passwd]{EVIL}"}
        result["metrics"][f"metric {EVIL}"] = next(iter(result["metrics"].values()))
        write_json(folder.trial(number).config, config)
        write_json(folder.trial(number).result, result)
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ["show", "small"],
        ["show", "small/2"],
        ["show", "small/0"],
        ["watch", "small"],
        ["list"],
        ["analyze", "small"],
        ["show", f"no{EVIL}"],
        ["show", "small", "--metric", EVIL],
    ],
    ids=lambda command: "-".join(command)[:20].encode("unicode_escape").decode(),
)
def test_no_command_lets_a_record_act_on_the_terminal(command: list[str], evil: StudyFolder) -> None:
    done = CliRunner().invoke(cli, [*command, "--root", str(evil.path.parent)])
    assert done.exception is None or isinstance(done.exception, UserError | SystemExit), done.exception
    said = done.output + str(done.exception or "")
    assert acting(said) == set()
    if command in (["show", "small/2"], ["show", f"no{EVIL}"]):
        assert r"\x1b]52;c;" in said.replace("\n", "")


def test_json_stays_json_with_every_letter(evil: StudyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    done = CliRunner().invoke(cli, ["show", "small", "--json", "--root", str(evil.path.parent)])
    assert acting(done.output) == set()
    assert json.loads(done.output)["trials"][2]["reason"] == f"because {EVIL}"
    echo_json({"key": EVIL})
    assert json.loads(capsys.readouterr().out) == {"key": EVIL}


def test_a_console_keeps_its_own_colours_and_reads_no_markup(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.table import Table
    from rich.text import Text

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    console = open_console()
    console.print(Text("bold", style="bold"))
    table = Table("[link=http://evil.example]name", EVIL)
    table.add_row("[red]x", EVIL)
    console.print(table)
    console.print(EVIL)
    printed = capsys.readouterr().out
    assert "\x1b[1mbold\x1b[0m" in printed
    assert "[red]x" in printed
    assert not any(sign in printed for sign in ("\x1b]", "\x1b[31m", "\x07", "\x9b", "\u202e"))
    assert r"\x1b]52" in printed.replace("\n", "")


def bare(source: str) -> Iterator[str]:
    """The calls of a source text that print around the door."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            last = called.rpartition(".")[2]
            if called in ("print", "click.echo", "click.secho", "click.echo_via_pager") or last == "Console":
                yield called
            if called.endswith((".stdout.write", ".stderr.write")) or called in ("rich.print", "from_markup"):
                yield called
        if isinstance(node, ast.ImportFrom) and node.module in ("click", "rich"):
            yield from (alias.name for alias in node.names if alias.name in ("echo", "secho", "print"))


def test_nothing_prints_around_the_door() -> None:
    files = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "cli/output.py"]
    assert len(files) > 100
    assert {(path.name, call) for path in files for call in bare(path.read_text(encoding="utf-8"))} == set()


@pytest.mark.parametrize(
    "line",
    ["print(x)", "click.echo(x)", "from click import echo", "console = Console()", "sys.stderr.write(x)"],
)
def test_a_line_that_prints_around_the_door_would_be_found(line: str) -> None:
    assert len(list(bare(line))) == 1


@pytest.mark.parametrize("text", [EVIL, "trial 3 of 8: accuracy 0.91 ± 0.01\n"])
def test_a_jobs_log_acts_on_nothing_and_stays_readable(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    from equitune.cli import cluster

    class Done:
        id, status, exit_code, message, has_ended = "small@1", "SUCCEEDED", 0, "", True

    class Connection:
        url = "http://cluster"

        def job(self, name: str) -> Any:
            return Done()

        def log(self, job: Any) -> str:
            return text

    with pytest.raises(SystemExit):
        cluster.follow(Connection(), Done(), "")  # type: ignore[arg-type]
    printed = capsys.readouterr().out
    assert acting(printed) == set()
    assert printed == (text if text != EVIL else printable(EVIL))

"""Generated bad input, 2,000 cases and more: no traceback, no hang, exit code 2 with a place, nothing half written.

The seed is printed. `EQUITUNE_FUZZ_SEED=N` sets it, `EQUITUNE_FUZZ_CASES=20000` runs more, and
`EQUITUNE_FUZZ_ONLY=studies/17` runs one case alone, which every failure names.
"""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from fuzz.areas import AREAS, shares
from fuzz.case import Case, Outcome, complaints, snapshot
from fuzz.pool import Report, run_cases

from equitune.errors import UserError

SEED = int(os.environ.get("EQUITUNE_FUZZ_SEED", "20261201"))
NUM_CASES = int(os.environ.get("EQUITUNE_FUZZ_CASES", "2000"))
ONLY = os.environ.get("EQUITUNE_FUZZ_ONLY")


def failures(reports: list[Report]) -> str:
    """Say of each failed case what is wrong and how to run it alone."""
    again = f"EQUITUNE_FUZZ_SEED={SEED} EQUITUNE_FUZZ_ONLY={{}} pytest -m slow tests/test_fuzz.py"
    return "\n".join(
        f"{report}\n    again: {again.format(f'{report.area}/{report.index}')}\n{report.err[-1500:]}"
        for report in reports
        if report.wrong
    )


@pytest.mark.slow
def test_bad_input_ends_in_a_sentence_with_a_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = [(area, index) for area, number in shares(NUM_CASES).items() for index in range(number)]
    if ONLY:
        area, _, index = ONLY.partition("/")
        cases = [(area, int(index))]
    with capsys.disabled():
        print(f"\nfuzz: {len(cases)} cases of seed {SEED}")
    assert ONLY or len(cases) >= 2000
    reports = run_cases(cases, SEED, tmp_path)
    assert len(reports) == len(cases)
    wrong = failures(reports)
    assert not wrong, wrong
    if not ONLY:
        refused = [report for report in reports if report.code == 2]
        assert len(refused) > len(cases) / 2, "most of the input is good: these generators test nothing"
        assert {report.area for report in refused} == set(AREAS)
        assert max(report.peak_mib for report in reports) < 4096


@pytest.mark.parametrize("area", AREAS)
def test_a_case_is_the_same_each_time(area: str, tmp_path: Path) -> None:
    """What a failure names can be run again."""
    made = []
    for number in range(2):
        place = tmp_path / str(number) / "case"
        (place / "outside").mkdir(parents=True)
        case = AREAS[area](random.Random(f"{SEED}/{area}/7"), place)
        what = {path.removeprefix(str(place)): kind for path, kind in snapshot(place).items()}
        named = {path for path, kind in what.items() if str(place) not in kind}
        made.append(([word.replace(str(place), "") for word in case.words], named))
    assert made[0] == made[1]


# The broken twins: what each check must catch.


@click.command()
@click.argument("how")
@click.argument("place", type=click.Path(path_type=Path))
def broken(how: str, place: Path) -> None:
    """Do what no command may."""
    match how:
        case "raises":
            raise ValueError("a bug")
        case "prints":
            click.echo('Traceback (most recent call last):\n  File "x"', err=True)
        case "hangs":
            while True:
                pass
        case "dies":
            os.abort()
        case "says nothing":
            raise UserError("something is wrong")
        case "writes":
            (place / "outside" / "victim.txt").write_text("touched")
        case "leaves":
            Path("half").write_text("half")
            raise UserError(f"{place} is wrong")
        case "runs":
            (place / "canary").touch()
        case "ends oddly":
            sys.exit(3)
        case "is good":
            raise UserError(f"{place} is wrong: mend it")


CAUGHT = {
    "raises": "a traceback: ValueError: a bug",
    "prints": "a traceback",
    "hangs": "hangs for more than",
    "dies": "the process dies",
    "says nothing": "a refusal without a place",
    "writes": "written although nothing may be",
    "leaves": "written although nothing may be",
    "runs": "code of the input was run",
    "ends oddly": "exit code 3",
    "is good": "",
}


@pytest.mark.slow
def test_the_harness_catches_each_broken_command(tmp_path: Path) -> None:
    reports = run_cases([("broken", index) for index in range(len(CAUGHT))], SEED, tmp_path, workers=1, limit_s=4)
    for report, (how, wrong) in zip(reports, CAUGHT.items(), strict=True):
        assert wrong in "; ".join(report.wrong), how
        assert bool(report.wrong) == bool(wrong), (how, report)
    hung = next(report for report in reports if "hangs" in str(report))
    assert "test_fuzz" in hung.err, "where it hung is said"
    assert "EQUITUNE_FUZZ_ONLY=broken/0 " in failures(reports)


def a_broken_command(rng: random.Random, place: Path) -> Case:
    """The generator of the twins: which one is the case's own number."""
    import equitune.cli

    index = int(place.parent.name.rpartition("-")[2])
    equitune.cli.cli.add_command(broken)
    return Case(["broken", list(CAUGHT)[index], str(place)], [str(place)], canary=place / "canary")


def test_a_refusal_of_great_length_is_caught(tmp_path: Path) -> None:
    case = Case(["check", "x.yaml"], ["x.yaml"])
    assert complaints(case, Outcome(2, "", "x.yaml: no" + "!" * 30_000), {}, {})
    assert not complaints(case, Outcome(2, "", "x.yaml: no"), {}, {})


PROGRAM: list[tuple[str, Callable[[Path], list[str]]]] = [
    ("a name that no file system has", lambda place: ["show", "a" * 300, "--root", str(place)]),
    ("a surrogate as a key", lambda place: ["check", written(place, 'study: s\nmodel: cnn\nobjectives: {"\\ud800": maximize}\n')]),
    ("a depth without end", lambda place: ["check", written(place, "study: s\nmodel: {name: resnet, depth: 2147483648, width: 8}\nobjectives: {accuracy: maximize}\n")]),
    ("a file without an end", lambda place: ["check", "/dev/zero"]),
    ("bytes that are no text", lambda place: ["show", os.fsdecode(b"\xff\xfe"), "--root", str(place)]),
]  # fmt: skip


def written(place: Path, text: str) -> str:
    (place / "study.yaml").write_text(text, encoding="utf-8")
    return str(place / "study.yaml")


@pytest.mark.slow
@pytest.mark.parametrize(("what", "words"), PROGRAM, ids=[what for what, _ in PROGRAM])
def test_the_real_program_refuses(what: str, words: Callable[[Path], list[str]], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "equitune", *words(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(command, capture_output=True, timeout=120, cwd=tmp_path, env=environment)
    assert done.returncode == 2, done.stderr
    assert b"Traceback" not in done.stderr
    assert 0 < len(done.stderr) < 5000

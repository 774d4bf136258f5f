"""The studies that come with the package, by name: `capacity`, `reproduce/relaxing_turns`."""

from pathlib import Path

FOLDER = Path(__file__).parent.parent / "searchspaces"


def shipped_names() -> list[str]:
    """Return the names of the studies that come with the package, in order."""
    return sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml"))


def find_study_file(given: Path) -> Path:
    """Return the file that a user means: a file of theirs, else the shipped study of that name, else what was given."""
    name = given.as_posix()
    return FOLDER / f"{name}.yaml" if name in shipped_names() and not given.exists() else given


def read_question(name: str) -> str:
    """Return the question that a shipped study asks: the first lines of its file."""
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    first = next(at for at, line in enumerate(lines) if line.startswith("# Question:"))
    last = next(at for at in range(first + 1, len(lines)) if not lines[at].startswith("#  "))
    return " ".join(line.removeprefix("# Question:").removeprefix("#").strip() for line in lines[first:last])

"""Which revision of the program this is, where it lies in a git repository."""

import contextlib
import functools
import subprocess
from pathlib import Path


@functools.cache
def revision() -> str | None:
    """Return the commit, `-dirty` where files were changed since; None of an installed copy."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=5,
        )
        return described.stdout.strip()
    return None

"""The areas of the suite, each with its generator and its share of the cases."""

import math

from fuzz import archives, commands, files, folders, studies
from fuzz.case import Make

AREAS: dict[str, Make] = {
    "studies": studies.make,
    "arguments": studies.argument,
    "odd_files": studies.odd_file,
    "commands": commands.make,
    "folders": folders.make,
    "archives": archives.make,
    "weights": files.weights,
    "programs": files.programs,
    "images": files.images,
}
_SHARES = {  # of a thousand cases; those that measure take longest
    "studies": 400,
    "arguments": 200,
    "odd_files": 10,
    "commands": 140,
    "folders": 130,
    "archives": 50,
    "weights": 25,
    "programs": 25,
    "images": 20,
}


def shares(num_cases: int) -> dict[str, int]:
    """Return how many cases each area has, of so many."""
    return {area: math.ceil(num_cases * share / sum(_SHARES.values())) for area, share in _SHARES.items()}

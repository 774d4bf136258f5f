"""The areas of the suite, each with its generator and its share of the cases."""

from fuzz import commands, studies
from fuzz.case import Make

AREAS: dict[str, Make] = {
    "studies": studies.make,
    "arguments": studies.argument,
    "odd_files": studies.odd_file,
    "commands": commands.make,
}
SHARES = {"studies": 0.35, "arguments": 0.2, "odd_files": 0.01, "commands": 0.2}  # of all cases

"""Writes the locks of both images, for Linux on x86-64 and Python 3.11: `python deploy/images/lock.py`, with `uv`.

What a trial needs is locked twice, with torch for CPUs and with torch for CUDA. What both have in common is
trial/common.lock, the rest trial/cpu.lock and trial/cuda.lock. The versions are those of constraints.txt.
"""

import re
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent
CPU_TORCH = "https://download.pytorch.org/whl/cpu"
PLATFORM = ["--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28", "--only-binary", ":all:"]
PROGRAM = [str(REPOSITORY / "pyproject.toml"), "--extra", "postgres", "--extra", "s3"]
PROGRAM += ["--constraint", str(REPOSITORY / "constraints.txt")]
COMMENT = "# written by deploy/images/lock.py\n"


def locked(*arguments: str) -> list[str]:
    """Return the pinned requirements, each with its hashes."""
    command = ["uv", "pip", "compile", "--quiet", "--generate-hashes", "--no-header", "--no-annotate", *PLATFORM]
    text = subprocess.run([*command, *arguments], check=True, capture_output=True, text=True).stdout
    return re.findall(r"^[a-z].*(?:\n .*)*", text, re.MULTILINE)


def write(name: str, requirements: list[str]) -> None:
    (HERE / name).write_text(COMMENT + "\n".join(requirements) + "\n", encoding="utf-8")


def main() -> None:
    write("mlflow/mlflow.lock", locked(str(HERE / "mlflow/mlflow.in")))
    cuda = locked(str(HERE / "trial/trial.in"), *PROGRAM)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as pins:
        pins.write("\n".join(line for line in cuda_pins(cuda)) + "\ntorch==2.13.0+cpu\n")
        pins.flush()
        find = ["--find-links", CPU_TORCH + "/torch/", "--constraint", pins.name]
        cpu = locked(str(HERE / "trial/trial.in"), *PROGRAM, *find)
    write("trial/common.lock", [line for line in cuda if line in cpu])
    write("trial/cuda.lock", [line for line in cuda if line not in cpu])
    write("trial/cpu.lock", [line for line in cpu if line not in cuda])


def cuda_pins(requirements: list[str]) -> list[str]:
    """Return the versions of all but torch, so that both locks agree."""
    pins = [requirement.split(" ")[0] for requirement in requirements]
    return [pin for pin in pins if not pin.startswith("torch==")]


if __name__ == "__main__":
    main()

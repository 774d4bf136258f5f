"""What some tests need of the machine they run on. Where it is missing they are skipped aloud: each skip says what is
missing and what stays unproved. `EQUITUNE_REQUIRE=kustomize,netns` turns the skips for want of these into failures.
"""

import functools
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import loop_disk
import pytest

CRDS = Path(
    os.environ.get("EQUITUNE_CRD_DIR", Path(__file__).parent.parent.parent / "shared" / "crds" / "kuberay-v1.7.0")
)
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def require(name: str) -> None:
    """Skips the test that asks where the machine lacks what is named; fails it where EQUITUNE_REQUIRE names that."""
    missing, unproved = KNOWN[name]
    if what := missing():
        absent(name, f"{what}: {unproved} stays unproved")


def absent(name: str, sentence: str) -> NoReturn:
    """Skips or fails, as `require` does, for something that was looked for elsewhere."""
    required = set(filter(None, os.environ.get("EQUITUNE_REQUIRE", "").split(",")))
    if unknown := required - set(KNOWN):
        pytest.fail(f"EQUITUNE_REQUIRE names {', '.join(sorted(unknown))}, but known are {', '.join(sorted(KNOWN))}")
    if name in required:
        pytest.fail(sentence)
    pytest.skip(sentence)


@functools.cache
def renderer() -> list[str]:
    """The command that renders manifests: kustomize 5 or later, alone or within kubectl; empty where there is none."""
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    if shutil.which("kubectl"):
        said = subprocess.run(["kubectl", "version", "--client", "-o", "json"], capture_output=True, text=True).stdout
        if said and json.loads(said).get("kustomizeVersion", "v0") >= "v5":
            return ["kubectl", "kustomize"]
    return []


@functools.cache
def _namespaces() -> str:
    """Why this machine cannot hold hosts as namespaces; one is made and taken away to know."""
    if os.geteuid() != 0:
        return "not run as root"
    if missing := [program for program in ("ip", "unshare", "nsenter", "curl") if not shutil.which(program)]:
        return f"no {' and no '.join(missing)} on this machine"
    name = f"eq-try-{os.getpid()}"
    within = ["ip", "netns", "exec", name, "unshare", "-pmuf", "--mount-proc", "--kill-child", "true"]
    tried = [
        subprocess.run(command, capture_output=True).returncode == 0
        for command in (["ip", "netns", "add", name], within, ["ip", "netns", "delete", name])
    ]
    return "" if all(tried) else "network and process namespaces cannot be made here"


def _program(*names: str) -> Callable[[], str]:
    return lambda: "" if any(map(shutil.which, names)) else f"no {names[0]} on this machine"


# What is looked for, and what is not shown without it.
KNOWN: dict[str, tuple[Callable[[], str], str]] = {
    "chromium": (
        _program(*CHROMIUM),
        "that a page looks and acts in a browser as it should",
    ),
    "crds": (
        lambda: "" if CRDS.is_dir() else f"no {CRDS} (EQUITUNE_CRD_DIR names another)",
        "that deploy/ fits KubeRay's schema",
    ),
    "kustomize": (
        lambda: "" if renderer() else "no kustomize 5 and no kubectl that has it",
        "what deploy/ renders to",
    ),
    "loop": (functools.cache(loop_disk.why_not), "that a study survives a power cut"),
    "netns": (_namespaces, "what happens to a study when a whole host is lost"),
    "redis": (_program("redis-server"), "that Redis takes the manifest's file and refuses who has no password"),
}

"""What deploy/README.md and deploy/RUNBOOK.md tell to type exists: files, Secrets and keys, objects, commands."""

import re

import pytest
import yaml
from manifests import DEPLOY, OVERLAYS, REPOSITORY, name, rendered

from equitune.cli import cli

PAGES = ("README.md", "RUNBOOK.md")
PLACEHOLDERS = {"job/mlflow-db-upgrade-NEW-VERSION"}


def read(page: str) -> str:
    return (DEPLOY / page).read_text(encoding="utf-8")


def missing_files(text: str) -> list[str]:
    named = set(re.findall(r"(?<![\w/])deploy/[\w./-]*\w", text)) | set(
        re.findall(r"`((?:base|components|overlays|images)/[\w./-]*)`", text)
    )
    return [path for path in named if not (REPOSITORY / path).exists() and not (DEPLOY / path).exists()]


def unknown_commands(text: str) -> list[str]:
    shown = "\n".join(re.findall(r"`+[^`]+`+", text))
    return [
        command for command in re.findall(r"(?:bin/|`|-- |\n)equitune ([a-z]+)", shown) if command not in cli.commands
    ]


@pytest.mark.parametrize("page", PAGES)
def test_the_files_that_a_page_names_are_there(page: str) -> None:
    assert missing_files(read(page)) == []
    assert missing_files("see deploy/overlays/test and `images/other`") != []


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_that_a_page_names_exist(page: str) -> None:
    assert unknown_commands(read(page)) == []
    assert unknown_commands("type `equitune send FILE`, or\n```bash\nequitune post FILE\n```") == ["send", "post"]


def test_the_readme_makes_every_secret_and_every_key() -> None:
    made = re.findall(r"\$S/([a-z0-9-]+)/([\w.-]+)", read("README.md"))
    for secret in yaml.safe_load_all(read("secrets.example.yaml")):
        assert {key for of, key in made if of == secret["metadata"]["name"]} == set(secret["stringData"])
        assert re.search(rf"mkdir .*\b{secret['metadata']['name']}\b", read("README.md"))


@pytest.mark.parametrize("page", PAGES)
def test_the_objects_that_a_page_waits_for_are_rendered(page: str) -> None:
    there = {name(manifest).lower() for overlay in OVERLAYS for manifest in rendered(overlay)}
    named = re.findall(r"(?<![\w/-])((?:job|deployment|raycluster|statefulset|pvc)/[\w.-]+)", read(page))
    assert {it for it in named if it not in there | PLACEHOLDERS} == set()

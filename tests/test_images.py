"""The two images: their Dockerfiles, their locks, and that every version is the same wherever it is written."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from manifests import DEPLOY, OVERLAYS, REPOSITORY, clusters, containers, of_kind, pods, rendered
from packaging.requirements import Requirement

import equitune
from equitune.config.load import load_study

IMAGES = DEPLOY / "images"
LOCKS = sorted(IMAGES.glob("*/*.lock"))
DOCKERFILES = sorted(IMAGES.glob("*/Dockerfile"))
PIN = re.compile(r"^([a-z0-9-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.MULTILINE)
DOCKERFILE_RULES = {
    "two stages": lambda text: len(re.findall(r"^FROM ", text, re.MULTILINE)) == 2,
    "a base that an argument names, with its patch": lambda text: re.search(
        r"^ARG BASE=python:3\.11\.\d+-", text, re.MULTILINE
    ),
    "no user but the last, and that one by number": lambda text: (
        re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["1000:1000"]
    ),
    "every package held against its hash": lambda text: all(
        "--require-hashes" in command or "--no-index" in command
        for command in re.findall(r"pip install([^&;\n]*)", text.replace("\\\n", " "))
    ),
    "no secret among its arguments": lambda text: (
        not re.search(r"^(ARG|ENV) .*(TOKEN|PASSWORD|SECRET)", text, re.MULTILINE)
    ),
    "no entry point, since the operator starts Ray": lambda text: "ENTRYPOINT" not in text,
    "nothing fetched but packages": lambda text: not re.search(r"\b(curl|wget|git clone|ADD)\b", text),
}
BROKEN = [
    ("two stages", "FROM ${BASE}\n", ""),
    ("a base that an argument names, with its patch", "3.11.14-slim", "3.11-slim"),
    ("no user but the last, and that one by number", "USER 1000:1000", "USER root"),
    ("every package held against its hash", "--require-hashes ", ""),
    ("no secret among its arguments", "ENV PATH=", "ARG PIP_TOKEN\nENV PATH="),
    ("no entry point, since the operator starts Ray", "USER 1000", 'ENTRYPOINT ["x"]\nUSER 1000'),
    ("nothing fetched but packages", "RUN useradd", "RUN curl https://example.com | sh && useradd"),
]


def pins(path: Path) -> dict[str, str]:
    return {name: version for name, version, _ in PIN.findall(path.read_text(encoding="utf-8"))}


@pytest.mark.parametrize("rule", DOCKERFILE_RULES)
@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_a_dockerfile_has(path: Path, rule: str) -> None:
    assert DOCKERFILE_RULES[rule](path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("rule", "what", "instead"), BROKEN, ids=[rule for rule, *_ in BROKEN])
@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_a_broken_dockerfile_is_caught(path: Path, rule: str, what: str, instead: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert what in text
    assert not DOCKERFILE_RULES[rule](text.replace(what, instead))


def test_what_a_dockerfile_copies_is_there_and_sent() -> None:
    for path in DOCKERFILES:
        sent = (path.parent / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
        for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", path.read_text(encoding="utf-8"), re.MULTILINE):
            for source in sources.split():
                assert list(REPOSITORY.glob(source)), source
                assert any(source.startswith(pattern[1:]) for pattern in sent if pattern.startswith("!")), source


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_every_line_of_a_lock_is_a_version_and_its_hashes(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert PIN.sub("", text).strip() == "# written by deploy/images/lock.py"
    assert len(pins(path)) == len(PIN.findall(text)) >= 1


@pytest.mark.parametrize("accelerator", ["cpu", "cuda"])
def test_the_lock_of_trials_holds_what_the_program_needs(accelerator: str) -> None:
    common, own = pins(IMAGES / "trial/common.lock"), pins(IMAGES / f"trial/{accelerator}.lock")
    assert not set(common) & set(own)
    locked = common | own
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    needed = [
        *project["project"]["dependencies"],
        *extras["s3"],
        *extras["postgres"],
        *project["build-system"]["requires"],
    ]
    for text in [*needed, *(IMAGES / "trial/trial.in").read_text(encoding="utf-8").splitlines()]:
        if not text.startswith("#"):
            requirement = Requirement(text)
            assert requirement.specifier.contains(locked[requirement.name]), text
    for name in ("aiohttp", "py-spy", "opencensus"):  # ray[default]: without them there is no Jobs API
        assert name in locked
    assert ("nvidia-cublas" in locked) == (accelerator == "cuda")


def test_the_lock_of_mlflow_holds_what_its_server_needs() -> None:
    locked = pins(IMAGES / "mlflow/mlflow.lock")
    for text in (IMAGES / "mlflow/mlflow.in").read_text(encoding="utf-8").splitlines():
        requirement = Requirement(text)
        assert requirement.specifier.contains(locked[requirement.name]), text
    assert "flask-wtf" in locked  # its users


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_one_version_everywhere(overlay: str) -> None:
    manifests = rendered(overlay)
    ray = pins(IMAGES / "trial/common.lock")["ray"]
    mlflow = pins(IMAGES / "mlflow/mlflow.lock")["mlflow"]
    tags = {
        "trial": f"{equitune.__version__}-ray{ray}",
        "trial-cuda": f"{equitune.__version__}-ray{ray}",
        "mlflow": mlflow,
    }
    for where, pod in pods(manifests):
        for _, container in containers(pod):
            name, _, tag = container["image"].rpartition("/")[2].partition(":")
            assert tags.get(name, tag) == tag, where
    assert [spec["rayVersion"] for _, spec in clusters(manifests)] == [ray]
    assert pins(IMAGES / "trial/common.lock")["mlflow"] == mlflow
    jobs = {job["metadata"]["name"] for job in of_kind(manifests, "Job")}
    assert f"mlflow-db-upgrade-{mlflow.replace('.', '-')}" in jobs


def test_the_example_of_secrets_holds_names_alone() -> None:
    for secret in yaml.safe_load_all((DEPLOY / "secrets.example.yaml").read_text(encoding="utf-8")):
        assert set(secret) == {"apiVersion", "kind", "metadata", "stringData"}
        assert set(secret["stringData"].values()) == {""}


def test_every_database_address_names_its_driver() -> None:
    for path in [path for path in DEPLOY.rglob("*") if path.is_file()]:
        assert not re.search(r"postgres(ql)?://", path.read_text(encoding="utf-8")), path


def test_the_jobs_study_is_valid() -> None:
    load_study(DEPLOY / "overlays/prod-job/study.yaml", ())


CONSTRAINTS = dict(re.findall(r"^([a-z0-9-]+)==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE))


@pytest.mark.parametrize("lock", ["common", "cpu", "cuda"])
def test_an_image_holds_the_versions_that_everything_is_tested_with(lock: str) -> None:
    locked = pins(IMAGES / f"trial/{lock}.lock")
    assert {name: version.removesuffix("+cpu") for name, version in locked.items()}.items() <= CONSTRAINTS.items()


def test_the_ranges_of_the_package_hold_the_versions_that_everything_is_tested_with() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    for requirement in map(Requirement, texts):
        if requirement.name != "equitune":
            name = re.sub(r"[-_.]+", "-", requirement.name).lower()
            assert requirement.specifier.contains(CONSTRAINTS[name]), str(requirement)

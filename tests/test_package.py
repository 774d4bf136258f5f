"""What `pip install equitune` gives: wheel and sdist, built here and installed away from the clone."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
SHIPPED = {
    path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "equitune" / "searchspaces").rglob("*.yaml")
}
WANTED = {"equitune/cli/__init__.py", "equitune/report/page.html", *SHIPPED}


def run(*words: object, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "EQUITUNE"))}
    done = subprocess.run(list(map(str, words)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it: what is missing in the one is missing in both."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    names = ["pyproject.toml", "README.md", "LICENSE", "equitune"]
    ignored = ("--exclude=__pycache__", "--exclude=*.egg-info")
    run("tar", "-cf", source / "source.tar", *ignored, "-C", REPOSITORY, *names, cwd=source)
    run("tar", "-xf", source / "source.tar", cwd=source)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, cwd=source)
    return folder


@pytest.mark.slow
def test_sdist_and_wheel_hold_the_studies_and_the_page(dist: Path) -> None:
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    assert set(zipfile.ZipFile(wheel).namelist()) >= WANTED
    with tarfile.open(sdist) as archive:
        assert {name.partition("/")[2] for name in archive.getnames()} >= WANTED


@pytest.mark.slow
def test_an_installed_wheel_searches_a_shipped_study_by_its_name(dist: Path, tmp_path: Path) -> None:
    """The packages that it needs are this environment's: no network is asked for them."""
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python, program = tmp_path / "venv/bin/python", tmp_path / "venv/bin/equitune"
    run(python, "-m", "pip", "install", "-q", "--no-index", "--no-deps", *dist.glob("*.whl"), cwd=tmp_path)
    (site,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")  # read after the wheel's own folder
    where = run(python, "-c", "import equitune; print(equitune.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(site)
    listed = run(program, "catalog", "searchspace", cwd=tmp_path)
    assert "  capacity: what does capacity" in listed
    assert "capacity: 24 trials" in run(program, "search", "capacity", "--dry-run", cwd=tmp_path)

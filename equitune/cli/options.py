"""What several commands take, and how they read it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from equitune import interrupts
from equitune.cli.output import echo
from equitune.config.shipped import find_study_file
from equitune.errors import PASSWORD, UserError
from equitune.interrupts import ENDED as ENDED
from equitune.interrupts import INTERRUPTED as INTERRUPTED
from equitune.interrupts import TYPED as TYPED
from equitune.records.reader import StudyRecord

if TYPE_CHECKING:
    from equitune.records.place import Place

DONE, TRIALS_FAILED, USERS_MISTAKE = 0, 1, 2  # what the program ends with, or INTERRUPTED


class StudyFile(click.Path):
    """A study's YAML file, or the name of one that comes with the package."""

    name = "file or name"

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return find_study_file(Path(os.fsdecode(super().convert(value, param, ctx))))


root_option = click.option(
    "--root",
    metavar="FOLDER_OR_URL",
    help="Where studies lie: a folder, or a URL such as s3://bucket/studies. [default: EQUITUNE_ROOT or ./studies]",
)
data_root_option = click.option(
    "--data-root",
    metavar="PATH",
    help="Where data sets lie: a folder, or a URL such as s3://bucket/data. [default: EQUITUNE_DATA or ./data]",
)
tracking_option = click.option(
    "--tracking-uri", help="MLflow's tracking store. [default: MLFLOW_TRACKING_URI or mlflow.db under the root]"
)
register_option = click.option(
    "--register/--no-register",
    default=True,
    show_default=True,
    help="Register the models of the front in MLflow, once the study is complete: about a second each.",
)
storage_option = click.option(
    "--storage",
    metavar="URL",
    help="PostgreSQL database that holds the search. [default: EQUITUNE_STORAGE or a journal in the study's folder]",
)
cluster_option = click.option(
    "--cluster", metavar="URL", help="Dashboard of a Ray cluster, http://HOST:PORT. [default: EQUITUNE_CLUSTER]"
)
token_option = click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="File that holds Ray's token. [default: RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH]",
)
extend_option = click.option(
    "--extend", is_flag=True, help="Go on in another search space, which must hold every trial so far."
)
warm_start_option = click.option(
    "--warm-start", multiple=True, metavar="STUDY", help="Begin with what fits of STUDY. May be repeated."
)
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override one value of the file. May be repeated."
)


def tracking_store(given: str | None, root: "Place") -> str:
    """Return the address of MLflow's store.

    Raises:
        UserError: it holds a password that others could read, or names a database without its driver.
    """
    from equitune.tracking.store import default_tracking_uri

    uri = given or os.environ.get("MLFLOW_TRACKING_URI") or default_tracking_uri(root)
    if PASSWORD.search(uri) and (given or uri.startswith("http")):
        raise UserError(
            f"--tracking-uri: {uri}: an address is written into logs, and every user of a machine reads its command "
            "lines: give MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD for a server, or the address of a "
            "database as MLFLOW_TRACKING_URI"
        )
    if uri.startswith(("postgresql:", "postgres:")):
        raise UserError(
            f"--tracking-uri: {uri}: without the driver's name MLflow looks for one that is not installed: "
            "the address of PostgreSQL begins with postgresql+psycopg2://"
        )
    return uri


def storage_address(given: str | None) -> str | None:
    from equitune.search.postgres import typed

    return typed(given) if given else os.environ.get("EQUITUNE_STORAGE") or None


def require_lasting(root: object) -> None:
    """Raise UserError where a job on a cluster would leave its study in its working folder, which Ray clears away."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not (root or os.environ.get("EQUITUNE_ROOT")):
        raise UserError(
            "a job's own folder goes with the job: say where studies lie, with --root or, on the cluster's machines, "
            "EQUITUNE_ROOT"
        )


def use_data_root(data_root: str | None) -> None:
    if data_root is not None:
        os.environ["EQUITUNE_DATA"] = data_root


def same_command() -> str:
    """Return what was typed, to be typed again: on the laptop, where this is a job on a cluster."""
    return interrupts.go_on()


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Make the folder that --output names before anything is computed; remove it where nothing came of it.

    Raises:
        UserError: it cannot be made, or nothing can be written there.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"--output: {folder} cannot be written: {error.strerror}: name another folder") from None
    try:
        yield
    finally:
        for path in new:
            with suppress(OSError):  # it is not empty
                path.rmdir()


def say_damaged(study: "StudyRecord") -> None:
    """Name the files that cannot be read, on standard error: the rest of the study is shown."""
    for sentence in study.damaged:
        echo(sentence, err=True)

"""What several commands take, and how they read it."""

import os
import shlex
import sys
from pathlib import Path

import click

from equitune.errors import PASSWORD, UserError

DONE, TRIALS_FAILED, USERS_MISTAKE, INTERRUPTED = 0, 1, 2, 130  # what the program ends with

root_option = click.option(
    "--root", type=click.Path(path_type=Path), help="Where studies lie. [default: EQUITUNE_ROOT or ./studies]"
)
data_root_option = click.option(
    "--data-root", type=click.Path(path_type=Path), help="Where data sets lie. [default: EQUITUNE_DATA or ./data]"
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
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override one value of the file. May be repeated."
)


def tracking_store(given: str | None, root: Path) -> str:
    """The address of MLflow's store.

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


def use_data_root(data_root: Path | None) -> None:
    if data_root is not None:
        os.environ["EQUITUNE_DATA"] = str(data_root)


def same_command() -> str:
    """What was typed, to be typed again."""
    return shlex.join(["equitune", *sys.argv[1:]])

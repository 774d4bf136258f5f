"""What several commands take, and how they read it."""

import os
import shlex
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from equitune.records.place import Place

DONE, TRIALS_FAILED, USERS_MISTAKE, INTERRUPTED = 0, 1, 2, 130  # what the program ends with

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
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override one value of the file. May be repeated."
)


def tracking_store(given: str | None, root: "Place") -> str:
    from equitune.tracking.store import default_tracking_uri

    return given or os.environ.get("MLFLOW_TRACKING_URI") or default_tracking_uri(root)


def storage_address(given: str | None) -> str | None:
    from equitune.search.postgres import typed

    return typed(given) if given else os.environ.get("EQUITUNE_STORAGE") or None


def use_data_root(data_root: str | None) -> None:
    if data_root is not None:
        os.environ["EQUITUNE_DATA"] = data_root


def same_command() -> str:
    """What was typed, to be typed again."""
    return shlex.join(["equitune", *sys.argv[1:]])

"""The commands around studies: the MLflow UI and projection, the catalogue, data sets."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click

from equitune import catalog
from equitune.cli.options import (
    data_root_option,
    register_option,
    root_option,
    tracking_option,
    tracking_store,
    use_data_root,
)
from equitune.cli.output import echo
from equitune.config.shipped import FOLDER, read_question, shipped_names
from equitune.config.trial import DataConfig
from equitune.data.cache import is_url
from equitune.errors import UserError, without_passwords
from equitune.records.folder import StudyFolder, open_study, studies_root
from equitune.records.reader import StudyReader


@click.command()
@root_option
@tracking_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on.")
def ui(root: str | None, tracking_uri: str | None, host: str, port: int) -> None:
    """Open the MLflow UI on the studies' runs, until Ctrl-C."""

    uri = tracking_store(tracking_uri, studies_root(root))
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"--port: {host}:{port} cannot be used ({error.strerror}): name another, such as --port {port + 1}"
            ) from None
    echo(f"MLflow UI on http://{host}:{port} (Ctrl-C ends it)")
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        host,
        "--port",
        str(port),
    ]
    environment = {
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": uri,  # which may hold a password: not onto a command line
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    server = subprocess.Popen([*command, "--workers", "1"], env=environment, start_new_session=True)
    for number in (signal.SIGINT, signal.SIGTERM):  # the server takes one SIGTERM well, and Ctrl-C with a traceback
        signal.signal(number, lambda *_: server.terminate())
    sys.exit(server.wait())


@click.group()
def mlflow() -> None:
    """MLflow, the projection of a study for people."""


@mlflow.command()
@click.argument("study")
@root_option
@data_root_option
@tracking_option
@register_option
def sync(study: str, root: str | None, data_root: str | None, tracking_uri: str | None, register: bool) -> None:
    """Project STUDY into MLflow again, from its folder, and register the models of its front."""
    from equitune.report.arms import write_answer
    from equitune.report.profile import write_profile
    from equitune.tracking.projector import sync as project

    folder = open_study(studies_root(root), study)
    uri = tracking_store(tracking_uri, folder.path.parent)
    project(folder, uri, write_answer, write_profile)
    echo(f"{study} is in {without_passwords(uri)}")
    if register:
        use_data_root(data_root)
        register_models(folder, uri, echo)


def register_models(folder: "StudyFolder", uri: str, say: Callable[[str], None]) -> None:
    """Register the front of a study that is complete.

    Raises:
        UserError: the store does not answer.
    """

    study = StudyReader(folder).read()
    if study.state != "complete":
        say(f"its models are registered when it is complete: {len(study.ended())} of {study.num_planned} trials ended")
        return
    from equitune.driver.log import logging_to
    from equitune.measuring.servable import loader
    from equitune.tracking.registry import register_front

    with logging_to(folder.log):
        register_front(folder, uri, loader(folder), say)


@click.command("catalog")
@click.argument("kind", required=False, type=click.Choice([*catalog.KINDS, "searchspace"]))
def show_catalog(kind: str | None) -> None:
    """List the components that a study may name, with their arguments; and the studies that come with equitune."""
    for each in [kind] if kind else [*catalog.KINDS, "searchspace"]:
        if each == "searchspace":
            _list_shipped()
            continue
        echo(f"{each}")
        for name in catalog.names(each):
            component = catalog.describe(each, name)
            echo(f"  {name}: {component.summary}")
            for parameter, (_, default) in component.parameters.items():
                given = "required" if default is ... else f"default {default!r}"
                echo(f"      {parameter}: {component.annotations[parameter]}, {given}")


def _list_shipped() -> None:
    echo(f"searchspace (in {FOLDER})")
    for name in shipped_names():
        echo(f"  {name}: {read_question(name)}")


@click.command()
@click.argument("dataset")
@data_root_option
def download(dataset: str, data_root: str | None) -> None:
    """Fetch DATASET into the data root."""
    from equitune.data.splits import data_root as resolved

    use_data_root(data_root)
    module = catalog.module("dataset", dataset)
    if not hasattr(module, "download"):
        raise UserError(f"{dataset} is not fetched: it comes with the program, or from a folder of yours")
    given = resolved(DataConfig(name=dataset))
    if is_url(given):
        raise UserError(
            f"--data-root: {dataset} is fetched into a folder, but got {given}: name one, then copy it there"
        )
    root = Path(given)
    try:
        module.download(root)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{dataset} cannot be fetched into {root}: {error}") from None
    echo(f"{dataset} is in {root}")

"""The command that measures models: recorded trials, timm's and torchvision's, weights, exported programs."""

import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from equitune import catalog
from equitune.cli.options import (
    INTERRUPTED,
    data_root_option,
    made_folder,
    root_option,
    same_command,
    tracking_option,
    tracking_store,
    use_data_root,
)
from equitune.cli.output import WIDTH, echo, open_console
from equitune.errors import without_passwords
from equitune.records.folder import studies_root

if TYPE_CHECKING:
    from equitune.measuring.journal import OnProgress
    from equitune.records.place import Place
    from equitune.results.measured import MeasurementRecord

GROUPS = list(get_args(catalog.describe("measure", "equivariance").parameters["group"][0]))


def _numbers(context: click.Context, option: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    try:
        numbers = tuple(float(part) for part in text.split(",")) if text else None
        if not all(map(math.isfinite, numbers or ())):
            raise ValueError(text)
        return numbers
    except ValueError:
        raise click.BadParameter(f"numbers separated by commas are needed, but got '{text}'") from None


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--data", metavar="NAME_OR_FOLDER", help="Images: a data set, or a folder. [default: a trial's own data]")
@click.option("--split", type=click.Choice(["train", "validation", "test"]), default="test", show_default=True)
@click.option("--size", type=click.IntRange(1, 1024), help="Side in px of a folder's images. [default: 224]")
@click.option("--group", "groups", multiple=True, type=click.Choice(GROUPS), help="[default: translation]")
@click.option(
    "--measure",
    "measures",
    multiple=True,
    metavar="NAME[:KEY=VALUE,...]",
    help=f"{', '.join(catalog.names('measure'))}. [default: equivariance and consistency]",
)
@click.option("--layers", multiple=True, metavar="PATTERN", help="Only these layers, such as 'stages.*'.")
@click.option("--images", type=click.IntRange(2), help="At most so many images. [default: 512 by layer, else all]")
@click.option("--batch", default=128, show_default=True, type=click.IntRange(1), help="Images in a forward pass.")
@click.option("--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"]))
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(["float32", "float64"]))
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0, 2**32 - 1),
    help="Of the sample of images, of initial weights, of intervals.",
)
@click.option("--mean", callback=_numbers, metavar="R,G,B", help="Of images in [0, 1]. [default: as the model says]")
@click.option("--std", callback=_numbers, metavar="R,G,B", help="By which images are divided. [default: likewise]")
@click.option("--special-tokens", type=click.IntRange(0), help="Class tokens before a transformer's patches.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder of results. [default: below ./measurements]")
@click.option("--track", is_flag=True, help="Make a run in MLflow for each model.")
@root_option
@data_root_option
@tracking_option
def measure(
    models: tuple[str, ...],
    output: Path | None,
    track: bool,
    root: str | None,
    data_root: str | None,
    tracking_uri: str | None,
    batch: int,
    **options: Any,
) -> None:
    """Measure how equivariant each MODEL is; several are compared with the first on the same images.

    MODEL is STUDY/NUMBER, a recorded trial; ARCHITECTURE[:KEY=VALUE,...][@WEIGHTS], such as
    timm/resnet18@resnet18.safetensors or resnet:depth=20,width=16@weights.pt; or an exported program, FILE.pt2.
    --group, --measure and --layers may be repeated. The same command goes on where it was interrupted. On the CPU one
    thread computes, or as many as OMP_NUM_THREADS says.
    """
    from equitune.measuring.compare import measure_models
    from equitune.measuring.journal import clear
    from equitune.measuring.request import Request

    use_data_root(data_root)
    given = {name: value for name, value in options.items() if value not in (None, ())}
    request = Request(models=models, batch_size=batch, **given)
    place = studies_root(root)
    store = tracking_store(tracking_uri, place) if track else ""
    slug = re.sub(r"[^\w.-]+", "-", " ".join(models)).strip("-.")[:60]
    folder = output or Path("measurements") / f"{slug}-{request.fingerprint()}"
    with made_folder(folder):
        try:
            with _showing_progress() as on_progress:
                record = measure_models(request, root=place, folder=folder, on_progress=on_progress)
        except KeyboardInterrupt:
            echo(f"Go on:   {same_command()}")
            sys.exit(INTERRUPTED)
        paths = _written(record, folder)
        if track:
            _track(record, paths, store, place)
        clear(folder / "journal")  # all is in the record now


@contextmanager
def _showing_progress() -> "Iterator[OnProgress]":
    """Return a bar on standard error for what is being measured; nothing where that is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = open_console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("loading", total=None)
        before = 0

        def show(what: str, done: int, total: int) -> None:
            nonlocal before
            if done < before:  # another pass over the images
                progress.reset(task)
            before = done
            progress.update(task, description=what, completed=done, total=total)

        yield show


def _written(record: "MeasurementRecord", folder: Path) -> list[Path]:
    """Write the files, print the tables, say where everything lies."""
    from equitune.report.measured import lines, write_measurement

    paths = write_measurement(record, folder)
    console = open_console(width=WIDTH)
    for line in lines(record):
        console.print(line, markup=False, soft_wrap=isinstance(line, str))
    echo(f"Folder:  {folder} ({', '.join(path.name for path in paths)})")
    return paths


def _track(record: "MeasurementRecord", paths: list[Path], uri: str, root: "Place") -> None:
    from equitune.tracking.measured import EXPERIMENT, log_measurement

    log_measurement(record, uri, paths, root)
    echo(f"MLflow:  experiment {EXPERIMENT} in {without_passwords(uri)}; open it with `equitune ui`")

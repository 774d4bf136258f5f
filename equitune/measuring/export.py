"""A recorded trial's network for use elsewhere: its weights with their configuration, and as a program."""

import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn

from equitune import __version__
from equitune.data.split import as_float, move, split_at_size
from equitune.data.splits import Split, Splits
from equitune.errors import UserError
from equitune.importing.exported import load_exported
from equitune.importing.weights import first_line, read_tensors
from equitune.networks.build import initial_model
from equitune.records.durable import sync_file, sync_folder, write_whole
from equitune.records.folder import TrialFolder
from equitune.records.reader import TrialRecord

IMAGES = 8  # real ones, on which a program must give the network's scores
TOLERANCE = 1e-5  # of the largest score: the program calls the same operators, in the same order
FILES = ("config.json", "model.safetensors", "program.pt2")


@dataclass(frozen=True)
class ExportedTrial:
    """What was written of one trial, and what could not be."""

    number: int
    paths: list[Path]
    notices: list[str] = field(default_factory=list)


def export_trial(record: TrialRecord, source: TrialFolder, splits: Splits, folder: Path) -> ExportedTrial:
    """Write a trial's FILES.

    `model.safetensors` holds the weights, and as metadata the configuration, the classes and the shape of the images;
    `program.pt2` is the network in evaluation, from images (B, C, H, W) in [0, 1] to class scores (B, classes).

    Args:
        record: a trial that is COMPLETE.
        source: where it was recorded.
        splits: its data: they say how many classes there are, and try the program.
        folder: made where it does not exist; files of these names are replaced.

    Raises:
        UserError: the trial has no weights, or they are not its network's.
    """
    shape = record.config.input.shape_of(splits.shape)
    model, images = trained(record, source, splits)
    metadata = {
        "format": "pt",
        "equitune": __version__,
        "config": json.dumps(record.config.to_json()),
        "classes": json.dumps(splits.class_names),
        "image_shape": json.dumps(shape),
    }
    paths = [folder / name for name in FILES]
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        path.unlink(missing_ok=True)
    write_whole(paths[0], source.config.read_bytes())
    write_whole(paths[1], save(read_tensors(source.weights), metadata))
    try:
        notices = write_program(model, images, paths[2])
    except NoProgram as error:
        paths[2].unlink(missing_ok=True)
        return ExportedTrial(record.number, paths[:2], [f"no program.pt2: {error}"])
    return ExportedTrial(record.number, paths, notices)


def trained(record: TrialRecord, source: TrialFolder, splits: Splits) -> tuple[nn.Module, Tensor]:
    """Return a recorded trial's network in eval mode on the CPU, and a few validation images (IMAGES, C, H, W) in [0,
    1].

    Raises:
        UserError: the trial has no weights, or they are not its network's.
    """
    require_weights(record, source)
    config = record.config.model_copy(update={"device": "cpu"})
    model = initial_model(config, splits.data_shape).eval()
    try:
        model.load_state_dict(read_tensors(source.weights))
    except (RuntimeError, SafetensorError) as error:
        where = f"{config.study}/{config.number}"
        raise UserError(f"{where}: its weights are of another network: {first_line(error)}") from None
    few = Split(splits.validation.pixels[:IMAGES], splits.validation.labels[:IMAGES])
    return model, as_float(split_at_size(move(few, "cpu"), config.input).pixels)


def require_weights(record: TrialRecord, source: TrialFolder) -> None:
    """Raise UserError where a trial kept no weights."""
    if not source.weights.is_file():
        where, reason = f"{record.config.study}/{record.number}", f" ({record.reason})" if record.reason else ""
        raise UserError(f"{where} has no weights: it is {record.state}{reason}; name a trial that is COMPLETE")


class NoProgram(Exception):
    """Why a network cannot be exported; a phrase."""


def write_program(model: nn.Module, images: Tensor, path: Path) -> list[str]:
    """Export a network for any number of images, and hold the file against it on real ones.

    Args:
        model: in eval mode.
        images: (B, C, H, W) with B >= 2.
        path: of the program.

    Returns:
        Notices: what the program cannot do.

    Raises:
        NoProgram: the network cannot be exported, or the program gives other scores.
    """
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(model, (images[:2],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
            torch.export.save(program, path)
            sync_file(path)
            sync_folder(path.parent)
    except Exception as error:  # whatever torch's tracing raises, of control flow that depends on the images above all
        raise NoProgram(f"torch.export cannot take the network: {type(error).__name__}: {first_line(error)}") from None
    _require_same_scores(model, program.module(), images)
    try:
        _require_same_scores(model, load_exported(path, (images.shape[1], images.shape[2], images.shape[3])), images)
    except UserError as error:
        return [f"`equitune measure` does not take its program.pt2: {error}"]
    return []


def _require_same_scores(model: nn.Module, program: nn.Module, images: Tensor) -> None:
    """Of all images at once, and of one alone: the number of images must not have been fixed."""
    with torch.inference_mode():
        for batch in (images, images[:1]):
            scores = model(batch)
            try:
                error = (program(batch) - scores).abs().max() / scores.abs().max()
            except Exception as failure:  # whatever its operators raise
                reason = f"{type(failure).__name__}: {first_line(failure)}"
                raise NoProgram(f"the program does not run on {len(batch)} images: {reason}") from None
            if not error <= TOLERANCE:
                raise NoProgram(f"the program's scores differ from the network's by {float(error):.1e} of the largest")

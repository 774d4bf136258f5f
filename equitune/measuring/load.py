"""The door for a network to be measured: a recorded trial, a known architecture with weights, or an exported program.

MODEL is one of

    STUDY/NUMBER                          a trial recorded under the studies' root, such as capacity/12
    FILE.pt2                              a program that `torch.export.save` wrote; no source code is needed
    ARCHITECTURE[:KEY=VALUE,...][@FILE]   a known architecture, with the weights in FILE

where ARCHITECTURE is a model of the catalogue (`resnet:depth=20,width=16`, its prior as `prior=local` and the prior's
arguments as `prior.padding=circular`, its downsampler and stem likewise), `timm/NAME`, `torchvision/NAME`, or NAME
alone, which is looked up in this order; and FILE is a .safetensors file or a state dict that torch saved. No code of
any file is ever run.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor, nn

from equitune import catalog
from equitune.config.call import checked_call, parsed
from equitune.config.data_shape import DataShape
from equitune.config.space import Call
from equitune.config.trial import TrialConfig
from equitune.errors import Infeasible, UserError
from equitune.evaluation.capture import capturing
from equitune.groups.layout import Layout, Tokens
from equitune.importing.exported import load_exported
from equitune.importing.foreign import require_program
from equitune.importing.weights import Build, first_line, fitted, read_weights
from equitune.networks.build import assembled, initial_model, parts_of
from equitune.records.folder import named_trial, open_trial
from equitune.records.place import Place
from equitune.records.reader import read_trial
from equitune.results.values import TrialResult

LIBRARIES = ("timm", "torchvision")  # in the order in which a bare name is looked up

UNLABELLED_CLASSES = 1000  # of a network without weights, where the images have no labels: ImageNet's

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Subject:
    """A network to be measured."""

    name: str  # as it was asked for
    model: nn.Module  # in eval mode, on the device: images (B, C, H, W) in [0, 1] -> class scores; has `layers`
    untrained: nn.Module | None  # the same architecture with initial weights; None where it cannot be had
    classes: int
    provenance: dict[str, str]  # its architecture, where its weights are from, their sha256, its size
    notices: list[str]  # what whoever reads the numbers must know, a sentence each


def load_subject(
    text: str,
    shape: Shape,
    classes: int | None,
    *,
    root: Place,
    device: str = "cpu",
    seed: int = 0,
    special_tokens: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Subject:
    """Return the network that a text names.

    Args:
        text: MODEL, as described above.
        shape: of the images, (C, H, W).
        classes: of the images, None where they have no labels; a network whose weights are for another number of
            classes keeps its own.
        root: where studies lie.
        device: where the networks shall be.
        seed: of the initial weights; a recorded trial has its own.
        special_tokens: how many class and distillation tokens stand before a transformer's patches, where the network
            does not say so, or says it wrongly.
        mean: per channel, subtracted from the images; None: as the network declares. A recorded trial has its own.
        std: per channel, by which the images are then divided.

    Raises:
        UserError: there is no such network, its weights do not fit, or it does not give class scores (B, K).
    """
    expected = classes or UNLABELLED_CLASSES
    given = {"mean": mean, "std": std}
    statistics = {name: _checked(text, name, values, shape[0]) for name, values in given.items() if values is not None}
    if trial := named_trial(text):
        if statistics:
            raise UserError(f"{text}: a recorded trial keeps the mean and std of its data: leave them out")
        subject = _from_trial(text, *trial, shape, expected, root)
    elif _is_program(text):
        subject = _from_program(text, shape)
        if not statistics:
            subject.notices.append("it is given images in [0, 1] as they are: --mean and --std normalise them")
    else:
        subject = _from_architecture(text, shape, expected, seed)
    networks = [network.eval() for network in (subject.model, subject.untrained) if network is not None]
    for network in networks:
        network.normalise.load_state_dict(subject.model.normalise.state_dict())  # type: ignore[union-attr]
        for name, values in statistics.items():
            _normalise(network, name, values)
        if special_tokens is not None:
            network.layers = _with_special(text, network, special_tokens)  # type: ignore[assignment]
    outputs, unread = _probed(text, subject.model, shape)
    if outputs != (classes or outputs):
        said = f"the network has {outputs} classes and the data {classes}: its accuracy on them means nothing"
        subject.notices.append(said)
    for network in networks:
        network.to(device)
    size = sum(weight.numel() for weight in subject.model.parameters())
    provenance = subject.provenance | {"parameters": str(size)}
    return replace(subject, classes=outputs, provenance=provenance, notices=subject.notices + unread)


def config_of(text: str, root: Place) -> TrialConfig | None:
    """Return the configuration of a recorded trial: its data, the size it sees them at; None for any other network.

    Raises:
        UserError: there is no such trial.
    """
    trial = named_trial(text)
    return read_trial(open_trial(root, *trial), brief=True).config if trial else None


def _is_program(text: str) -> bool:
    return text.endswith(".pt2") and ("@" not in text or Path(text).exists())


def _from_trial(text: str, study: str, number: int, shape: Shape, classes: int, root: Place) -> Subject:
    folder = open_trial(root, study, number)
    config = read_trial(folder, brief=True).config
    if not folder.weights.is_file():
        raise UserError(f"{text} has no weights: {_how_it_stands(folder.result)}; name a trial that is COMPLETE")
    on_cpu = config.model_copy(update={"device": "cpu"})
    build = partial(_built, text, lambda classes: initial_model(on_cpu, DataShape(shape, classes)))
    model, classes = fitted(text, build, read_weights(folder.weights), classes)
    provenance = {
        "trial": f"{study}/{number}",
        "architecture": _described(config.model),
        "seed": str(config.seed),
        **_file("weights", folder.weights),
    }
    if config.input.size is not None:
        provenance["input_size"] = str(config.input.size)
    provenance |= {part: _described(call) for part, call in parts_of(config).items()}
    if config.averaging:
        provenance["averaging"] = _described(config.averaging)
    return Subject(text, model, build(classes), classes, provenance, [])


def _how_it_stands(result: Place) -> str:
    if not result.is_file():
        return "it has not ended"
    ended = TrialResult.model_validate_json(result.read_bytes())
    return f"it is {ended.state}" + (f" ({ended.reason})" if ended.reason else "")


def _from_program(text: str, shape: Shape) -> Subject:
    path = Path(text)
    if not path.is_file():
        raise UserError(f"{text}: no such file: name a program that torch.export.save wrote")
    require_program(path, shape)
    model = load_exported(path, shape)
    notices = [
        "an exported program has no untrained copy",
        "an exported program does not say how a group permutes its channels: they are taken to stay in place",
    ]
    return Subject(text, model, None, 0, {"architecture": "exported program", **_file("program", path)}, notices)


def _from_architecture(text: str, shape: Shape, classes: int, seed: int) -> Subject:
    said, has_weights, file = text.partition("@")
    model_call, parts = _calls(text, said)

    def initial(classes: int) -> nn.Module:
        torch.manual_seed(seed)
        model = assembled(model_call, parts, DataShape(shape, classes))
        for name, values in zip(("mean", "std"), getattr(model, "statistics", ()), strict=False):
            _normalise(model, name, values if len(values) == shape[0] else [sum(values) / len(values)])
        return model

    build = partial(_built, text, initial)
    provenance, notices = {"architecture": _described(model_call), "seed": str(seed)}, []
    if model_call.name in LIBRARIES:
        provenance[model_call.name] = metadata.version(model_call.name)
    provenance |= {kind: _described(part) for kind, part in parts.items()}
    if has_weights:
        path = Path(file).expanduser()
        model, classes = fitted(text, build, read_weights(path), classes)
        provenance |= _file("weights", path)
    else:
        model = build(classes)
        notices.append("no weights were given: the network is random")
    return Subject(text, model, build(classes), classes, provenance, notices)


def _calls(text: str, said: str) -> tuple[Call, dict[str, Call]]:
    """Return the model and its parts by kind, looked up and checked as a study's would be."""
    name, arguments = parsed(said, text)
    if name not in catalog.names("model"):
        library, _, architecture = name.rpartition("/")
        library = library or next((each for each in LIBRARIES if catalog.module("model", each).knows(architecture)), "")
        if library not in LIBRARIES:
            if Path(text).is_file():
                raise UserError(f"{text} holds weights alone: name their architecture too, ARCHITECTURE@{text}")
            known = [*catalog.names("model"), "timm/NAME", "torchvision/NAME", "STUDY/NUMBER", "FILE.pt2"]
            raise UserError(catalog.unknown("model", name, known))
        name, arguments = library, {**arguments, "architecture": architecture}
    parts = {}
    for part, kind in catalog.PARTS.items():
        known = catalog.parts(name, part)
        chosen = arguments.pop(part, known[0] if known else None)
        own = {key.partition(".")[2]: arguments.pop(key) for key in list(arguments) if key.startswith(f"{part}.")}
        if chosen not in known and (chosen or own):
            fits = ", ".join(known) or f"no {part}"
            raise UserError(f"{text}: {name} takes {fits}, but got {part} {chosen or own!r}")
        if chosen:
            parts[part] = checked_call(kind, chosen, own, f"{text}: {part}")
    return checked_call("model", name, arguments, text), parts


def _built(text: str, build: Build, classes: int) -> nn.Module:
    try:
        return build(classes)
    except Infeasible as error:
        raise UserError(f"{text}: {error}") from None


def _normalise(network: nn.Module, name: str, values: Sequence[float]) -> None:
    """Set the mean or the std of a network's first layer; one value stands for all channels."""
    own: Tensor = getattr(network.normalise, name)
    own.copy_(torch.tensor(values).view(-1, 1, 1).expand_as(own))


def _checked(text: str, name: str, values: Sequence[float], channels: int) -> Sequence[float]:
    is_fine = all(math.isfinite(value) and (name == "mean" or value > 0) for value in values)
    if len(values) not in (1, channels) or not is_fine:
        bound = " > 0" if name == "std" else ""
        raise UserError(f"{text}: {name} is 1 or {channels} finite numbers{bound}, but got {list(values)}")
    return values


def _layers(model: nn.Module) -> dict[str, Layout]:
    layers: dict[str, Layout] = model.layers  # type: ignore[assignment]
    return layers


def _with_special(text: str, model: nn.Module, special: int) -> dict[str, Layout]:
    layers = _layers(model)
    if not any(isinstance(layout, Tokens) for layout in layers.values()):
        raise UserError(f"{text}: special tokens are those of a transformer, but no layer of this network has tokens")
    return {
        name: replace(layout, special=special) if isinstance(layout, Tokens) else layout
        for name, layout in layers.items()
    }


def _probed(text: str, model: nn.Module, shape: Shape) -> tuple[int, list[str]]:
    """Run two images: the number of class scores, and notices of what cannot be measured inside.

    Raises:
        UserError: the network cannot run on such images, or does not give class scores.
    """
    unread: dict[str, str] = {}
    try:
        with (
            torch.no_grad(),
            capturing(model, _layers(model), lambda *_: None, lambda name, error: unread.__setitem__(name, str(error))),
        ):
            scores = model(torch.zeros(2, *shape))
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        size = " x ".join(map(str, shape))
        raise UserError(f"{text} cannot run on images of {size}: {first_line(error)}") from None
    if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != 2 or not scores.is_floating_point():
        given = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise UserError(f"{text}: a classifier gives scores (2, K) for two images, but this one gives {given}")
    inner = [name for name, layout in _layers(model).items() if layout.is_spatial or name in unread]
    notices = []
    if not inner:
        notices.append("no inner layer's layout is known: only the output is measured")
    for reason in dict.fromkeys(unread.values()):
        names = [name for name, other in unread.items() if other == reason]
        which = ", ".join(names[:3]) + ", ..." * (len(names) > 3)
        notices.append(f"{len(names)} of {len(inner)} inner layers cannot be measured ({which}): {reason}")
    return scores.shape[1], notices


def _described(call: Call) -> str:
    """Return a component as MODEL has it: `resnet:depth=20,width=16`."""
    settings = ",".join(f"{key}={value}" for key, value in call.args.items())
    return f"{call.name}:{settings}" if settings else call.name


def _file(kind: str, path: Place) -> dict[str, str]:
    with path.open("rb") as file:
        return {kind: str(path), f"{kind}_sha256": hashlib.file_digest(file, "sha256").hexdigest()}

"""Models brought from anywhere -> one record of measurements, on the same images and group elements for all of them."""

import difflib
import fnmatch
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from equitune import catalog
from equitune.config.objectives import declared_metrics
from equitune.config.space import Call
from equitune.data.split import move
from equitune.errors import Unmeasurable, UserError
from equitune.evaluation.capture import capturing
from equitune.evaluation.estimate import Estimate
from equitune.evaluation.image_set import EvaluationSet
from equitune.evaluation.report import Report
from equitune.groups.element import sets
from equitune.groups.layout import Layout
from equitune.importing.foreign import close_opener
from equitune.importing.weights import first_line
from equitune.measures.equivariance import total_stride
from equitune.measuring.images import Images, load_images, split_of
from equitune.measuring.journal import FileJournal, OnProgress
from equitune.measuring.load import Subject, config_of, load_subject
from equitune.measuring.request import Request, calls_of, said
from equitune.networks.device import is_out_of_memory, make_deterministic, provenance
from equitune.records.place import Place
from equitune.results.measured import Difference, MeasuredModel, MeasurementRecord

MOTIONLESS = 1e-12  # a mean square relative to that of the images: below it an element moves nothing

Layers = dict[str, Layout]


def measure_models(
    request: Request, *, root: Place, folder: Path, on_progress: OnProgress = lambda what, done, total: None
) -> MeasurementRecord:
    """Measures each model, and the paired differences of the others from the first.

    Args:
        request: what to measure on what.
        root: where studies lie.
        folder: takes the journal, from which an interrupted measurement goes on.
        on_progress: called after each batch.

    Raises:
        UserError: a model, a measure or the images cannot be had, or do not go together.
    """
    if request.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here: leave it out to measure on the CPU")
    threads = torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else 1
    make_deterministic(request.device)
    torch.set_num_threads(threads)
    images = _as_seen(_images(request, root), request, root)
    evaluation = _evaluation_set(request, images)
    try:
        subjects = [_subject(text, request, images, root) for text in request.models]
    finally:
        close_opener()  # nothing more of a stranger is opened
    _choose_layers(subjects, request.layers)
    strides = (total_stride(_layers(subject.model), images.shape[-1]) for subject in subjects)
    calls = calls_of(request, math.lcm(*strides))
    for group in dict.fromkeys(call.args["group"] for call in calls if "group" in call.args):
        _require_action(group, evaluation)
    for subject in subjects:
        _require_finite(subject, evaluation)
    models, estimates = [], []
    for number, subject in enumerate(subjects):
        reports = []
        for index, call in enumerate(calls):
            what = f"{number * len(calls) + index + 1} of {len(subjects) * len(calls)}: {subject.name}, {said(call)}"
            key = f"{request.fingerprint()}/{images.fingerprint}/{subject.provenance}/{call}"
            journal = FileJournal(folder / "journal", key, what, on_progress)
            reports.append(_report(subject, replace(evaluation, journal=journal), call))
        models.append(_measured(subject, calls, reports, request.seed))
        estimates.append({name: each for report in reports for name, each in report.estimates.items()})
    _require_a_number(calls, models)
    return MeasurementRecord(
        request=request.model_dump(mode="json"),
        data={
            "name": images.name,
            "split": images.split_name,
            "n": len(evaluation),
            "shape": list(images.shape),
            "fingerprint": images.fingerprint,
        },
        models=models,
        differences=_differences(models, estimates, request.seed),
        provenance=provenance(request.device) | {"threads": str(threads)},
    )


def _images(request: Request, root: Place) -> Images:
    if request.data is not None:
        return load_images(request.data, request.split, request.size)
    config = config_of(request.models[0], root)
    if config is None:
        known = ", ".join(catalog.names("dataset"))
        raise UserError(f"{request.models[0]} says nothing of images: name some with --data: {known}, or a folder")
    if request.size is not None:
        raise UserError(f"--size is for folders of images: those of {request.models[0]} have a size of their own")
    return split_of(config.data, request.split)


def _as_seen(images: Images, request: Request, root: Place) -> Images:
    """Return the images at the size of the recorded trials among the models, which must have one size.

    Raises:
        UserError: they were trained at different sizes, so that no image is the same one for all.
    """
    configs = {text: config for text in request.models if (config := config_of(text, root))}
    sides = {text: config.input.shape_of(images.shape)[1] for text, config in configs.items()}
    if len(set(sides.values())) > 1:
        said = " and ".join(f"{text} of {side} x {side}" for text, side in sides.items())
        raise UserError(f"models are compared on the same images, but {said} px: measure each size by itself")
    return images.at_size(next(iter(configs.values())).input) if configs else images


def _evaluation_set(request: Request, images: Images) -> EvaluationSet:
    """Return the images on the device, in the order of the data set: all of them, or a seeded sample."""
    if len(images.split) < 2:
        raise UserError(f"{images.name} has {len(images.split)} image: two or more are needed")
    here, dtype = move(images.split, request.device), getattr(torch, request.dtype)
    whole = EvaluationSet(here.pixels, here.labels, images.split_name, request.batch_size, dtype)
    return whole.sample(request.images or len(whole), request.seed)


def _subject(text: str, request: Request, images: Images, root: Place) -> Subject:
    """Return a model in the asked precision; of a trial it is said where these images are not its own."""
    subject = load_subject(
        text,
        images.shape,
        images.classes,
        root=root,
        device=request.device,
        seed=request.seed,
        special_tokens=request.special_tokens,
        mean=request.mean,
        std=request.std,
    )
    own = config_of(text, root)
    if own is not None and own.data.model_copy(update={"root": None}) != images.config:
        subject.notices.append("these are not the images that were held out from it: some may have trained it")
    for network in _networks(subject):
        network.to(getattr(torch, request.dtype))
    return subject


def _choose_layers(subjects: Sequence[Subject], patterns: Sequence[str]) -> None:
    """Leaves each model the layers that match a pattern, and the output."""
    known = [name for subject in subjects for name in _layers(subject.model)]
    for pattern in patterns:
        if not fnmatch.filter(known, pattern):
            near = difflib.get_close_matches(pattern, dict.fromkeys(known), n=3, cutoff=0.3) or known[:3]
            of = " and ".join(dict.fromkeys(subject.name for subject in subjects))
            raise UserError(f"--layers: no layer of {of} is like '{pattern}': nearest: {', '.join(near)}")
    for network in (network for subject in subjects for network in _networks(subject) if patterns):
        layers = _layers(network)
        chosen = {name for pattern in patterns for name in fnmatch.filter(layers, pattern)} | {list(layers)[-1]}
        network.layers = {name: layout for name, layout in layers.items() if name in chosen}  # type: ignore[assignment]


def _require_action(group: str, images: EvaluationSet) -> None:
    """Raise UserError where no element of a group can act on these images, or none changes any of them."""
    problem = None
    for batch, _ in images.batches():
        for elements in sets(group, [1], batch.shape[-1]).values():
            try:
                for g in elements:
                    at_rest = g.after(g.inverse()).on_images(batch)
                    change = (g.on_images(batch) - at_rest).square().sum()
                    if change > MOTIONLESS * at_rest.square().sum():
                        return
            except Unmeasurable as error:
                problem = problem or error
    shape = " x ".join(map(str, images.pixels.shape[1:]))
    reason = problem or "no element changes any of them"
    raise UserError(f"--group {group} cannot act on these images of {shape}: {reason}")


def _require_finite(subject: Subject, images: EvaluationSet) -> None:
    """Raise UserError where a model fails on the first images; name the first layer that is not finite."""
    bad: list[str] = []

    def check(layer: str, features: Tensor) -> None:
        if not features.isfinite().all():
            bad.append(layer)

    try:
        with torch.inference_mode(), capturing(subject.model, _layers(subject.model), check, lambda *_: None):
            subject.model(next(images.batches())[0])
    except (RuntimeError, ValueError) as error:
        raise _failure(subject, images, error) from None
    if bad:
        weights = subject.model.state_dict().items()
        broken = [name for name, weight in weights if weight.is_floating_point() and not weight.isfinite().all()]
        because = f"its weight {broken[0]} is not finite" if broken else "its weights are finite, but too large"
        raise UserError(f"{subject.name}: features are not finite from layer {bad[0]} on: {because}")


def _report(subject: Subject, images: EvaluationSet, call: Call) -> Report:
    measure = catalog.entry("measure", call.name)
    try:
        return cast(Report, measure(subject.model, subject.untrained, images, **call.args))
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise _failure(subject, images, error) from None
        raise


def _failure(subject: Subject, images: EvaluationSet, error: Exception) -> UserError:
    """Return what a model's own failure is to the user."""
    if is_out_of_memory(error):
        return UserError(f"{subject.name}: the memory is too small: give a smaller --batch than {images.batch_size}")
    dtype = str(images.dtype).removeprefix("torch.")
    return UserError(f"{subject.name} cannot run on these images in {dtype}: {first_line(error)}")


def _require_a_number(calls: list[Call], models: list[MeasuredModel]) -> None:
    """Raise UserError where a measure has nothing to say of any model."""
    for call in calls:
        metrics = [model.metrics[name] for model in models for name in declared_metrics((call,))]
        if not any(metric.status == "ok" for metric in metrics):
            raise UserError(f"{said(call)} has no value: {metrics[0].status}: {metrics[0].reason}")


def _measured(subject: Subject, calls: list[Call], reports: list[Report], seed: int) -> MeasuredModel:
    """Return a model's numbers, with bootstrap intervals."""
    metrics, profile = {}, []
    for report in reports:
        for name, metric in report.metrics.items():
            low, high = _interval(report.estimates.get(name), seed)
            metrics[name] = metric.model_copy(update={"low": low, "high": high})
        profile += [_row(row, report.estimates, seed) for row in report.profile]
    return MeasuredModel(
        name=subject.name,
        provenance=subject.provenance,
        notices=subject.notices,
        metrics=metrics,
        profile=profile,
        controls={said(call): each.controls for call, each in zip(calls, reports, strict=True) if each.controls},
    )


def _row(row: dict[str, Any], estimates: dict[str, Estimate], seed: int) -> dict[str, Any]:
    """Return a row with an interval beside each quantity that has one; a number that is none has no place in JSON."""
    lost = {key for key, value in row.items() if isinstance(value, float) and not math.isfinite(value)}
    found = {key: None if key in lost else value for key, value in row.items()}
    for quantity in row:
        estimate = estimates.get(f"{row['layer']}/{row['set']}/{quantity}")
        if estimate is not None:
            found[f"{quantity}_low"], found[f"{quantity}_high"] = _interval(estimate, seed)
    return found


def _interval(estimate: Estimate | None, seed: int) -> tuple[float | None, float | None]:
    """Of 95 %; None where there is none, or resamples of a few images have no value."""
    ends = estimate.interval(seed) if estimate else (math.nan, math.nan)
    return ends if all(map(math.isfinite, ends)) else (None, None)


def _differences(models: list[MeasuredModel], estimates: list[dict[str, Estimate]], seed: int) -> list[Difference]:
    """Of every other model from the first, for each metric that both have."""
    found = []
    for model, own in list(zip(models, estimates, strict=True))[1:]:
        for name, metric in model.metrics.items():
            if name in own and name in estimates[0]:
                difference = own[name].minus(estimates[0][name])
                low, high = _interval(difference, seed)
                found.append(
                    Difference(
                        metric=name,
                        model=model.name,
                        baseline=models[0].name,
                        value=difference.value,
                        stderr=difference.stderr,
                        low=low,
                        high=high,
                        n=metric.n,
                    )
                )
    return found


def _networks(subject: Subject) -> list[nn.Module]:
    return [network for network in (subject.model, subject.untrained) if network is not None]


def _layers(model: nn.Module) -> Layers:
    return cast(Layers, model.layers)

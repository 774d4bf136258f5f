"""Models brought from anywhere -> one record of measurements, on the same images and group elements for all of them."""

import fnmatch
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from equitune import __version__, catalog
from equitune.errors import Unmeasurable, UserError
from equitune.groups.element import sets
from equitune.groups.layout import Layout
from equitune.measures._estimate import Estimate
from equitune.measures._evaluation import EvaluationSet, Report
from equitune.records.measured import Difference, MeasuredModel, MeasurementRecord
from equitune.spec.call import checked_call, parsed
from equitune.spec.space import Call
from equitune.spec.strict import Strict
from equitune.trial.images import Images, SplitName, load_images, split_of
from equitune.trial.journal import FileJournal, OnProgress
from equitune.trial.load import Subject, data_of, load_subject
from equitune.trial.run import make_deterministic, provenance


class Request(Strict):
    """Everything that decides the numbers of a measurement."""

    models: tuple[str, ...]
    data: str | None = None  # None: that of the first model, a recorded trial
    split: SplitName = "test"
    size: int | None = None
    measures: tuple[str, ...] = ("equivariance", "consistency")
    groups: tuple[str, ...] = ("translation",)
    layers: tuple[str, ...] = ()  # patterns; none: all that the model declares
    images: int | None = None
    batch_size: int = 128
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0
    special_tokens: int | None = None

    def fingerprint(self) -> str:
        """A hash of the request: the same one goes on where it was interrupted."""
        text = json.dumps([__version__, self.model_dump(mode="json")], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def measure_models(
    request: Request, *, root: Path, folder: Path, on_progress: OnProgress = lambda what, done, total: None
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
    make_deterministic(request.device)
    images = _images(request, root)
    subjects = [_subject(text, request, images, root) for text in request.models]
    evaluation = _evaluation_set(request, images)
    calls = _calls(request, subjects, evaluation)
    journal = FileJournal(folder / "journal", f"{request.fingerprint()}/{images.fingerprint}", on_progress)
    models, estimates = [], []
    for subject in subjects:
        reports = {}
        for call in calls:
            what = call.name + (f" of {call.args['group']}" if "group" in call.args else "")
            shown = replace(evaluation, journal=journal.at(f"{subject.name}: {what}", f"{subject.provenance} {call}"))
            measure = catalog.entry("measure", call.name)
            reports[what] = measure(subject.model, subject.untrained, shown, **call.args)
            _require_a_number(what, reports[what])
        models.append(_measured(subject, reports, request.seed))
        estimates.append({name: each for report in reports.values() for name, each in report.estimates.items()})
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
        provenance=provenance(request.device),
    )


def _images(request: Request, root: Path) -> Images:
    if request.data is not None:
        return load_images(request.data, request.split, request.size)
    config = data_of(request.models[0], root)
    if config is None:
        known = ", ".join(catalog.names("dataset"))
        raise UserError(f"{request.models[0]} says nothing of images: name some with --data: {known}, or a folder")
    return split_of(config, request.split)


def _evaluation_set(request: Request, images: Images) -> EvaluationSet:
    """The images on the device, in the order of the data set: all of them, or a seeded sample."""
    whole = EvaluationSet(
        torch.from_numpy(images.split.pixels).to(request.device),
        torch.from_numpy(images.split.labels).to(request.device),
        images.split_name,
        request.batch_size,
        getattr(torch, request.dtype),
    )
    return whole.sample(request.images or len(whole), request.seed)


def _subject(text: str, request: Request, images: Images, root: Path) -> Subject:
    """A model as it shall be measured: in the asked precision, with the asked layers."""
    subject = load_subject(
        text,
        images.shape,
        images.classes,
        root=root,
        device=request.device,
        seed=request.seed,
        special_tokens=request.special_tokens,
    )
    for network in (subject.model, subject.untrained):
        if network is not None:
            network.to(getattr(torch, request.dtype))
            network.layers = _chosen(text, network, request.layers)  # type: ignore[assignment]
    return subject


def _chosen(text: str, model: nn.Module, patterns: Sequence[str]) -> dict[str, Layout]:
    """The layers that match a pattern, and the output."""
    layers: dict[str, Layout] = model.layers  # type: ignore[assignment]
    if not patterns:
        return layers
    for pattern in patterns:
        if not fnmatch.filter(layers, pattern):
            raise UserError(f"--layers: {catalog.unknown('layer', pattern, layers)} (of {text})")
    output = list(layers)[-1]
    return {
        name: layout
        for name, layout in layers.items()
        if name == output or any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
    }


def _calls(request: Request, subjects: list[Subject], images: EvaluationSet) -> list[Call]:
    """Each measure of each group, with the same elements for every model."""
    calls = []
    for text in request.measures:
        where = f"--measure {text}"
        name, given = parsed(text, where)
        parameters = catalog.describe("measure", name).parameters
        common: dict[str, Any] = {}
        if request.images is not None and "most_images" in parameters:
            common["most_images"] = request.images
        for group in request.groups if "group" in parameters else [None]:
            more = dict(common)
            if group is not None:
                more["group"] = group
                _require_action(group, images)
            if group == "translation" and "lattice_px" in parameters and len(subjects) > 1:
                more["lattice_px"] = math.lcm(*(_total_stride(subject.model) for subject in subjects))
            calls.append(checked_call("measure", name, more | given, where))
    return calls


def _require_action(group: str, images: EvaluationSet) -> None:
    """Raises UserError where no element of a group can act on these images."""
    probe = next(images.batches())[0][:1]
    problem = None
    for elements in sets(group, [1], probe.shape[-1]).values():
        try:
            for g in elements:
                g.on_images(probe)
        except Unmeasurable as error:
            problem = problem or error
        else:
            return
    shape = " x ".join(map(str, probe.shape[1:]))
    raise UserError(f"--group {group} cannot act on images of {shape}: {problem or 'they are too small'}")


def _total_stride(model: nn.Module) -> int:
    layers: dict[str, Layout] = model.layers  # type: ignore[assignment]
    return math.lcm(*(layout.stride for layout in layers.values() if layout.is_spatial))


def _require_a_number(what: str, report: Report) -> None:
    """Raises UserError where nothing at all could be measured."""
    if not any(metric.status == "ok" for metric in report.metrics.values()):
        metric = next(iter(report.metrics.values()))
        raise UserError(f"{what} has no value: {metric.status}: {metric.reason}")


def _measured(subject: Subject, reports: dict[str, Report], seed: int) -> MeasuredModel:
    """A model's numbers, with bootstrap intervals."""
    metrics, profile = {}, []
    for report in reports.values():
        for name, metric in report.metrics.items():
            low, high = report.estimates[name].interval(seed) if name in report.estimates else (None, None)
            metrics[name] = metric.model_copy(update={"low": low, "high": high})
        profile += [_with_intervals(row, report.estimates, seed) for row in report.profile]
    return MeasuredModel(
        name=subject.name,
        provenance=subject.provenance,
        notices=subject.notices,
        metrics=metrics,
        profile=profile,
        controls={what: report.controls for what, report in reports.items() if report.controls},
    )


def _with_intervals(row: dict[str, Any], estimates: dict[str, Estimate], seed: int) -> dict[str, Any]:
    found = dict(row)
    for quantity in row:
        estimate = estimates.get(f"{row['layer']}/{row['set']}/{quantity}")
        if estimate is not None:
            found[f"{quantity}_low"], found[f"{quantity}_high"] = estimate.interval(seed)
    return found


def _differences(models: list[MeasuredModel], estimates: list[dict[str, Estimate]], seed: int) -> list[Difference]:
    """Of every other model from the first, for each metric that both have."""
    found = []
    for model, own in list(zip(models, estimates, strict=True))[1:]:
        for name, metric in model.metrics.items():
            if name in own and name in estimates[0]:
                difference = own[name].minus(estimates[0][name])
                low, high = difference.interval(seed)
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

"""What a trial measures on its way: the numbers it reports, and that its training never notices."""

import json
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from equitune import catalog
from equitune.config.objectives import declared_metrics
from equitune.config.resources import Resources
from equitune.config.space import Call, filled
from equitune.config.trial import TrialConfig
from equitune.data.on_device import DeviceData
from equitune.data.splits import Splits
from equitune.driver import worker as trainable
from equitune.evaluation.image_set import EvaluationSet
from equitune.networks.build import build_model
from equitune.networks.cost import Cost
from equitune.records.folder import StudyFolder, TrialFolder, write_json
from equitune.records.reader import read_trial
from equitune.results.values import Epoch, TrialResult
from equitune.training import rung
from equitune.training.again import compared
from equitune.training.run import run_trial
from equitune.training.rung import Rungs, few_of_each

ALL = ("accuracy", "loss", "parameters", "multiply_adds", "seconds", "translation_error")


@pytest.fixture
def config(small_config: TrialConfig) -> TrialConfig:
    """A small CNN with dropout, measured after the first and the third of three epochs."""
    return small_config.model_copy(
        update={
            "model": small_config.model.model_copy(update={"name": "cnn", "args": {"width": 4, "dropout": 0.3}}),
            "training": small_config.training.model_copy(update={"epochs": 3}),
            "rungs": (1, 3),
            "rung_images": 12,
            "rung_metrics": ALL,
        }
    )


def trained(config: TrialConfig, data: DeviceData, path: Path, **options: Any) -> tuple[TrialResult, TrialFolder]:
    place = TrialFolder(path / "00000")
    place.path.mkdir(parents=True, exist_ok=True)
    return run_trial(config, data, folder=place, **options), place


def weights(place: TrialFolder) -> dict[str, bytes]:
    """Weights and buffers, bit for bit."""
    return {name: weight.numpy().tobytes() for name, weight in load_file(place.weights).items()}


def test_a_rung_s_metrics_stand_in_its_epoch_s_record(
    config: TrialConfig, small_data: DeviceData, tmp_path: Path
) -> None:
    seen: list[Epoch] = []
    result, place = trained(config, small_data, tmp_path, on_epoch=seen.append)
    assert seen == place.read_epochs()
    first, second, third = seen
    assert second.metrics == {}
    assert tuple(first.metrics) == tuple(third.metrics) == ALL
    assert first.metrics["accuracy"] == first.validation_accuracy
    assert first.metrics["loss"] == first.validation_loss
    assert first.metrics["seconds"] == first.train_s
    assert third.metrics["seconds"] == result.metrics["seconds"].value
    for name in ("accuracy", "parameters", "multiply_adds"):  # after the last epoch they are the trial's
        assert third.metrics[name] == result.metrics[name].value


def test_a_rung_that_sees_every_image_says_what_the_measure_says(
    config: TrialConfig, small_data: DeviceData, tmp_path: Path
) -> None:
    result, place = trained(config.model_copy(update={"rung_images": 40}), small_data, tmp_path)
    assert place.read_epochs()[2].metrics["translation_error"] == result.metrics["translation_error"].value
    few, place = trained(config, small_data, tmp_path / "few")
    assert place.read_epochs()[2].metrics["translation_error"] != few.metrics["translation_error"].value


def drawing(self: Rungs, model: nn.Module) -> dict[str, float]:
    """A measure that draws random numbers."""
    return {"translation_error": float(torch.rand(()))}


def measuring_in_training(self: Rungs, model: nn.Module) -> dict[str, float]:
    """A broken measure: statistics of batches move with every image."""
    with torch.no_grad():
        model.train()(torch.rand(8, 1, 16, 16))
    return {}


def unguarded(device: torch.device) -> AbstractContextManager[None]:
    return nullcontext()


@pytest.mark.parametrize(
    ("twin", "guard", "is_same"),
    [(None, None, True), (drawing, None, True), (drawing, unguarded, False), (measuring_in_training, None, False)],
)
def test_training_never_notices_a_rung(
    twin: Callable[..., Any] | None,
    guard: Callable[..., Any] | None,
    is_same: bool,
    config: TrialConfig,
    small_data: DeviceData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result, place = trained(config.model_copy(update={"rungs": (), "measures": ()}), small_data, tmp_path / "without")
    if twin:
        monkeypatch.setattr(Rungs, "_measured", twin)
    if guard:
        monkeypatch.setattr(rung, "undisturbed", guard)
    again, with_rungs = trained(config.model_copy(update={"rungs": (1, 2)}), small_data, tmp_path / "with")
    assert with_rungs.read_epochs()[1].metrics
    assert (weights(with_rungs) == weights(place)) is is_same
    assert (again.metrics["loss"] == result.metrics["loss"]) is is_same


@pytest.mark.parametrize("name", catalog.names("measure"))
def test_no_measure_disturbs_training(name: str, config: TrialConfig, small_data: DeviceData, tmp_path: Path) -> None:
    _, place = trained(config.model_copy(update={"rungs": (), "measures": ()}), small_data, tmp_path / "without")
    measure = filled("measure", Call(name=name))
    metrics = tuple(declared_metrics((measure,)))
    config = config.model_copy(update={"measures": (measure,), "rungs": (1,), "rung_metrics": metrics})
    _, with_rungs = trained(config, small_data, tmp_path / "with")
    assert with_rungs.read_epochs()[0].metrics
    assert weights(with_rungs) == weights(place)


class Stopped(BaseException):
    pass


def test_a_trial_that_goes_on_after_a_rung_ends_as_if_it_had_never_stopped(
    config: TrialConfig, small_data: DeviceData, tmp_path: Path
) -> None:
    whole, _ = trained(config, small_data, tmp_path / "whole")

    def stop(epoch: Epoch) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        trained(config, small_data, tmp_path, on_epoch=stop)
    resumed, place = trained(config, small_data, tmp_path)
    first, _, third = place.read_epochs()
    assert resumed.repeatable().model_dump() == whole.repeatable().model_dump()
    assert set(first.metrics) == set(third.metrics) == set(ALL)
    assert third.metrics["seconds"] == resumed.metrics["seconds"].value


def test_a_trial_with_rungs_is_the_same_when_it_runs_again(
    config: TrialConfig, small_data: DeviceData, tmp_path: Path
) -> None:
    records = []
    for name in ("then", "now"):
        _, place = trained(config, small_data, tmp_path / name)
        write_json(place.config, config.to_json())
        records.append((read_trial(place), place.weights))
    (then, weights_then), (now, weights_now) = records
    assert then.epochs[0].metrics["seconds"] != now.epochs[0].metrics["seconds"]
    found = compared(then, now, weights_then, weights_now, {})
    assert found is not None
    assert found.differences == []


def test_only_measures_that_are_asked_for_are_taken_and_one_that_fails_costs_its_metrics_alone(
    config: TrialConfig, small_data: DeviceData, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, entry = list[str](), catalog.entry

    def noting(kind: str, name: str) -> Callable[..., Any]:
        def measure(*args: Any, **options: Any) -> Any:
            taken.append(name)
            if name == "consistency":
                raise RuntimeError("a mistake")
            return entry(kind, name)(*args, **options)

        return measure

    measures = tuple(filled("measure", Call(name=name)) for name in ("equivariance", "consistency", "turned_accuracy"))
    asked = config.model_copy(update={"rung_metrics": ("translation_consistency", "translation_error", "nothing")})
    images = EvaluationSet(small_data.validation.pixels, small_data.validation.labels, "validation")
    model = build_model(config, small_data).eval()
    epoch = Epoch(
        epoch=1, time=0, train_loss=0, validation_loss=0, validation_accuracy=0, lr=0, train_s=0, images_per_s=0
    )
    monkeypatch.setattr(rung.catalog, "entry", noting)
    found = Rungs(asked.model_copy(update={"measures": measures}), images, Cost(1, 1)).metrics(model, epoch, 0.0)
    assert taken == ["equivariance", "consistency"]
    assert list(found) == ["translation_error"]


def test_a_few_images_of_each_class_are_the_same_for_every_model() -> None:
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)[torch.randperm(100)]
    images = EvaluationSet(torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1), labels, "validation")
    few = few_of_each(images, 20)
    assert Counter(few.labels.tolist()) == {0: 12, 1: 6, 2: 2}
    assert Counter(images.sample(20, seed=0).labels.tolist()) != {0: 12, 1: 6, 2: 2}  # which drawing at random misses
    torch.manual_seed(5)
    assert few_of_each(images, 20).pixels.tolist() == few.pixels.tolist()
    assert few.labels.tolist() == labels[few.pixels.flatten().long()].tolist()
    assert len(set(few.pixels.flatten().tolist())) == 20
    assert few_of_each(images, 100) is images


def test_a_worker_reports_what_was_measured(
    config: TrialConfig, small_splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[dict[str, Any]] = []
    monkeypatch.setattr(trainable.tune, "report", reports.append)
    study = StudyFolder(tmp_path / "small")
    write_json(study.driver, {"token": "ours"})
    place = study.trial(0)
    asked = {"folder": str(place.path), "trial": config.model_dump_json()}
    trainable.trainable(asked, small_splits, Resources(), "ours")
    assert [report["epoch"] for report in reports[:-1]] == [1, 2, 3]
    assert [json.loads(report["metrics"]) for report in reports[:-1]] == [one.metrics for one in place.read_epochs()]
    assert TrialResult.model_validate_json(reports[-1]["result"]).state == "COMPLETE"

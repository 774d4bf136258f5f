"""One trial in one process: the same numbers every time, also after an interruption, and every ending has its state."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from equitune.config.data_shape import DataShape
from equitune.config.objectives import BEFORE_TRAINING, Bound
from equitune.config.trial import TrainingConfig, TrialConfig
from equitune.data.on_device import DeviceData
from equitune.evaluation.image_set import EvaluationSet
from equitune.networks import blueprint
from equitune.networks.blueprint import describe
from equitune.networks.build import build_model
from equitune.records.folder import StudyFolder, TrialFolder
from equitune.records.reader import read_trial
from equitune.results.values import Epoch, Epochs, TrialResult
from equitune.training import run
from equitune.training.epoch import build_optimizer, learning_rate, num_batches, train_epoch
from equitune.training.run import run_trial
from equitune.training.test_split import measure_on_test


def folder(path: Path) -> TrialFolder:
    path = path / "00000"
    path.mkdir(parents=True, exist_ok=True)
    return TrialFolder(path)


def numbers(result: TrialResult) -> str:
    """Everything of a result but its times, bit for bit."""
    return json.dumps(result.repeatable().model_dump(mode="json"), sort_keys=True)


def with_training(config: TrialConfig, **values: object) -> TrialConfig:
    return config.model_copy(update={"training": config.training.model_copy(update=values)})


def test_what_is_said_of_a_network_is_recorded_and_never_costs_a_trial(
    small_config: TrialConfig, small_data: DeviceData, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run_trial(small_config, small_data)
    assert list(result.exact) == ["translation", "translation_substride", "c4", "d4"]  # the images have one channel
    assert result.exact["c4"].said == "stem.layer: its kernels of 3 x 3 are free to point anywhere"

    def fails(*_: object) -> None:
        raise KeyError("a mistake")

    monkeypatch.setattr(blueprint, "predict_exact", fails)
    without = run_trial(small_config, small_data)
    assert without.state == "COMPLETE"
    assert without.exact == {}
    assert without.repeatable().metrics == result.repeatable().metrics


def test_a_trial_gives_the_same_numbers_bit_for_bit(small_config: TrialConfig, small_data: DeviceData) -> None:
    first, second = (run_trial(small_config, small_data) for _ in range(2))
    assert first.state == "COMPLETE"
    assert numbers(first) == numbers(second)
    other = run_trial(small_config.model_copy(update={"seed": 1}), small_data)
    assert numbers(other) != numbers(first)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_an_interrupted_trial_goes_on_as_if_it_had_never_stopped(
    optimizer: str, small_config: TrialConfig, small_data: DeviceData, tmp_path: Path
) -> None:
    config = with_training(small_config, epochs=4, optimizer=optimizer)
    config = config.model_copy(
        update={"model": config.model.model_copy(update={"name": "cnn", "args": {"width": 4, "dropout": 0.3}})}
    )
    whole = run_trial(config, small_data)

    class Stopped(BaseException):
        pass

    def stop(epoch: Epoch) -> None:
        if epoch.epoch == 2:
            raise Stopped

    place = folder(tmp_path)
    with pytest.raises(Stopped):
        run_trial(config, small_data, folder=place, on_epoch=stop)
    assert [epoch.epoch for epoch in place.read_epochs()] == [1, 2]
    seen: list[int] = []
    resumed = run_trial(config, small_data, folder=place, on_epoch=lambda epoch: seen.append(epoch.epoch))
    assert seen == [3, 4]
    assert numbers(resumed) == numbers(whole)
    assert not place.checkpoint.exists()


def test_a_checkpoint_that_runs_code_is_refused(
    small_config: TrialConfig, small_data: DeviceData, tmp_path: Path
) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "harmed",))

    place = folder(tmp_path)
    torch.save({"epoch": 1, "model": Harmful()}, place.checkpoint)
    result = run_trial(small_config, small_data, folder=place)
    assert result.state == "FAILED"
    assert not (tmp_path / "harmed").exists()


def test_the_folder_holds_what_the_result_says(
    small_config: TrialConfig, small_data: DeviceData, tmp_path: Path
) -> None:
    place = folder(tmp_path)
    result = run_trial(small_config, small_data, folder=place)
    assert TrialResult.model_validate_json(place.result.read_bytes()) == result
    weights = load_file(place.weights)
    model = build_model(small_config, small_data)
    model.load_state_dict(weights)
    assert result.metrics["accuracy"].n == len(small_data.validation.labels)
    assert result.metrics["parameters"].value == sum(weight.numel() for weight in model.parameters())
    assert set(result.seconds) == {"build", "fit", "measure"}
    assert {row["set"] for row in result.profile} == {"lattice", "substride"}
    assert all(row["status"] == "ok" and "untrained_error" in row for row in result.profile)


def test_divergence_is_found_at_its_step(small_config: TrialConfig, small_data: DeviceData, tmp_path: Path) -> None:
    config = with_training(small_config, lr=1e30, optimizer="sgd", warmup_epochs=0.0)
    result = run_trial(config, small_data, folder=folder(tmp_path))
    assert (result.state, result.cause) == ("INFEASIBLE", "diverged")
    assert result.reason is not None
    assert "diverged: the loss is nan at step " in result.reason
    assert set(result.metrics) == set(BEFORE_TRAINING)
    step = int(result.reason.split("step ")[1])
    assert 1 < step <= 2 * num_batches(len(small_data.train.labels), 32)


def test_a_network_that_cannot_exist_is_infeasible(small_config: TrialConfig, small_data: DeviceData) -> None:
    config = small_config.model_copy(
        update={"model": small_config.model.model_copy(update={"args": {"depth": 9, "width": 2}})}
    )
    result = run_trial(config, small_data)
    sentence = "the depth of a resnet in 3 stages is 6n + 2 (8, 14, 20, ...), but got 9"
    assert (result.state, result.cause, result.reason) == ("INFEASIBLE", "no_network", sentence)


def test_a_network_outside_its_bounds_is_infeasible(small_config: TrialConfig, small_data: DeviceData) -> None:
    config = small_config.model_copy(update={"bounds": {"parameters": Bound(at_most=9)}})
    result = run_trial(config, small_data)
    assert (result.state, result.cause) == ("INFEASIBLE", "outside_bounds")
    assert "is above at_most 9" in (result.reason or "")


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "INFEASIBLE", "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), "INFEASIBLE", "out of memory"),
        (MemoryError(), "INFEASIBLE", "out of memory"),
        (ValueError("a bug"), "FAILED", "ValueError: a bug"),
    ],
)
def test_every_exception_has_its_state(
    error: Exception,
    state: str,
    reason: str,
    small_config: TrialConfig,
    small_data: DeviceData,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(run, "fit", broken)
    result = run_trial(small_config, small_data)
    assert result.state == state
    assert result.reason is not None
    assert result.reason.startswith(reason)
    assert (result.traceback is not None) == (state == "FAILED")


def test_a_full_disk_is_no_result_of_the_trial(
    small_config: TrialConfig, small_data: DeviceData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    place = folder(tmp_path)
    monkeypatch.setattr(TrialFolder, "append_epoch", full)
    with pytest.raises(OSError, match="No space left"):
        run_trial(small_config, small_data, folder=place)
    assert not place.result.exists()
    shutil.rmtree(place.path)
    with pytest.raises(OSError, match="No space left"):
        run_trial(small_config, small_data, folder=place)


def test_the_learning_rate_warms_up_and_comes_down_as_a_cosine() -> None:
    training = TrainingConfig(epochs=10, lr=1.0, warmup_epochs=2)
    rates = [learning_rate(training, step, 5) for step in range(50)]
    assert rates[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert rates[10] == 1
    for step in range(10, 50):
        assert rates[step] == pytest.approx(0.5 * (1 + math.cos(math.pi * (step - 10) / 40)))
    assert learning_rate(TrainingConfig(epochs=1, lr=1.0, warmup_epochs=5), 4, 5) == pytest.approx(5 / 26)


def test_weight_decay_acts_on_matrices_alone() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    decayed, free = build_optimizer(model, TrainingConfig(weight_decay=0.5)).param_groups
    assert ({p.ndim for p in decayed["params"]}, decayed["weight_decay"]) == ({4, 2}, 0.5)
    assert ({p.ndim for p in free["params"]}, free["weight_decay"]) == ({1}, 0.0)


def test_one_step_is_that_of_plain_torch(small_data: DeviceData) -> None:
    def net() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(256, 10))

    n = len(small_data.train.labels)
    plainest = {"epochs": 1, "optimizer": "sgd", "momentum": 0.0, "lr": 0.1, "warmup_epochs": 0.0, "weight_decay": 0.0}
    training = TrainingConfig(batch_size=n, clip_norm=0.01, label_smoothing=0.1, **plainest)  # type: ignore[arg-type]
    ours, plain = net(), net()
    loss = train_epoch(
        ours, small_data.train, [], training, build_optimizer(ours, training), torch.Generator().manual_seed(0)
    )
    expected = nn.functional.cross_entropy(
        plain(small_data.train.pixels / 255), small_data.train.labels, label_smoothing=0.1
    )
    expected.backward()
    norm = torch.stack([p.grad.norm() for p in plain.parameters()]).norm()  # type: ignore[union-attr]
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        step = 0.1 * theirs.grad * min(1.0, 0.01 / float(norm))  # type: ignore[operator]
        torch.testing.assert_close(mine, theirs - step, atol=1e-7, rtol=1e-5)


def test_cost_is_counted_without_computing(small_config: TrialConfig) -> None:
    cost = describe(small_config, DataShape((1, 16, 16), 10)).cost
    model = small_config.model_copy(
        update={"model": small_config.model.model_copy(update={"args": {"depth": 8, "width": 4}})}
    )
    wider = describe(model, DataShape((1, 16, 16), 10)).cost
    assert wider.parameters > cost.parameters
    # stem 9 * 256 * w, then per stage 2 (or 1.5) 3 x 3 layers: the convolutions of width w cost w^2, the stem w.
    assert 3 < wider.multiply_adds / cost.multiply_adds < 4


def test_the_test_split_is_measured_from_saved_weights(
    small_config: TrialConfig, small_data: DeviceData, small_splits: object, tmp_path: Path
) -> None:
    place = folder(tmp_path)
    result = run_trial(small_config, small_data, folder=place)
    metrics = measure_on_test(small_config, place, small_splits)  # type: ignore[arg-type]
    assert set(metrics) == {name for name, metric in result.metrics.items() if metric.split == "validation"}
    assert metrics["accuracy"].split == "test"
    assert metrics["accuracy"].n == 40


def test_a_sample_of_images_is_the_same_for_every_model() -> None:
    pixels = torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1)
    images = EvaluationSet(pixels, torch.arange(100), "validation")
    sample = images.sample(10, seed=0)
    assert sample.labels.tolist() == images.sample(10, seed=0).labels.tolist()
    assert sample.pixels.flatten().tolist() == sample.labels.tolist()
    assert images.sample(100, seed=0) is images


def test_the_epochs_of_a_trial_that_has_ended_read_as_they_were_written(recorded: Path) -> None:
    folder = StudyFolder(recorded / "small").trial(0)
    written, kept = folder.read_epochs(), read_trial(folder).epochs
    assert isinstance(kept, Epochs)
    assert list(kept) == written
    assert (len(kept), kept[-1], list(kept[:1])) == (len(written), written[-1], written[:1])
    assert kept == read_trial(folder).epochs

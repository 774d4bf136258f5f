"""The size of images as an axis of a study: every part that asks for a trial's shape is told the same one."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from equitune.cli import cli
from equitune.config.data_shape import DataShape
from equitune.config.load import load_study
from equitune.config.space import Call
from equitune.config.trial import InputConfig, TrialConfig
from equitune.data import split
from equitune.data.on_device import DeviceData
from equitune.data.resize import at_size
from equitune.data.split import resized
from equitune.data.splits import Splits, moments
from equitune.driver import run_here
from equitune.driver.run_here import MOST_SIZES, device_data
from equitune.errors import Infeasible, UserError
from equitune.measuring.compare import measure_models
from equitune.measuring.request import Request
from equitune.networks.blueprint import describe
from equitune.preflight.plan import require_feasible
from equitune.records.folder import StudyFolder, write_json
from equitune.training.run import run_trial
from equitune.training.speed import train_seconds_per_image
from equitune.training.test_split import measure_on_test


def at(config: TrialConfig, size: int | None, prior: str = "conv") -> TrialConfig:
    return config.model_copy(update={"input": InputConfig(size=size), "prior": Call(name=prior)})


def numbers(result: Any) -> str:
    return json.dumps(result.repeatable().model_dump(mode="json"), sort_keys=True)


def test_images_shrink_under_a_triangle_and_grow_between_their_neighbours() -> None:
    pixels = torch.randint(0, 256, (3, 2, 8, 8), dtype=torch.uint8)

    def halved(line: torch.Tensor) -> torch.Tensor:
        """Half the side: weights 1, 3, 3, 1 about each pair, what lies beyond the border left out (last axis)."""
        wide = torch.nn.functional.pad(line, (1, 1))
        seen = torch.nn.functional.pad(torch.ones_like(line), (1, 1))
        weights = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64)
        return (wide.unfold(-1, 4, 2) @ weights) / (seen.unfold(-1, 4, 2) @ weights)

    expected = halved(halved(pixels.double()).mT).mT
    found = resized(pixels, 4)
    assert found.dtype == torch.uint8
    assert float((found - expected).abs().max()) <= 0.5 + 1e-4  # rounded
    blunt = torch.nn.functional.interpolate(pixels.double(), (4, 4), mode="bilinear")  # the twin: not smoothed first
    assert float((blunt - expected).abs().max()) > 10
    grown = resized(pixels, 16)[..., 1, 1:3].double()  # a quarter of a pixel off the first row
    rows = 0.75 * pixels[..., 0, :].double() + 0.25 * pixels[..., 1, :].double()
    along = torch.stack([0.75 * rows[..., 0] + 0.25 * rows[..., 1], 0.25 * rows[..., 0] + 0.75 * rows[..., 1]], -1)
    assert float((grown - along).abs().max()) <= 0.5 + 1e-4
    assert resized(torch.full((1, 1, 9, 9), 77, dtype=torch.uint8), 5).unique().tolist() == [77]


def test_many_images_are_resized_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.randint(0, 256, (10, 1, 8, 8), dtype=torch.uint8)
    whole = resized(pixels, 7)
    monkeypatch.setattr(split, "CHUNK", 3)
    assert torch.equal(resized(pixels, 7), whole)
    assert torch.equal(resized(pixels[4:5], 7), whole[4:5])


def test_the_same_size_copies_nothing_and_changes_no_number(small_config: TrialConfig, small_data: DeviceData) -> None:
    assert at_size(small_data, InputConfig()) is small_data
    assert at_size(small_data, InputConfig(size=16)) is small_data
    as_they_are = numbers(run_trial(small_config, small_data))
    assert numbers(run_trial(at(small_config, 16), small_data)) == as_they_are
    assert numbers(run_trial(at(small_config, 15), small_data)) != as_they_are


def test_a_trial_at_a_size_is_that_trial_on_data_of_the_size(small_config: TrialConfig, small_data: DeviceData) -> None:
    """Also for a network that fits one size alone, and with the mean and deviation of what it sees."""
    own = replace(
        small_data,
        train=replace(small_data.train, pixels=resized(small_data.train.pixels, 13)),
        validation=replace(small_data.validation, pixels=resized(small_data.validation.pixels, 13)),
        data_shape=DataShape((1, 13, 13), 10),
    )
    mean, std = moments(own.train.pixels.numpy())
    own = replace(own, mean=mean, std=std)
    for prior in ("conv", "local"):
        expected = run_trial(at(small_config, None, prior), own)
        assert expected.state == "COMPLETE"
        assert numbers(run_trial(at(small_config, 13, prior), small_data)) == numbers(expected)
        assert numbers(run_trial(at(small_config, 13, prior), own)) == numbers(expected)  # as a worker hands them over
    blurred = at_size(small_data, InputConfig(size=8))
    images = blurred.train.pixels / 255
    assert float((images.mean() - blurred.mean[0]).abs()) < 1e-6
    assert float((images.std(correction=0) - blurred.std[0]).abs()) < 1e-6
    assert abs(blurred.std[0] - small_data.std[0]) > 0.01  # so it matters whose they are


def test_all_that_asks_for_the_shape_is_told_the_trial_s(small_config: TrialConfig) -> None:
    data, local = DataShape((1, 16, 16), 10), at(small_config, 12, "local")
    cost = describe(local, data).cost
    assert cost == describe(at(small_config, None, "local"), DataShape((1, 12, 12), 10)).cost
    assert cost != describe(at(small_config, None, "local"), data).cost
    assert train_seconds_per_image(local, data, steps=1) > 0
    circular = at(small_config, None).model_copy(update={"prior": Call(name="conv", args={"padding": "circular"})})
    assert describe(circular, data).exactness["translation"].broken_by is None
    odd = describe(circular.model_copy(update={"input": InputConfig(size=15)}), data).exactness["translation"].broken_by
    assert "does not divide the side of 15" in str(odd)
    pooled = at(small_config, 12).model_copy(update={"downsampler": Call(name="aps")})
    describe(pooled, data)
    with pytest.raises(Infeasible, match="aps needs maps of even side, but got 13 x 13"):
        describe(pooled.model_copy(update={"input": InputConfig(size=13)}), data)


def test_a_worker_resizes_once_a_size_and_keeps_a_few(
    small_config: TrialConfig, small_splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_here, "_on_device", {})
    made: list[int] = []
    monkeypatch.setattr(split, "resized", lambda pixels, side: made.append(side) or resized(pixels, side))
    plain = device_data(small_splits, small_config)
    assert device_data(small_splits, at(small_config, 16)) is plain
    assert made == []
    first = device_data(small_splits, at(small_config, 10))
    assert first.data_shape.image == (1, 10, 10)
    for size in range(11, 10 + MOST_SIZES):
        device_data(small_splits, at(small_config, size))
    assert device_data(small_splits, at(small_config, 10)) is first
    assert len(made) == 2 * MOST_SIZES  # training and validation images
    device_data(small_splits, at(small_config, 9))
    (kept,) = run_here._on_device.values()
    assert list(kept) == [(1, size, size) for size in (16, *range(11, 10 + MOST_SIZES), 9)]
    assert device_data(small_splits, small_config) is plain


def test_the_test_split_has_the_trial_s_size(
    small_config: TrialConfig, small_data: DeviceData, small_splits: Splits, tmp_path: Path
) -> None:
    place = StudyFolder(tmp_path).trial(0)
    place.path.mkdir(parents=True)
    config = at(small_config, 11, "local")  # runs at one size alone
    result = run_trial(config, small_data, folder=place)
    metrics = measure_on_test(config, place, small_splits)
    assert set(metrics) == {name for name, metric in result.metrics.items() if metric.split == "validation"}
    assert metrics["accuracy"].n == 40


STUDY = """\
study: sizes
data: {name: digits, size: 16, limit: 200}
input: {size: {choice: [13, 16]}}
model: {name: resnet, depth: 8, width: 2}
prior: local
training: {epochs: 1}
objectives: {accuracy: maximize}
search: {sampler: random, trials: 6}
"""


@pytest.fixture
def sizes(study_file: Callable[..., Path], small_data: DeviceData, tmp_path: Path) -> Path:
    """A root with a study, `sizes`, of a trial at 13 and one at 16."""
    spec = load_study(study_file(STUDY))
    folder = StudyFolder(tmp_path / "sizes")
    write_json(folder.study, {"study": spec.study, "objectives": {"accuracy": "maximize"}, "trials": 2})
    for number, end in enumerate((0, 1)):
        config = spec.suggest(number, lambda name, distribution, end=end: distribution.choice[end])  # type: ignore[misc]
        assert config.params == {"input.size": 13 + 3 * end}
        write_json(folder.trial(number).config, config.to_json())
        assert run_trial(config, small_data, folder=folder.trial(number)).state == "COMPLETE"
    return tmp_path


def test_a_recorded_trial_is_measured_at_its_own_size(sizes: Path) -> None:
    def shape(*models: str, **options: Any) -> list[int]:
        request = Request(models=models, measures=("consistency",), images=16, **options)
        return measure_models(request, root=sizes, folder=sizes / "out").data["shape"]  # type: ignore[no-any-return]

    assert shape("sizes/0") == [1, 13, 13]
    assert shape("sizes/1") == [1, 16, 16]
    assert shape("sizes/0", data="digits:size=20") == [1, 13, 13]
    assert shape("sizes/0", "resnet:depth=8,width=2") == [1, 13, 13]  # both see the same images
    sentence = "compared on the same images, but sizes/0 of 13 x 13 and sizes/1 of 16 x 16 px: measure each size by its"
    with pytest.raises(UserError, match=sentence):
        shape("sizes/0", "sizes/1")


def test_the_sizes_of_a_study_are_seen_in_its_plan_and_its_mistakes(study_file: Callable[..., Path]) -> None:
    path = study_file(STUDY)
    lines = CliRunner().invoke(cli, ["search", str(path), "--dry-run"]).output.splitlines()
    parameters = {line.split(": ")[1]: line.split(": ")[2] for line in lines if line.startswith("  trial")}
    assert set(parameters) == {"input.size 13", "input.size 16"}
    assert len(set(parameters.values())) == 2
    for override, sentence in (
        ("input.size=3", "input.size=3: must be >= 4, but got 3"),
        ("input.size={choice: [8, 2000]}", "must be <= 1024, but got 2000"),
        ("input.side=8", "input.side=8: unknown name 'side': did you mean 'size'?"),
    ):
        with pytest.raises(UserError) as caught:
            load_study(path, (override,))
        assert sentence in str(caught.value)
    with pytest.raises(UserError, match="no network of study sizes can be built for images of 5 x 5: a map of 2 x 2"):
        require_feasible(load_study(path, ("model={name: cnn}", "input.size=5")), DataShape((1, 16, 16), 10))


def test_studies_without_the_axis_are_what_they_were(
    study_file: Callable[..., Path], small_config: TrialConfig
) -> None:
    spec = load_study(study_file())
    assert "input" not in spec.identity()
    assert spec.fingerprint() != load_study(study_file(), ("input.size=16",)).fingerprint()
    before = {name: value for name, value in small_config.to_json().items() if name != "input"}
    assert TrialConfig.from_json_text(json.dumps(before)) == small_config

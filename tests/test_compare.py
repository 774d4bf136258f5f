"""Models on the same images: paired differences, what is refused before anything is measured, journals that are gone on from."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

from equitune import catalog
from equitune.data.splits import Split
from equitune.errors import UserError
from equitune.evaluation.image_set import EvaluationSet
from equitune.evaluation.report import Report
from equitune.measuring import compare, journal
from equitune.measuring.compare import measure_models
from equitune.measuring.images import Images, load_images
from equitune.measuring.journal import FileJournal, clear
from equitune.measuring.load import load_subject
from equitune.measuring.request import Request, calls_of
from equitune.results.measured import MeasurementRecord

DIGITS = "digits:size=12"


@pytest.fixture
def measured(recorded: Path, tmp_path: Path) -> Callable[..., MeasurementRecord]:
    """Measures with these options, a random network on a few digits where they say nothing else."""

    def run(**options: Any) -> MeasurementRecord:
        on_progress = options.pop("on_progress", lambda what, done, total: None)
        options = {"models": ("resnet:depth=8,width=2",), "data": DIGITS, "images": 16, **options}
        return measure_models(Request(**options), root=recorded, folder=tmp_path / "out", on_progress=on_progress)

    return run


Measured = Callable[..., MeasurementRecord]


def strict_json(record: MeasurementRecord) -> str:
    return json.dumps(record.model_dump(mode="json"), allow_nan=False)


# The journal.


class Interrupted(BaseException):
    """As Ctrl-C."""


class Memory:
    """A journal that keeps every batch, and interrupts after so many."""

    def __init__(self, interrupt_after: int = -1) -> None:
        self.left = interrupt_after
        self.kept: dict[str, tuple[int, dict[str, Tensor]]] = {}

    def find(self, stage: str) -> tuple[int, dict[str, Tensor]] | None:
        return self.kept.get(stage)

    def keep(self, stage: str, done: int, state: Callable[[], dict[str, Tensor]], *, is_last: bool) -> None:
        self.kept[stage] = done, {name: value.clone() for name, value in state().items()}
        self.left -= 1
        if not self.left:
            raise Interrupted

    def passed(self, done: int, total: int) -> None:
        pass


class Counting(nn.Module):
    """A network that notes how many images it is given at a time; probes are given one."""

    def __init__(self, network: nn.Module, seen: list[int]) -> None:
        super().__init__()
        self.network, self.seen = network, seen
        self.layers = {f"network.{name}": layout for name, layout in network.layers.items()}  # type: ignore[union-attr,operator]

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(len(images))
        return self.network(images)  # type: ignore[no-any-return]


def resnet(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return catalog.entry("model", "resnet")((1, 12, 12), 10, catalog.entry("prior", "conv")(), depth=8, width=2)  # type: ignore[no-any-return]


def reported(name: str, memory: Memory, seen: list[int]) -> Report:
    pixels = torch.randint(0, 256, (17, 1, 12, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = EvaluationSet(pixels, torch.arange(17) % 10, "test", batch_size=5, journal=memory)
    return catalog.entry("measure", name)(Counting(resnet(0), seen), Counting(resnet(1), seen), images)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["consistency", "equivariance", "lie_derivative", "stability"])
def test_a_measure_goes_on_from_any_batch_and_passes_no_image_twice(name: str) -> None:
    seen: list[int] = []
    whole = reported(name, Memory(), seen)
    in_batches = sum(count for count in seen if count > 1)
    for interrupt_after in (3, 4, 6):  # four batches a stage: within the first, at its end, within another
        memory, seen = Memory(interrupt_after), []
        with pytest.raises(Interrupted):
            reported(name, memory, seen)
        again = reported(name, memory, seen)
        assert (again.metrics, again.profile) == (whole.metrics, whole.profile)
        assert {key: each.influence_K.tolist() for key, each in again.estimates.items()} == {
            key: each.influence_K.tolist() for key, each in whole.estimates.items()
        }
        assert sum(count for count in seen if count > 1) == in_batches
    seen = []
    with pytest.raises(Interrupted):
        reported(name, Memory(3), seen)
    reported(name, Memory(), seen)  # the broken twin: a journal that forgets
    assert sum(count for count in seen if count > 1) > in_batches


@pytest.fixture
def interrupted(measured: Measured, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, int]]]:
    """Measures until so many batches have passed; returns them."""
    monkeypatch.setattr(journal, "PAUSE_S", -1.0)  # every batch is written
    monkeypatch.setattr(journal, "REST", 0)

    def run(batches: int, **options: Any) -> list[tuple[str, int]]:
        passed: list[tuple[str, int]] = []

        def stop(what: str, done: int, total: int) -> None:
            passed.append((what, done))
            if len(passed) == batches:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            measured(**options, on_progress=stop)
        return passed

    return run


Interrupt = Callable[..., list[tuple[str, int]]]
TWO = {"models": ("small/0", "small/1"), "data": None, "images": 20, "batch_size": 8}
BEHAVIOUR = {"measures": ("consistency",), "batch_size": 8}


def test_an_interrupted_measurement_goes_on_as_if_it_had_never_stopped(
    measured: Measured, interrupted: Interrupt, tmp_path: Path
) -> None:
    passed: list[tuple[str, int]] = []
    whole = measured(**TWO, on_progress=lambda what, done, total: passed.append((what, done)))
    assert len(passed) == 24  # 2 models, 2 measures, 2 networks each, 3 batches of 20 images
    for batches in (5, 21):
        clear(tmp_path / "out" / "journal")
        before, after = interrupted(batches, **TWO), []
        again = measured(**TWO, on_progress=lambda what, done, total, after=after: after.append((what, done)))
        assert strict_json(again) == strict_json(whole)
        assert before + after == passed


def test_what_was_kept_for_other_options_or_other_weights_is_not_gone_on_from(
    measured: Measured, interrupted: Interrupt, tmp_path: Path
) -> None:
    weights = {"0": load_subject("resnet:depth=8,width=2", (1, 12, 12), 10, root=tmp_path).model.state_dict()}
    weights["1"] = {name: 2 * value for name, value in weights["0"].items()}
    file = tmp_path / "w.safetensors"
    options = {"models": (f"resnet:depth=8,width=2@{file}",), **BEHAVIOUR}
    save_file(weights["1"], file)
    of_other_weights = measured(**options)
    clear(tmp_path / "out" / "journal")
    save_file(weights["0"], file)
    interrupted(3, **options)
    save_file(weights["1"], file)
    passed: list[int] = []
    assert measured(**options, on_progress=lambda what, done, total: passed.append(done)) == of_other_weights
    assert passed == [8, 16, 8, 16]
    save_file(weights["0"], file)
    for other in ({"batch_size": 4}, {"seed": 1}, {"dtype": "float64"}, {"images": 15}, {"layers": ("last",)}):
        passed = []
        measured(**{**options, **other}, on_progress=lambda what, done, total, passed=passed: passed.append(done))
        assert passed[0] == other.get("batch_size", 8)
    passed = []
    measured(**options, on_progress=lambda what, done, total: passed.append(done))
    assert passed == [16]  # its own are still there: of the untrained copy, the second batch is left


def test_a_torn_journal_is_begun_again(measured: Measured, interrupted: Interrupt, tmp_path: Path) -> None:
    whole = strict_json(measured(**BEHAVIOUR))
    of_another_version = save({"sums": torch.ones(2)}, {"images": "8"})
    for damaged in (lambda data: data[: len(data) // 2], lambda data: b"x" * 100, lambda data: of_another_version):
        clear(tmp_path / "out" / "journal")
        interrupted(3, **BEHAVIOUR)
        files = list((tmp_path / "out" / "journal").iterdir())
        for file in files:
            file.write_bytes(damaged(file.read_bytes()))
        assert len(files) == 2
        assert strict_json(measured(**BEHAVIOUR)) == whole


def test_journals_are_cleared_but_nothing_else(tmp_path: Path) -> None:
    kept = FileJournal(tmp_path / "journal", "key", "what", lambda *_: None)
    kept.keep("stage", 3, lambda: {"sums": torch.ones(2)}, is_last=True)
    (tmp_path / "journal" / ".0123456789abcdef.safetensors.17").write_bytes(b"cut off")
    (tmp_path / "journal" / "monday.txt").write_text("mine")
    clear(tmp_path / "journal")
    assert [path.name for path in (tmp_path / "journal").iterdir()] == ["monday.txt"]
    (tmp_path / "journal" / "monday.txt").unlink()
    clear(tmp_path / "journal")
    assert not (tmp_path / "journal").exists()
    clear(tmp_path / "journal")


def test_sums_that_take_long_to_write_are_written_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, written = [0.0], []

    def write(path: Path, data: bytes) -> None:
        written.append(now[0])
        now[0] += 4  # seconds

    monkeypatch.setattr(journal.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(journal, "write_whole", write)
    kept = FileJournal(tmp_path, "key", "what", lambda *_: None)
    for second in range(1, 200):
        now[0] = max(now[0], second)
        kept.keep("stage", second, lambda: {"sums": torch.ones(2)}, is_last=False)
    assert written == [11, 56, 101, 146, 191]  # after 10 s, then each 40 s after the last was done


# Paired differences.


def quantiles(values: Any) -> tuple[float, float, float]:
    """The ends of a 95 % interval, and the standard deviation."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high), float(np.std(values))


def test_paired_intervals_are_those_of_an_independent_bootstrap(
    measured: Measured, recorded: Path, tmp_path: Path
) -> None:
    """The definitions M1 and M2 on resampled features, in numpy; the broken twin resamples each model by itself."""
    trained = load_file(recorded / "small" / "trials" / "00001" / "weights.safetensors")
    noise = torch.Generator().manual_seed(0)
    moved = {name: value + 0.02 * torch.randn(value.shape, generator=noise) for name, value in trained.items()}
    models = []
    for name, weights in (("a", trained), ("b", moved | {"normalise.mean": trained["normalise.mean"]})):
        save_file(weights, tmp_path / f"{name}.safetensors")
        models.append(f"resnet:depth=8,width=4@{tmp_path / name}.safetensors")
    record = measured(
        models=tuple(models), data="digits", images=80, groups=("flip",), measures=("equivariance",), layers=("last",)
    )
    split = load_images("digits", "test", None).split
    chosen = EvaluationSet(torch.from_numpy(split.pixels), torch.from_numpy(split.labels), "test").sample(80, 0).pixels
    features = [mirrored_features(text, chosen.float() / 255, recorded) for text in models]  # [model][mirror] -> (a, b)
    by_name = {each.metric: each for each in record.differences}
    rng = np.random.default_rng(7)
    draws = [rng.multinomial(80, [1 / 80] * 80) for _ in range(1000)]
    for metric, statistic in (("flip_correlation", correlation), ("flip_error", error)):
        found = by_name[metric]

        def of(model: int, weights: Any, statistic: Any = statistic) -> float:
            return float(np.mean([statistic(a, b, weights) for a, b in features[model]]))

        assert found.value == pytest.approx(of(1, np.ones(80)) - of(0, np.ones(80)), rel=1e-4)
        paired = [of(1, weights) - of(0, weights) for weights in draws]
        low, high, spread = quantiles(paired)
        # An end of a 95 % interval from 1,000 resamples has a standard deviation of 0.085 spreads: here 4 of two such.
        assert abs(found.low - low) < 0.5 * spread  # type: ignore[operator]
        assert abs(found.high - high) < 0.5 * spread  # type: ignore[operator]
        assert found.stderr == pytest.approx(spread, rel=0.1)
        unpaired = [of(1, one) - of(0, other) for one, other in zip(draws, draws[1:] + draws[:1], strict=True)]
        assert quantiles(unpaired)[2] > 2 * spread
        low, high, _ = quantiles(unpaired)
        assert abs(found.low - low) > 0.5 * spread  # type: ignore[operator]


def mirrored_features(text: str, images: Tensor, root: Path) -> list[tuple[Any, Any]]:
    """Of both mirrors: f(g x) and g f(x) at layer `last`, (n, C, P) in float64."""
    model = load_subject(text, (1, 16, 16), 10, root=root).model
    seen: list[Tensor] = []
    model.get_submodule("last").register_forward_hook(lambda module, args, output: seen.append(output))
    pairs = []
    with torch.no_grad():
        for axis in (-1, -2):
            model(images.flip(axis))
            model(images)
            plain, moved = seen.pop(), seen.pop()
            pairs.append(tuple(maps.flatten(1, -3).flatten(2).double().numpy() for maps in (moved, plain.flip(axis))))
    return pairs


def correlation(a: Any, b: Any, weights: Any) -> float:
    """M1, centred per channel over images and positions."""
    a, b = (each - np.average(each.mean(2), axis=0, weights=weights)[:, None] for each in (a, b))
    ab, aa, bb = (weights @ (x * y).sum((1, 2)) for x, y in ((a, b), (a, a), (b, b)))
    return float(ab / np.sqrt(aa * bb))


def error(a: Any, b: Any, weights: Any) -> float:
    """M2, over all pairs of two different images."""
    flat_a, flat_b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    distances = (flat_a**2).sum(1)[:, None] + (flat_b**2).sum(1) - 2 * flat_a @ flat_b.T
    pairs = np.outer(weights, weights) * (1 - np.eye(len(a)))
    return float(np.average(np.diag(distances), weights=weights) / np.average(distances, weights=pairs))


def test_the_same_model_twice_differs_by_nothing(measured: Measured) -> None:
    record = measured(models=("small/0", "small/0", "small/1"), data=None)
    same = [each for each in record.differences if each.model == "small/0"]
    assert {each.metric for each in same} == {
        name for name, metric in record.models[0].metrics.items() if metric.value is not None
    }
    assert {(each.value, each.stderr, each.low, each.high) for each in same} == {(0.0, 0.0, 0.0, 0.0)}
    other = {each.metric: each for each in record.differences if each.model == "small/1"}
    assert other["translation_error"].low < other["translation_error"].value < other["translation_error"].high  # type: ignore[operator]


def test_models_of_other_strides_and_classes_see_the_same_shifts(measured: Measured, tmp_path: Path) -> None:
    classes = load_subject("cnn:width=2", (1, 12, 12), 7, root=tmp_path)  # of weights for seven classes
    save_file(classes.model.state_dict(), tmp_path / "cnn.safetensors")
    texts = ("resnet:depth=8,width=2", f"cnn:width=2@{tmp_path / 'cnn.safetensors'}", "vit:patch=3,depth=1,width=8")
    record = measured(models=texts)
    shifts = [
        {(row["set"], *row["elements"]) for row in model.profile if row["measure"] == "equivariance"}
        for model in record.models
    ]
    strides = [max(row["stride"] for row in model.profile) for model in record.models]
    assert strides == [4, 2, 3]
    assert shifts[0] == shifts[1] == shifts[2]
    assert ("substride", "shift (1, 0) px", "shift (0, 1) px") in shifts[0]
    assert all(model.metrics["translation_error"].status == "undefined" for model in record.models)  # 12 px of 12
    together = measured(models=(texts[0], "vit:patch=6,depth=1,width=8"), data="digits:size=24")
    assert {
        tuple(row["elements"]) for model in together.models for row in model.profile if row["set"] == "lattice"
    } == {("shift (12, 0) px", "shift (-12, 0) px", "shift (0, 12) px", "shift (0, -12) px")}
    assert "the network has 7 classes and the data 10" in record.models[1].notices[0]
    assert record.models[1].metrics["translation_consistency"].value is not None
    assert record.models[1].metrics["translation_orbit_accuracy"].reason == (
        "6 of 16 images have no label among the model's classes"
    )


# What is measured.


def test_each_measure_is_called_once_for_each_group_that_it_takes() -> None:
    def calls(**options: Any) -> list[tuple[str, Any]]:
        return [(call.name, call.args) for call in calls_of(Request(models=("m",), **options), 8)]

    (equivariance, args), (consistency, _) = calls()
    assert (equivariance, consistency) == ("equivariance", "consistency")
    assert (args["group"], args["lattice_px"], args["most_images"]) == ("translation", 8, 512)
    assert [args["group"] for _, args in calls(groups=("flip", "d4"))] == ["flip", "d4", "flip", "d4"]
    ((_, args),) = calls(measures=("equivariance:lattice_px=4,all_sets=true",), images=9)
    assert (args["lattice_px"], args["all_sets"], args["most_images"]) == (4, True, 9)
    ((_, args),) = calls(measures=("equivariance:most_images=5",), images=9)
    assert args["most_images"] == 5
    named = calls(measures=("equivariance", "lie_derivative:group=scale", "stability"), groups=("flip",))
    assert [(name, args.get("group")) for name, args in named] == [
        ("equivariance", "flip"),
        ("lie_derivative", "scale"),
        ("stability", None),
    ]
    both = calls(measures=("stability:kind=translation", "stability:kind=diffeomorphism"))
    assert [args["kind"] for _, args in both] == ["translation", "diffeomorphism"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"device": "cuda"}, "--device cuda: torch finds no GPU here"),
        ({"data": None}, "resnet:depth=8,width=2 says nothing of images: name some with --data: cifar10, "),
        ({"data": "digts"}, "--data: unknown data set or folder 'digts': did you mean 'digits'"),
        ({"data": "digits:sise=3"}, "--data digits:sise=3: sise: unknown name 'sise': did you mean 'size'"),
        ({"size": 9}, "--size is for folders of images: digits:size=12 has a size of its own"),
        ({"models": ("small/0",), "data": None, "size": 9}, "--size is for folders of images: those of small/0 have"),
        ({"measures": ("equivarance",)}, "unknown measure 'equivarance': did you mean 'equivariance'"),
        ({"measures": ("stability:kin=x",)}, "--measure stability:kin=x: kin: unknown name 'kin'"),
        ({"groups": ("flip",), "measures": ("stability",)}, "--group flip: none of the measures takes it: stability"),
        (
            {"measures": ("equivariance", "equivariance:all_sets=true")},
            "translation_error would be measured twice: name equivariance of translation once",
        ),
        ({"measures": ("lie_derivative:group=flip",)}, "group: must be one of 'translation', 'rotation'"),
        ({"groups": ("hue",)}, "--group hue cannot act on these images of 1 x 12 x 12: a hue needs 3 channels"),
        (
            {"layers": ("stages.*", "stages.1.1")},
            "--layers: no layer of resnet:depth=8,width=2 is like 'stages.1.1': nearest: stages.1.0, ",
        ),
        (
            {"measures": ("consistency:max_shift_px=12",)},
            "consistency of translation has no value: too_small: consistency.max_shift_px: must be smaller than",
        ),
        ({"mean": (0.5, 0.5)}, "mean is 1 or 1 finite numbers, but got"),
        ({"models": ("small/0",), "mean": (0.5,)}, "small/0: a recorded trial keeps the mean and std of its data"),
        ({"special_tokens": 1}, "special tokens are those of a transformer"),
    ],
)
def test_mistakes_are_found_before_anything_is_measured(
    options: dict[str, Any], sentence: str, measured: Measured, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as said:
        measured(**options)
    assert sentence in str(said.value)
    assert not (tmp_path / "out").exists()


def test_layers_are_those_that_match_in_some_model_and_the_output(measured: Measured) -> None:
    record = measured(
        models=("resnet:depth=8,width=2", "vit:patch=4,depth=2,width=8"), layers=("stages.1*", "blocks.0")
    )
    layers = [list(dict.fromkeys(row["layer"] for row in model.profile)) for model in record.models]
    assert layers == [["stages.1.0", "output"], ["blocks.0", "output"]]


def test_double_precision_is_measured_against_its_own_floor(measured: Measured) -> None:
    record = measured(models=("resnet:depth=8,width=2,prior.padding=circular",), dtype="float64")
    rows = [row for row in record.models[0].profile if row["set"] == "lattice"]
    assert {(row["dtype"], row["verdict"]) for row in rows} == {("float64", "exact")}
    assert record.models[0].controls["equivariance of translation"]["floor"] < 1e-15
    assert 0 < max(row["error"] for row in rows) < 1e-28  # squares of rounding: in float32 1e-13


def test_a_lattice_that_no_image_holds_is_one_sentence(measured: Measured) -> None:
    models = ("resnet:depth=8,width=2", "vit:patch=3,depth=1,width=8")  # strides of 4 and 3 px: of both, 12
    metrics = measured(models=models, measures=("equivariance",)).models[0].metrics
    reasons = {metric.reason for metric in metrics.values() if metric.status == "undefined"}
    assert reasons == {
        "no lattice element exists for a total stride of 12 px on images of 12 px: measure layers of smaller strides, "
        "or larger images"
    }


def test_two_images_have_intervals_where_resamples_have_values(measured: Measured) -> None:
    record = measured(
        models=("small/0", "small/1"), data=None, images=2, batch_size=1, measures=("lie_derivative", "stability")
    )
    metrics = record.models[0].metrics
    assert (metrics["translation_output_lie_derivative"].low, metrics["translation_output_lie_derivative"].high) == (
        None,
        None,
    )
    assert metrics["translation_lie_error"].low is not None
    assert MeasurementRecord.model_validate_json(strict_json(record)) == record


def test_classes_that_never_change_have_a_status_and_no_verdict(measured: Measured, tmp_path: Path) -> None:
    state = load_subject("resnet:depth=8,width=2", (1, 12, 12), 10, root=tmp_path).model.state_dict()
    save_file({name: torch.zeros_like(value) if name.startswith("output") else value for name, value in state.items()}, tmp_path / "w.safetensors")  # fmt: skip
    record = measured(models=(f"resnet:depth=8,width=2@{tmp_path / 'w.safetensors'}",))
    assert record.models[0].metrics["translation_output_error"].status == "collapsed"
    assert record.models[0].metrics["translation_consistency"].value == 1
    strict_json(record)


# Images.


def folder_of_images(path: Path, mode: str = "RGB", classes: tuple[str, ...] = ("a", "b"), n: int = 4) -> Path:
    rng = np.random.default_rng(0)
    for name in classes:
        (path / name).mkdir(parents=True, exist_ok=True)
        for number in range(n):
            pixels = rng.integers(0, 256, (20, 17, 3), np.uint8)
            Image.fromarray(pixels).convert(mode).save(path / name / f"{number}.png")
    return path


def test_images_without_labels_have_what_needs_none(measured: Measured, tmp_path: Path) -> None:
    folder = folder_of_images(tmp_path / "flat", classes=("",), n=6)
    record = measured(data=str(folder), size=13, images=None)
    metrics = record.models[0].metrics
    assert {name for name, metric in metrics.items() if "6 of 6 images have no label" in str(metric.reason)} == {
        "translation_consistent_and_correct",
        "translation_orbit_accuracy",
    }
    assert metrics["translation_consistency"].value is not None
    assert record.models[0].notices == ["no weights were given: the network is random"]
    assert record.data["shape"] == [3, 13, 13]


def test_a_hue_moves_coloured_images_and_not_grey_ones(measured: Measured, tmp_path: Path) -> None:
    options = {"size": 12, "images": None, "groups": ("hue",)}
    coloured = measured(data=str(folder_of_images(tmp_path / "rgb")), **options)
    assert coloured.models[0].metrics["hue_error"].value > 0.01  # type: ignore[operator]
    with pytest.raises(UserError, match="--group hue cannot act on these images of 3 x 12 x 12: no element changes"):
        measured(data=str(folder_of_images(tmp_path / "grey", "L")), **options)


def test_folders_that_cannot_be_measured_are_said(measured: Measured, tmp_path: Path) -> None:
    folder = folder_of_images(tmp_path / "broken")
    (folder / "a" / "bad.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"1 images cannot be decoded: .*bad.png \(UnidentifiedImageError\)"):
        measured(data=str(folder))
    with pytest.raises(UserError, match="one has 1 image: two or more are needed"):
        measured(data=str(folder_of_images(tmp_path / "one", classes=("",), n=1)))
    with pytest.raises(UserError, match="--split is for data sets: the folder .* is taken whole"):
        measured(data=str(folder_of_images(tmp_path / "rgb")), split="train")


def test_a_folder_does_not_take_the_place_of_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder_of_images(tmp_path / "digits")
    assert load_images("digits", "test", None).shape == (1, 12, 12)
    assert load_images("./digits", "test", 9).shape == (3, 9, 9)


def test_a_rotation_needs_square_images(measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 1, 12, 16), np.uint8)
    images = Images("wide", "test", Split(pixels, np.arange(4)), 10, "")
    monkeypatch.setattr(compare, "_images", lambda request, root: images)
    with pytest.raises(UserError, match="--group rotation cannot act on these images of 1 x 12 x 16: "):
        measured(groups=("rotation",))
    assert measured().models[0].metrics["translation_error"].value is not None


def test_a_trial_on_images_that_are_not_its_own_is_noticed(measured: Measured) -> None:
    notice = "these are not the images that were held out from it: some may have trained it"
    assert measured(models=("small/0",), data=None).models[0].notices == []
    assert measured(models=("small/0",), data="digits").models[0].notices == [notice]


# Networks that cannot be measured.


@pytest.mark.parametrize(("factor", "said"), [(math.nan, "w.safetensors: a weight is a dense tensor of real, finite numbers, but stages.1.0.conv1.layer.weight has entries that are not finite"), (1e30, "features are not finite from layer stages.1.0 on: its weights are finite, but too large")])  # fmt: skip
def test_features_that_are_not_finite_name_the_first_bad_layer(
    factor: float, said: str, measured: Measured, tmp_path: Path
) -> None:
    state = load_subject("resnet:depth=8,width=2", (1, 12, 12), 10, root=tmp_path).model.state_dict()
    for name in ("stages.1.0.conv1.layer.weight", "stages.1.0.conv2.layer.weight"):
        assert name in state
        state[name] = state[name] * factor
    save_file(state, tmp_path / "w.safetensors")
    text = f"resnet:depth=8,width=2@{tmp_path / 'w.safetensors'}"
    with pytest.raises(UserError, match=said):
        measured(models=(text,))


def test_a_device_without_memory_asks_for_a_smaller_batch(measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(compare.catalog, "entry", lambda kind, name, entry=catalog.entry: full if kind == "measure" else entry(kind, name))  # fmt: skip
    with pytest.raises(UserError, match="the memory is too small: give a smaller --batch than 128"):
        measured()

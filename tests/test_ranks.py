"""One trial in several processes: the same numbers as in one, every rank ends when one does. Processes on loopback."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equitune import catalog
from equitune.config.space import Call
from equitune.config.trial import TrialConfig
from equitune.data.on_device import DeviceData, to_device
from equitune.data.splits import Splits
from equitune.errors import GivenUp, WorkerLost
from equitune.evaluation.image_set import EvaluationSet
from equitune.networks.build import build_augmentation, build_model
from equitune.networks.device import make_deterministic, require_sound
from equitune.records.folder import TrialFolder
from equitune.results.values import Epoch, TrialResult
from equitune.training import run
from equitune.training.epoch import fit
from equitune.training.ranks import ALONE, Ranks, meeting, met
from equitune.training.run import run_trial, train_along

EXACT = (
    1e-7  # relative, of weights after 12 steps in double precision: AdamW divides the smallest gradients by themselves
)


class NotAveraged(Ranks):
    """A broken twin: each rank follows its own gradient."""

    def spread(self, model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return model


class SamePart(Ranks):
    """A broken twin: every rank trains on the first one's images."""

    def _mine(self, n: int) -> slice:
        return slice(0, n // self.count)


class Summed(Ranks):
    """A broken twin: gradients are added up, so that each step is as long as two."""

    def scaled(self, loss: Tensor, batch_size: int) -> Tensor:
        return loss * self.count


class OwnStatistics(Ranks):
    """A broken twin: batch normalisation and dropout see a rank's own images alone."""

    def whole_batch(self, n: int) -> AbstractContextManager[Any]:
        return nullcontext()


class OwnDraws(Ranks):
    """A broken twin: augmentation draws for a rank's own images alone."""

    def in_place(self, images: Tensor, batch_size: int) -> Tensor:
        return images

    def part(self, batch: Tensor) -> Tensor:
        return batch if len(batch) < 32 else super().part(batch)


class Doubled(nn.Module):
    """A model in double precision."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.double()

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.model(images.double())
        return scores


def trained(config: TrialConfig, splits: Splits, ranks: Ranks) -> dict[str, Tensor]:
    """Weights and statistics after training, in double precision."""
    data = to_device(splits, "cpu")
    model = Doubled(build_model(config, data))
    validation = EvaluationSet(data.validation.pixels, data.validation.labels, "validation")
    with ranks.joined("cpu"):
        fit(model, data.train, validation, build_augmentation(config), config.training, seed=config.seed, ranks=ranks)
    return model.state_dict()


def elsewhere(
    function: Callable[..., Any], *arguments: Any, port: int, kind: type[Ranks], number: int, count: int
) -> Any:
    """Calls a function as one of the other ranks."""
    make_deterministic("cpu")
    return function(*arguments, kind(number, count, lambda: met(port)))


@pytest.fixture(scope="module")
def others() -> Iterator[list[ProcessPoolExecutor]]:
    """Two processes beside this one."""
    started = [ProcessPoolExecutor(1, get_context("spawn")) for _ in range(2)]
    yield started
    for each in started:
        for process in list((each._processes or {}).values()):
            process.kill()  # one that still waits for the others would wait on
        each.shutdown()


@pytest.fixture
def together(others: list[ProcessPoolExecutor]) -> Callable[..., Any]:
    """Calls a function as the first rank, and the same one (or another) as the others."""

    def call(
        function: Callable[..., Any], *arguments: Any, count: int = 2, kind: type[Ranks] = Ranks, along: Any = None
    ) -> tuple[Any, list[Any]]:
        store = meeting()
        named = {"port": store.port, "kind": kind, "count": count}
        theirs = [
            others[number - 1].submit(elsewhere, along or function, *arguments, number=number, **named)
            for number in range(1, count)
        ]
        try:
            mine = function(*arguments, kind(0, count, lambda: met(store.port)))
        except Exception as error:
            mine = type(error), str(error)  # not the error, whose frames hold the connections
        return mine, [each.exception(300) or each.result() for each in theirs]

    return call


def changed(config: TrialConfig, training: dict[str, Any] | None = None, **values: Any) -> TrialConfig:
    plain = {"optimizer": "sgd", "momentum": 0.9, "lr": 0.05, "clip_norm": 1.0, "label_smoothing": 0.1, "epochs": 3}
    values["training"] = config.training.model_copy(update=plain | (training or {}))
    return config.model_copy(update=values)


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """How far two sets of weights lie apart, relative to the largest of each tensor."""
    return max(
        float((one[name].double() - other[name].double()).abs().max() / one[name].double().abs().max().clamp(min=1e-3))
        for name in one
    )


CNN = Call(name="cnn", args={"width": 4, "dropout": 0.3})
TWINS = {
    "training": {"clip_norm": None, "epochs": 1},
    "augmentation": (Call(name="translate", args={"max_px": 2.0}),),
}
MODELS: dict[str, dict[str, Any]] = {
    "resnet, whose norms see the batch": {},
    "dropout": {"model": CNN},
    "a penalty": {"prior": Call(name="nonstationary", args={"learned": True}), "training": {"symmetry_penalty": 0.5}},
    "entries left out at random": {"model": CNN, "prior": Call(name="partial_p4", args={"learned": True})},
    "adamw": {"training": {"optimizer": "adamw", "lr": 1e-3, "clip_norm": None}},
    "as the broken twins": TWINS,
    "fewer images than a batch": {"training": {"batch_size": 256}},
}


@pytest.mark.parametrize("name", MODELS)
def test_two_ranks_train_what_one_process_does(
    name: str, small_config: TrialConfig, small_splits: Splits, together: Callable[..., Any]
) -> None:
    config = changed(small_config, **MODELS[name])
    alone = trained(config, small_splits, ALONE)
    mine, (theirs,) = together(trained, config, small_splits)
    assert furthest(alone, mine) < EXACT
    assert furthest(mine, theirs) == 0.0


def test_three_ranks_share_a_batch_unequally(
    small_config: TrialConfig, small_splits: Splits, together: Callable[..., Any]
) -> None:
    config = changed(small_config)  # 10, 11 and 11 of 32 images
    mine, theirs = together(trained, config, small_splits, count=3)
    assert furthest(trained(config, small_splits, ALONE), mine) < EXACT
    assert [furthest(mine, each) for each in theirs] == [0.0, 0.0]


@pytest.mark.parametrize("twin", [NotAveraged, SamePart, Summed, OwnStatistics, OwnDraws])
def test_broken_twins_train_something_else(
    twin: type[Ranks], small_config: TrialConfig, small_splits: Splits, together: Callable[..., Any]
) -> None:
    config = changed(small_config, **TWINS)
    mine, _ = together(trained, config, small_splits, kind=twin)
    assert furthest(trained(config, small_splits, ALONE), mine) > 1e3 * EXACT


def recorded(config: TrialConfig, splits: Splits, path: Path, ranks: Ranks) -> str:
    """A whole trial, as its first rank records it, but for its times."""
    result = run_trial(config, to_device(splits, "cpu"), folder=TrialFolder(path), ranks=ranks)
    return json.dumps(result.repeatable().model_dump(mode="json"), sort_keys=True)


def along(config: TrialConfig, splits: Splits, path: Path, ranks: Ranks) -> TrialResult | None:
    return train_along(config, lambda: to_device(splits, "cpu"), ranks)


def interrupted(config: TrialConfig, splits: Splits, path: Path, ranks: Ranks) -> None:
    def stop(epoch: Epoch) -> None:
        if epoch.epoch == 2:
            raise GivenUp

    run_trial(config, to_device(splits, "cpu"), folder=TrialFolder(path), on_epoch=stop, ranks=ranks)


def broken(config: TrialConfig, splits: Splits, path: Path, ranks: Ranks) -> TrialResult | None:
    """As a rank that has no memory left after its first epoch."""

    @contextmanager
    def full(self: Ranks) -> Iterator[bool]:
        yield False
        raise MemoryError("none left")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ranks, "led", full)
        return along(config, splits, path, ranks)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "00000").mkdir()
    return tmp_path / "00000"


def test_an_interrupted_trial_goes_on_as_if_it_had_never_stopped(
    small_config: TrialConfig, small_splits: Splits, together: Callable[..., Any], tmp_path: Path, place: Path
) -> None:
    config = changed(small_config, model=CNN)
    (tmp_path / "00001").mkdir()
    whole, (nothing,) = together(recorded, config, small_splits, tmp_path / "00001", along=along)
    assert nothing is None
    assert TrialResult.model_validate_json(whole).provenance["workers"] == "2"
    (error, _), (dismissed,) = together(interrupted, config, small_splits, place, along=along)
    assert error is GivenUp
    assert dismissed is None  # it has heard that the first one left
    assert [epoch.epoch for epoch in TrialFolder(place).read_epochs()] == [1, 2]
    assert together(recorded, config, small_splits, place, along=along)[0] == whole
    assert [epoch.epoch for epoch in TrialFolder(place).read_epochs()] == [1, 2, 3]


def test_divergence_ends_every_rank_at_the_same_step(
    small_config: TrialConfig, small_splits: Splits, together: Callable[..., Any], place: Path
) -> None:
    config = changed(small_config, {"lr": 1e30, "clip_norm": None, "warmup_epochs": 0.0})
    alone = json.loads(recorded(config, small_splits, place, ALONE))
    mine, (theirs,) = together(recorded, config, small_splits, place, along=along)
    assert json.loads(mine)["reason"] == theirs.reason == alone["reason"]
    assert (theirs.state, theirs.cause) == ("INFEASIBLE", "diverged")


def test_a_rank_that_goes_is_the_loss_of_a_worker_not_a_failure(
    small_config: TrialConfig, small_splits: Splits, together: Callable[..., Any], place: Path
) -> None:
    config = changed(small_config)
    (error, text), (theirs,) = together(recorded, config, small_splits, place, along=broken)
    assert error is WorkerLost
    assert text.startswith("another worker of the trial has gone: ")
    assert not TrialFolder(place).result.exists()
    assert (theirs.state, theirs.cause, theirs.reason) == ("INFEASIBLE", "out_of_memory", "out of memory: none left")


@pytest.mark.parametrize("name", catalog.names("augmentation"))
def test_each_image_is_augmented_as_in_one_process(name: str) -> None:
    augment = catalog.entry("augmentation", name)
    images = torch.rand(8, 3, 12, 12)
    whole = augment(images, torch.Generator().manual_seed(0))
    ranks = [Ranks(number, 3) for number in range(3)]
    parts = [
        rank.part(augment(rank.in_place(rank.part(images), 8), torch.Generator().manual_seed(0))) for rank in ranks
    ]
    assert torch.equal(torch.cat(parts), whole)


# devices


ECC = "CUDA error: uncorrectable ECC error encountered"
POISONED = [
    torch.AcceleratorError(ECC),
    torch.AcceleratorError("CUDA error: device-side assert triggered\nCompile with `TORCH_USE_CUDA_DSA`"),
    RuntimeError("CUDA error: no CUDA-capable device is detected"),
    RuntimeError("No CUDA GPUs are available"),
]


@pytest.mark.parametrize("error", POISONED, ids=str)
def test_a_device_that_fails_loses_the_worker_and_not_the_trial(
    error: RuntimeError, small_config: TrialConfig, small_data: DeviceData, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(run, "fit", fails)
    monkeypatch.setattr(torch.cuda, "synchronize", fails)
    monkeypatch.setattr(run, "require_sound", lambda _, error: require_sound("cuda", error))
    with pytest.raises(WorkerLost, match=f"does not answer any more: {str(error).splitlines()[0]}"):
        run_trial(small_config, small_data, folder=TrialFolder(place))
    assert not TrialFolder(place).result.exists()


@pytest.mark.parametrize(
    ("error", "state", "cause"),
    [
        (ValueError("an ordinary mistake"), "FAILED", None),
        (RuntimeError("CUDA error: invalid configuration argument"), "FAILED", None),  # the device is sound
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "INFEASIBLE", "out_of_memory"),
        (RuntimeError("CUDA error: out of memory"), "INFEASIBLE", "out_of_memory"),
    ],
    ids=str,
)
def test_with_a_sound_device_a_mistake_fails_at_once(
    error: Exception,
    state: str,
    cause: str | None,
    small_config: TrialConfig,
    small_data: DeviceData,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(run, "fit", fails)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(run, "require_sound", lambda _, error: require_sound("cuda", error))
    result = run_trial(small_config, small_data)
    assert (result.state, result.cause) == (state, cause)

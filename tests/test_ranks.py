"""One trial in several processes: the same numbers as in one, every rank ends when one does. Processes on loopback."""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from multiprocessing import get_context
from typing import Any

import pytest
from torch import Tensor, nn

from equitune.datasets._splits import Splits
from equitune.measures._evaluation import EvaluationSet
from equitune.spec.space import Call
from equitune.spec.trial import TrialConfig
from equitune.trial.build import build_augmentation, build_model, to_device
from equitune.trial.device import make_deterministic
from equitune.trial.fit import fit
from equitune.trial.ranks import ALONE, Ranks

LOCALHOST = "127.0.0.1"
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
    from torch.distributed import TCPStore

    make_deterministic("cpu")
    meet = lambda: TCPStore(LOCALHOST, port, is_master=False)  # noqa: E731
    return function(*arguments, kind(number, count, meet))


@pytest.fixture(scope="module")
def others() -> Iterator[list[ProcessPoolExecutor]]:
    """Two processes beside this one."""
    started = [ProcessPoolExecutor(1, get_context("spawn")) for _ in range(2)]
    yield started
    for each in started:
        each.shutdown()


@pytest.fixture
def together(others: list[ProcessPoolExecutor]) -> Callable[..., Any]:
    """Calls a function as the first rank, and the same one (or another) as the others."""
    from torch.distributed import TCPStore

    def call(
        function: Callable[..., Any], *arguments: Any, count: int = 2, kind: type[Ranks] = Ranks, along: Any = None
    ) -> tuple[Any, list[Any]]:
        store = TCPStore(LOCALHOST, 0, is_master=True, wait_for_workers=False)
        named = {"port": store.port, "kind": kind, "count": count}
        theirs = [
            others[number - 1].submit(elsewhere, along or function, *arguments, number=number, **named)
            for number in range(1, count)
        ]
        try:
            mine = function(*arguments, kind(0, count, lambda: store))
        except Exception as error:
            mine = type(error), str(error)  # not the error, whose frames hold the connections
        return mine, [each.exception(60) or each.result() for each in theirs]

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
MODELS = {
    "resnet, whose norms see the batch": {},
    "dropout": {"model": CNN},
    "a penalty": {"prior": Call(name="nonstationary", args={"learned": True}), "training": {"symmetry_penalty": 0.5}},
    "entries left out at random": {"model": CNN, "prior": Call(name="partial_p4", args={"learned": True})},
    "adamw": {"training": {"optimizer": "adamw", "lr": 1e-3, "clip_norm": None}},
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
    augmentation = (Call(name="translate", args={"max_px": 2.0}),)
    config = changed(small_config, {"clip_norm": None, "epochs": 1}, augmentation=augmentation)
    alone = trained(config, small_splits, ALONE)
    assert furthest(alone, together(trained, config, small_splits)[0]) < EXACT
    assert furthest(alone, together(trained, config, small_splits, kind=twin)[0]) > 1e3 * EXACT

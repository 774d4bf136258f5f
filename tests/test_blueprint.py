"""A network is described once a trial: how often it is built, and that describing it draws nothing."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from equitune import catalog
from equitune.config.data_shape import DataShape
from equitune.config.space import Call
from equitune.config.trial import TrialConfig
from equitune.data.on_device import DeviceData
from equitune.errors import Infeasible
from equitune.layers import width as _width
from equitune.networks import blueprint as blueprints
from equitune.networks.blueprint import describe
from equitune.networks.build import build_model
from equitune.training.run import run_trial

SHAPE = DataShape((1, 16, 16), 10)
EQUAL = Call(name="cnn", args={"width": 5, "width_rule": "equal_parameters"})


def of_cnn(config: TrialConfig, prior: str = "p4", **args: Any) -> TrialConfig:
    model = Call(name="cnn", args=EQUAL.args | args)
    return config.model_copy(update={"model": model, "prior": Call(name=prior), "downsampler": None})


@contextmanager
def builds_counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The devices of the models that the catalogue's entries build within it."""
    built, entry = list[str](), catalog.entry

    def counting(kind: str, name: str) -> Any:
        make = entry(kind, name)
        if kind != "model":
            return make

        def build(*args: Any, **kwargs: Any) -> nn.Module:
            model: nn.Module = make(*args, **kwargs)
            built.append(next(model.parameters()).device.type)
            return model

        return build

    with monkeypatch.context() as patch:
        patch.setattr(catalog, "entry", counting)
        yield built


def test_a_trial_describes_its_network_once_and_builds_it_twice(
    small_config: TrialConfig, small_data: DeviceData, monkeypatch: pytest.MonkeyPatch
) -> None:
    with builds_counted(monkeypatch) as built:
        assert run_trial(small_config, small_data).state == "COMPLETE"
    assert built == ["meta", "cpu", "cpu"]  # described, trained, untrained


def test_a_rule_looks_for_its_width_once_a_trial(
    small_config: TrialConfig, small_data: DeviceData, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, on_meta = list[nn.Module](), _width.on_meta

    def counting(build: Callable[[], nn.Module]) -> nn.Module:
        looked.append(on_meta(build))
        return looked[-1]

    monkeypatch.setattr(_width, "on_meta", counting)
    config = of_cnn(small_config)
    network = describe(config, SHAPE)
    once = len(looked)
    assert once > 2
    mine = network.build(small_data).state_dict()
    assert len(looked) == once
    plain = build_model(config, small_data).state_dict()
    assert len(looked) == 2 * once
    assert mine.keys() == plain.keys()
    assert all(torch.equal(mine[name], plain[name]) for name in mine)


@pytest.mark.parametrize("averaging", [None, Call(name="augerino")])
def test_a_blueprint_draws_no_random_number(small_config: TrialConfig, averaging: Call | None) -> None:
    config = of_cnn(small_config, "relaxed_p4", dropout=0.2).model_copy(update={"averaging": averaging})
    before = torch.get_rng_state()
    network = describe(config, SHAPE)
    assert network.cost.parameters == network.parameters > 0
    assert network.exactness
    assert network.footprint.total > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_that_needs_numbers_is_asked_on_the_cpu_without_a_trace(
    small_config: TrialConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = describe(of_cnn(small_config, dropout=0.2), SHAPE)
    asked = list[str]()

    def needs_numbers(network: nn.Module, shape: tuple[int, ...]) -> int:
        asked.append(next(network.parameters()).device.type)
        if asked[-1] == "meta":
            raise NotImplementedError
        torch.rand(1)
        return 7

    monkeypatch.setattr(blueprints, "multiply_adds", needs_numbers)
    found, before = describe(of_cnn(small_config, dropout=0.2), SHAPE), torch.get_rng_state()
    assert (found.cost.multiply_adds, found.cost.multiply_adds, asked) == (7, 7, ["meta", "cpu"])
    assert torch.equal(torch.get_rng_state(), before)
    assert found.exactness == expected.exactness  # still of the network without weights
    assert dataclasses.replace(found.cost, multiply_adds=0) == dataclasses.replace(expected.cost, multiply_adds=0)


def test_answers_do_not_depend_on_what_was_asked_before(small_config: TrialConfig) -> None:
    for prior in ("conv", "p4", "relaxed_p4", "lambda_sym"):
        config = of_cnn(small_config, prior, width_rule="as_given")
        there, back = describe(config, SHAPE), describe(config, SHAPE)
        first = (there.cost, there.exactness, there.footprint)
        last = (back.footprint, back.exactness, back.cost)
        assert first == last[::-1]


def test_what_cannot_exist_has_no_blueprint(small_config: TrialConfig) -> None:
    with pytest.raises(Infeasible):
        describe(of_cnn(small_config), DataShape((1, 5, 5), 10))

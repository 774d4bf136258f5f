"""The conformance suite of measures: what each must keep, whatever it measures."""

import math

import pytest
import torch
from torch import nn

from equitune import catalog
from equitune.config.objectives import declared_metrics, reachable
from equitune.config.space import Call
from equitune.data.on_device import DeviceData
from equitune.evaluation.image_set import EvaluationSet
from equitune.evaluation.report import Report

NAMES = catalog.names("measure")
EVERYTHING = {
    "equivariance": {"all_sets": True},
    "turned_accuracy": {"angles": 6},
}  # a metric that is measured on request only is measured here


@pytest.fixture
def networks() -> tuple[nn.Module, nn.Module]:
    """A network whose weights have moved, and its untrained copy."""
    torch.manual_seed(0)
    model, untrained = (
        catalog.entry("model", "resnet")((1, 16, 16), 10, catalog.entry("prior", "conv")(), depth=8, width=4)
        for _ in range(2)
    )
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model, untrained


def measured(name: str, networks: tuple[nn.Module, nn.Module | None], images: EvaluationSet) -> Report:
    return catalog.entry("measure", name)(*networks, images, **EVERYTHING.get(name, {}))  # type: ignore[no-any-return]


@pytest.fixture
def validation(small_data: DeviceData) -> EvaluationSet:
    return EvaluationSet(small_data.validation.pixels, small_data.validation.labels, "validation", batch_size=16)


@pytest.mark.parametrize("name", NAMES)
def test_it_reports_what_it_declares_with_n_split_and_uncertainty(
    name: str, networks: tuple[nn.Module, nn.Module], validation: EvaluationSet
) -> None:
    defaults = {key: default for key, (_, default) in catalog.describe("measure", name).parameters.items()}
    report = measured(name, networks, validation)
    call = Call(name=name, args=defaults)
    assert set(report.metrics) == set(declared_metrics((call,)))
    for metric_name, metric in report.metrics.items():
        low, high = reachable(metric_name, (call,))
        assert (metric.status, metric.n, metric.split) == ("ok", len(validation), "validation")
        assert metric.value is not None
        assert math.isfinite(metric.value)
        assert low <= metric.value <= high
        assert metric.stderr is not None
        assert metric.stderr > 0


@pytest.mark.parametrize("name", NAMES)
def test_the_same_numbers_again_whatever_the_batches(
    name: str, networks: tuple[nn.Module, nn.Module], validation: EvaluationSet
) -> None:
    whole = EvaluationSet(validation.pixels, validation.labels, "validation", batch_size=1000)
    first, second, in_one = (measured(name, networks, images) for images in (validation, validation, whole))
    assert (first.metrics, first.profile) == (second.metrics, second.profile)
    for metric in first.metrics:
        assert in_one.metrics[metric].value == pytest.approx(first.metrics[metric].value, rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_neither_network_is_changed(
    name: str, networks: tuple[nn.Module, nn.Module], validation: EvaluationSet
) -> None:
    before = [{key: value.clone() for key, value in network.state_dict().items()} for network in networks]
    measured(name, networks, validation)
    for network, state in zip(networks, before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
        assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("name", NAMES)
def test_the_control_is_the_untrained_copy_and_may_be_left_out(
    name: str, networks: tuple[nn.Module, nn.Module], validation: EvaluationSet
) -> None:
    model, untrained = networks
    both, alone = measured(name, (model, untrained), validation), measured(name, (model, None), validation)
    control = measured(name, (untrained, None), validation)
    for metric, value in both.metrics.items():
        assert value.untrained == pytest.approx(control.metrics[metric].value, rel=1e-6)
        assert alone.metrics[metric].untrained is None
        assert alone.metrics[metric].value == value.value


@pytest.mark.parametrize("name", NAMES)
def test_shares_are_metrics_of_the_measure(name: str) -> None:
    constants = catalog.describe("measure", name).constants
    of_groups = {metric for metrics in constants.get("GROUP_METRICS", {}).values() for metric in metrics}
    assert set(constants.get("SHARES", [])) <= constants["METRICS"].keys() | of_groups

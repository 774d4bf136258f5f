"""How far layers leave their symmetry: the amounts of every prior with a continuous choice, and what becomes of them."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from invented import invent
from rich.console import Console
from torch import nn

from equitune import catalog
from equitune.config.data_shape import DataShape
from equitune.config.load import load_study
from equitune.config.space import Call
from equitune.config.study import StudySpec
from equitune.config.trial import TrainingConfig, TrialConfig
from equitune.data.on_device import DeviceData
from equitune.data.split import DeviceSplit
from equitune.layers.relaxable import relaxable_layers, symmetry_penalty
from equitune.networks.amounts import relaxation
from equitune.networks.build import assembled, count_parameters
from equitune.records.folder import write_json
from equitune.records.reader import StudyReader, StudyRecord
from equitune.report.front import write_page
from equitune.report.machine import as_json
from equitune.report.profile import write_profile
from equitune.report.terminal import front_table
from equitune.results.values import Amount, Measurement, TrialResult
from equitune.tracking.projector import _final_points
from equitune.training import epoch as fit
from equitune.training.epoch import build_optimizer
from equitune.training.run import run_trial

# Each prior with a continuous choice: what makes it strict, and what leaves it free.
CORNERS: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "gpsa": ({"gate": 60.0}, {"gate": -60.0}),
    "lambda_sym": ({"free": 0.0}, {"free": 0.999}),
    "mixed_group": ({"others": -100.0}, {"others": 0.0}),
    "nonstationary": ({"w2": 0.0}, {"w2": 1.0}),
    "nonstationary_exact": ({"w2": 0.0}, {"w2": 1.0}),
    "nonstationary_p4": ({"w2": 0.0}, {"w2": 1.0}),
    "partial_p4": ({"keep": 1 - 1e-7}, {"keep": 1e-6}),
    "relaxed_p4": ({"spread": 0.0}, {"spread": 2.0}),
    "rpp": ({"a": 0.0}, {"a": 100.0}),
    "softeq": ({"softness": 0.0}, {"softness": 1.0}),
}
NAMES = [name for name in catalog.names("prior") if "learned" in catalog.describe("prior", name).parameters]


def network(name: str, **args: object) -> nn.Module:
    model = next(model for model in ("resnet", "vit") if name in catalog.parts(model, "prior"))
    size: dict[str, int] = {"depth": 8, "width": 2} if model == "resnet" else {"depth": 2, "width": 8}
    return assembled(Call(name=model, args=size), {"prior": Call(name=name, args=args)}, DataShape((1, 16, 16), 10))


def stripes(by_direction: bool, n: int = 256, side: int = 17) -> DeviceData:
    """Stripes in both directions, of two widths; the class is their direction, or their width.

    At side 17 the strides of a resnet commute with quarter turns, so that they cannot break the symmetry.
    """
    torch.manual_seed(3)
    turned, wide = torch.rand(n) < 0.5, torch.rand(n) < 0.5
    phase = 6.3 * torch.rand(n, 1)
    waves = torch.sin(torch.arange(side) * torch.where(wide, 0.8, 1.6)[:, None] + phase)
    images = waves[:, None, :, None].expand(-1, -1, -1, side)
    images = torch.where(turned[:, None, None, None], images.transpose(2, 3), images)
    pixels = (127 * (1 + images)).to(torch.uint8).contiguous()
    split = DeviceSplit(pixels, (turned if by_direction else wide).long())
    return DeviceData(split, split, DataShape((1, side, side), 2), (0.5,), (0.35,))


def trial(
    config: TrialConfig, prior: str, data: DeviceData, training: dict[str, object], **args: object
) -> TrialResult:
    """A resnet on the stripes, with nothing measured but its accuracy."""
    parts = {"prior": Call(name=prior, args=args), "augmentation": (), "measures": ()}
    recipe = config.training.model_copy(update={"epochs": 6, "lr": 0.02} | training)
    config = config.model_copy(update=parts | {"training": recipe})
    result = run_trial(config, data)
    assert result.state == "COMPLETE", result.reason
    return result


def test_every_prior_that_learns_has_corners_here() -> None:
    assert set(NAMES) == set(CORNERS)


@pytest.mark.parametrize("name", NAMES)
def test_amounts_share_one_scale(name: str) -> None:
    strict, free = CORNERS[name]
    at_rest, left = (relaxable_layers(network(name, learned=False, **args)) for args in (strict, free))
    assert len(at_rest) >= 2
    assert max(layer.amount() for layer in at_rest.values()) < 1e-6  # float32
    found = [layer.amount() for layer in left.values()]
    assert max(found) <= 1 + 1e-6
    assert sum(found) / len(found) > 0.3  # kernels of 1 x 1 have no direction to turn
    assert not relaxable_layers(network("conv"))  # the broken twin has nothing to tell


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_learned_keeps_its_amount_at_the_strict_corner_and_what_is_learned_leaves_it(name: str) -> None:
    """A loss that no strict layer can serve: every layer's weights are pulled at random."""
    strict, _ = CORNERS[name]
    start = {"softeq": {"softness": 0.3}, "mixed_group": {"others": -4.0}, "partial_p4": {"keep": 0.99}}
    start |= {"gpsa": {"gate": 4.0}}
    fixed = network(name, **({"learned": False} | strict))
    learned = network(name, **({"learned": True} | start.get(name, strict)))
    assert count_parameters(learned) > count_parameters(fixed)
    for model in (fixed, learned):
        before = [layer.amount() for layer in relaxable_layers(model).values()]
        optimizer = build_optimizer(model, TrainingConfig(lr=0.01))
        x, labels = torch.rand(16, 1, 16, 16), torch.arange(16) % 10
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), labels).backward()
            optimizer.step()
        after = [layer.amount() for layer in relaxable_layers(model).values()]
        if model is fixed:
            assert max(before + after) < 1e-6
        else:
            assert any(abs(a - b) > 1e-6 for a, b in zip(after, before, strict=True))


def test_a_layer_that_stays_free_has_the_amount_that_its_weights_tell(small_config: TrialConfig) -> None:
    """W(g) = w(g) L_g psi: |W - Pi W|^2 / |W|^2 = 1 - mean(w)^2 / mean(w^2), whatever psi learns."""
    data = stripes(by_direction=False)
    found = trial(small_config, "relaxed_p4", data, {"epochs": 1}, spread=0.5, learned=False).amounts
    torch.manual_seed(small_config.seed)
    untrained = assembled(
        small_config.model, {"prior": Call(name="relaxed_p4", args={"spread": 0.5, "learned": False})}, data.data_shape
    )
    assert len(found) == 9
    for path, amount in found.items():
        w = untrained.get_submodule(path).w.detach()  # type: ignore[union-attr,operator]
        by_hand = float(1 - w.mean() ** 2 / w.square().mean()) ** 0.5
        assert (amount.kind, amount.unit) == ("RelaxedConv", "1")
        assert amount.before == pytest.approx(by_hand, abs=1e-5)
        assert amount.after == pytest.approx(by_hand, abs=1e-5)


def test_a_task_that_breaks_the_symmetry_is_learned_by_leaving_it(small_config: TrialConfig) -> None:
    """Which way stripes run cannot be told by a network that is invariant to quarter turns; how wide they are can."""
    direction, width = stripes(by_direction=True), stripes(by_direction=False)
    strict = trial(small_config, "relaxed_p4", direction, {}, learned=False)
    learned = trial(small_config, "relaxed_p4", direction, {}, learned=True)
    unneeded = trial(small_config, "relaxed_p4", width, {}, learned=True)
    accuracy = [result.metrics["accuracy"].value or 0 for result in (strict, learned, unneeded)]
    assert accuracy[0] < 0.6
    assert min(accuracy[1:]) > 0.98
    relaxations = [result.metrics["relaxation"] for result in (strict, learned, unneeded)]
    assert [metric.untrained for metric in relaxations] == [0, 0, 0]
    assert relaxations[0].value == 0
    assert (relaxations[1].value or 0) > 2 * (relaxations[2].value or 0)  # measured: .18 and .06
    mean = sum(amount.after for amount in learned.amounts.values()) / len(learned.amounts)
    assert (relaxations[1].value, relaxations[1].unit, relaxations[1].split) == (pytest.approx(mean), "1", "none")


def test_other_networks_say_nothing_and_old_results_load(small_config: TrialConfig, small_data: DeviceData) -> None:
    result = run_trial(small_config.model_copy(update={"measures": ()}), small_data)
    assert result.amounts == {}
    assert "relaxation" not in result.metrics
    old = result.model_dump(mode="json", exclude={"amounts"})
    assert TrialResult.model_validate_json(json.dumps(old)) == result


@pytest.fixture
def relaxed(tmp_path: Path, small_spec: StudySpec) -> StudyRecord:
    """Two trials with amounts of 20 layers and one without."""
    folder = invent(tmp_path / "small", small_spec, 3)
    for number in (1, 2):
        result = TrialResult.model_validate_json(folder.trial(number).result.read_bytes())
        amounts = {f"<layer>{index}": Amount(kind="Conv", before=0.125, after=index / 20) for index in range(20)}
        amounts["width"] = Amount(kind="Widths", before=0.5, after=0.75, unit="rad")
        changes = {"amounts": amounts, "metrics": result.metrics | relaxation(amounts)}
        write_json(folder.trial(number).result, result.model_copy(update=changes).model_dump(mode="json"))
    return StudyReader(folder).read()


def test_amounts_are_shown(relaxed: StudyRecord, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(front_table(relaxed))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "0.4750" in text  # the mean of the 20 layers; the width is on another scale
    assert max(map(len, text.splitlines())) <= 80
    plain = replace(relaxed, trials=relaxed.trials[:1])
    console = Console(file=io.StringIO(), width=80)
    console.print(front_table(plain))
    assert "relax" not in console.file.getvalue()  # type: ignore[attr-defined]

    write_page(relaxed, tmp_path / "front.html")
    page = (tmp_path / "front.html").read_text()
    assert r"0.125 \u2192 0.050" in page
    assert "and 9 more layers" in page
    assert "<layer>" not in page

    trials = as_json(relaxed)["trials"]
    assert trials[0]["amounts"] == {}
    assert trials[1]["amounts"]["width"] == {"before": 0.5, "after": 0.75, "unit": "rad"}
    assert trials[1]["metrics"]["relaxation"]["value"] == pytest.approx(0.475)


def test_amounts_are_drawn_beside_the_profile(relaxed: StudyRecord, tmp_path: Path) -> None:
    def width(number: int) -> int:
        from matplotlib.image import imread

        assert write_profile(relaxed.trials[number], tmp_path / "profile.png")
        return int(imread(tmp_path / "profile.png").shape[0])

    assert width(1) > width(0)  # a row of its own
    alone = relaxed.trials[1]
    assert alone.result is not None
    alone = replace(alone, result=alone.result.model_copy(update={"profile": []}))
    assert write_profile(alone, tmp_path / "alone.png")


def test_amounts_are_metrics_with_two_values(relaxed: StudyRecord) -> None:
    points = [point for point in _final_points(relaxed.trials[1]) if point.name == "amount/<layer>4"]
    assert [(point.value, point.step) for point in points] == [(0.125, 0), (0.2, 2)]
    assert not any(point.name.startswith("amount/") for point in _final_points(relaxed.trials[0]))


# The penalty.


BETWEEN = {
    "gpsa": {"gate": 0.5},
    "lambda_sym": {"free": 0.3},
    "mixed_group": {"others": -1.0},
    "nonstationary": {"w2": 0.1},
    "nonstationary_exact": {"w2": 0.1},
    "nonstationary_p4": {"w2": 0.1},
    "partial_p4": {"keep": 0.7},
    "relaxed_p4": {"spread": 0.5, "filters": 2},
    "rpp": {"a": 0.5},
    "softeq": {"softness": 0.5},
}


@pytest.mark.parametrize("name", NAMES)
def test_the_penalty_is_the_mean_squared_amount_and_its_gradient_that_of_finite_differences(name: str) -> None:
    model = network(name, learned=True, **BETWEEN[name]).double()
    amounts = [layer.amount() for layer in relaxable_layers(model).values()]
    penalty = symmetry_penalty(model)
    assert penalty.item() == pytest.approx(sum(amount**2 for amount in amounts) / len(amounts), rel=1e-12)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(penalty, weights, allow_unused=True)
    directions = [torch.randn_like(weight) for weight in weights]
    slope = sum(
        float((gradient * direction).sum())
        for gradient, direction in zip(gradients, directions, strict=True)
        if gradient is not None
    )
    step, ends = 1e-7, []
    for sign in (1, -2):  # one step forth from where it is, then two back
        with torch.no_grad():
            for weight, direction in zip(weights, directions, strict=True):
                weight += sign * step * direction
            ends.append(symmetry_penalty(model).item())
    assert abs(slope) > 1e-4
    # Rounding leaves 1e-16 / step; larger steps cross the kinks of ReLUs in `nonstationary_exact`.
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_on_a_symmetric_task_the_penalty_leads_back_to_the_symmetry(small_config: TrialConfig) -> None:
    data = stripes(by_direction=False)
    free, penalised = (
        trial(small_config, "relaxed_p4", data, {"symmetry_penalty": penalty}, spread=0.5) for penalty in (0.0, 3.0)
    )
    before, after = free.metrics["relaxation"], penalised.metrics["relaxation"]
    assert before.untrained == after.untrained
    assert (before.value or 0) > 0.4  # measured: .43 before training, .46 after, .15 with the penalty
    assert (after.value or 1) < 0.2
    assert penalised.metrics["accuracy"].value == 1


def test_no_penalty_costs_nothing(small_config: TrialConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not even computed; a tiny one is, and changes the numbers."""
    data = stripes(by_direction=False, n=64)

    def found(**training: object) -> dict[str, Measurement]:
        return trial(small_config, "relaxed_p4", data, {"epochs": 1} | training, spread=0.5).repeatable().metrics

    default = found()
    assert found(symmetry_penalty=0.01) != default

    def forbidden(model: nn.Module) -> None:
        raise AssertionError

    monkeypatch.setattr(fit, "symmetry_penalty", forbidden)
    assert found(symmetry_penalty=0.0) == default
    with pytest.raises(AssertionError, match="AssertionError"):
        found(symmetry_penalty=0.01)


def test_a_penalty_without_anything_to_penalise_is_noticed(study_file: Callable[..., Path]) -> None:
    def notices(text: str) -> list[str]:
        return load_study(study_file(text)).notices()

    small = study_file().read_text()
    penalised = small.replace("epochs: 2", "epochs: 2, symmetry_penalty: 0.1")
    said = "training.symmetry_penalty does nothing with prior conv, whose layers have no amount"
    assert notices(small) == []
    assert notices(penalised) == [said]
    assert notices(penalised.replace("0.1", "{float: [0, 1]}")) == [said]
    assert notices(penalised + "prior: {choose: {conv: {}, rpp: {}}}\n") == [said]
    assert notices(penalised + "prior: relaxed_p4\n") == []

"""Averages over moved images: the conformance suite of their kind, then what is known of each."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fields import images
from torch import Tensor, nn

from equitune import catalog
from equitune.averagings.augerino import GENERATORS, WIDEST, Augerino
from equitune.config.data_shape import DataShape
from equitune.config.load import load_study
from equitune.config.space import Call
from equitune.config.trial import TrialConfig
from equitune.data.on_device import DeviceData, to_device
from equitune.data.splits import load_splits
from equitune.groups.resample import affine
from equitune.layers.averaging import Averaging
from equitune.layers.relaxable import symmetry_penalty
from equitune.networks.blueprint import describe
from equitune.networks.build import assembled, chosen_width, initial_model
from equitune.records.folder import TrialFolder
from equitune.results.values import Amount
from equitune.training.run import run_trial

NAMES = catalog.names("averaging")
FULL_TURN = math.log(math.expm1(2 * math.pi))  # softplus of it is 2 pi


def network() -> nn.Module:
    model = assembled(
        Call(name="resnet", args={"depth": 8, "width": 2}), {"prior": Call(name="conv")}, DataShape((1, 16, 16), 10)
    )
    model(torch.rand(8, 1, 16, 16))  # a batch norm that has seen images
    return model.eval()


def averaging(name: str, model: nn.Module, **args: object) -> Averaging:
    return catalog.entry("averaging", name)(model, **args)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_is_deterministic_and_takes_each_image_by_itself(name: str) -> None:
    net, x = averaging(name, network()).eval(), torch.rand(4, 1, 16, 16)
    with torch.no_grad():
        scores = net(x)
        assert scores.shape == (4, 10)
        assert torch.equal(net(x), scores)
        alone = torch.cat([net(each[None]) for each in x])
        again = averaging(name, net.model).eval()
        torch.testing.assert_close(alone, scores, atol=1e-5, rtol=0)  # float32
        assert torch.equal(again(x), scores)
        torch.manual_seed(9)
        assert torch.equal(net(x), scores)


@pytest.mark.parametrize("name", NAMES)
def test_the_only_measured_layer_is_the_scores(name: str) -> None:
    net, seen = averaging(name, network()).eval(), []
    (path,) = net.layers
    net.get_submodule(path).register_forward_hook(lambda _, __, output: seen.append(output))
    scores = net(torch.rand(2, 1, 16, 16))
    assert torch.equal(seen[-1], scores)
    assert net.normalise is net.model.normalise
    assert net.layers[path].read(scores).shape == (2, 10, 1, 1, 1)


@pytest.mark.parametrize("name", NAMES)
def test_the_model_within_is_trained_and_starts_as_it_would_alone(name: str) -> None:
    net = averaging(name, network()).train()
    net(torch.rand(4, 1, 16, 16))[:, 0].sum().backward()
    assert all(weight.grad is not None for weight in net.parameters())
    for mine, alone in zip(averaging(name, network()).model.parameters(), network().parameters(), strict=True):
        assert mine.shape == alone.shape


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "model", sorted({*catalog.names("model")} - {"timm", "torchvision"})
)  # whose networks are large
def test_every_model_can_be_averaged(name: str, model: str) -> None:
    priors = catalog.parts(model, "prior")
    net = averaging(
        name, assembled(Call(name=model), {"prior": Call(name=priors[0])}, DataShape((1, 16, 16), 10))
    ).eval()
    assert net(torch.rand(2, 1, 16, 16)).shape == (2, 10)


STUDY = """\
study: averaged
data: {{name: digits, limit: 200, size: 16}}
model: {{name: resnet, depth: 8, width: 2}}
averaging: {name}
training: {{epochs: 1, batch_size: 32}}
measures: [{measures}]
objectives: {{accuracy: maximize}}
"""


def config_of(path: Path, text: str) -> TrialConfig:
    path.write_text(text)
    return load_study(path).suggest(0, lambda name, distribution: None)


@pytest.mark.parametrize("name", NAMES)
def test_a_trial_is_averaged_measured_and_said_to_be_unknown(name: str, tmp_path: Path, small_data: DeviceData) -> None:
    config = config_of(tmp_path / "study.yaml", STUDY.format(name=name, measures=", ".join(catalog.names("measure"))))
    folder = TrialFolder(tmp_path / "00000")
    folder.path.mkdir()
    result = run_trial(config, small_data, folder=folder)
    assert result.state == "COMPLETE", result.traceback
    assert {row["layer"] for row in result.profile} == {"output"}
    for metric in result.metrics.values():
        assert (metric.value is not None) == (metric.status == "ok")
        assert metric.value is not None or metric.reason
    assert result.metrics["translation_consistency"].value is not None
    exactness = describe(config, DataShape((1, 16, 16), 10)).exactness
    assert {each.broken_by for each in exactness.values()} == {f"network: nothing is known of averaging {name}"}
    plain = describe(config.model_copy(update={"averaging": None}), DataShape((1, 16, 16), 10)).exactness
    assert plain["translation"].broken_by != exactness["translation"].broken_by


@pytest.mark.parametrize("name", NAMES)
def test_the_width_that_a_rule_chose_is_that_of_the_model_within(name: str, tmp_path: Path) -> None:
    text = STUDY.format(name=name, measures="").replace("width: 2", "width: 8, width_rule: equal_parameters")
    config = config_of(tmp_path / "study.yaml", text + "prior: p4\n")
    width = chosen_width(config, initial_model(config, DataShape((1, 16, 16), 10)))
    assert width is not None
    assert width < 8
    alone = config.model_copy(update={"averaging": None})
    assert chosen_width(alone, initial_model(alone, DataShape((1, 16, 16), 10))) == width


def test_a_study_without_an_averaging_is_what_it_was(study_file: Callable[..., Path]) -> None:
    spec = load_study(study_file())
    assert spec.suggest(0, lambda name, distribution: distribution.bounds[0]).averaging is None  # type: ignore[union-attr]
    assert "averaging" not in spec.identity()
    averaged = load_study(study_file(study_file().read_text() + "averaging: {name: augerino, copies: {int: [1, 8]}}\n"))
    assert "averaging.copies" in averaged.parameters()
    assert averaged.fingerprint() != spec.fingerprint()


# Augerino.


def augerino(model: nn.Module, **args: object) -> Augerino:
    net = averaging("augerino", model, **args)
    assert isinstance(net, Augerino)
    return net.double()


class Linear(nn.Module):
    """Scores that are linear in the pixels: no symmetry at all."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.normalise, self.scores = nn.Identity(), nn.Linear(side * side, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.scores(images.flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("acts", ["rotation", "translation", "scale", "affine"])
def test_a_width_of_minus_20_is_the_identity(acts: str) -> None:
    x, net = images(4, 1, 16), augerino(Linear(16), acts=acts, width=-20.0, copies=3)
    for draws in (net.draws[0], torch.rand(4, len(net.names)) - 0.5):
        torch.testing.assert_close(net.moved(x, draws), x, atol=1e-6, rtol=0)
    torch.testing.assert_close(net.eval()(x), net.model(x).log_softmax(1), atol=1e-6, rtol=0)
    wide = augerino(Linear(16), acts=acts, width=1.0, copies=3)
    assert not torch.allclose(wide.moved(x, wide.draws[0]), x, atol=0.1)


def test_generators_move_images_as_their_names_say() -> None:
    x = images(2, 1, 16)

    def moved(name: str, w: float, draw: float) -> Tensor:
        acts = name.partition("_")[0] if name != "shear" else "affine"
        net = augerino(Linear(16), acts=acts, width=math.log(math.expm1(w)))
        draws = torch.zeros(1, len(net.names), dtype=torch.float64)
        draws[0, net.names.index(name)] = draw
        return net.moved(x, draws)

    # Widths are float32: 1e-7 of a turn or a shift.
    def sampled(*rows: list[float]) -> Tensor:
        return affine(x, torch.tensor([rows], dtype=torch.float64))

    torch.testing.assert_close(moved("rotation", 2 * math.pi, 0.25), x.rot90(1, (2, 3)), atol=1e-5, rtol=0)
    for name, dim in (("translation_x", 3), ("translation_y", 2)):  # 0.1 * 2.5 / 2 of 8 px, to the left or up
        inner = x.roll(-1, dim).narrow(dim, 0, 15)
        torch.testing.assert_close(moved(name, 2.5, 0.5).narrow(dim, 0, 15), inner, atol=1e-5, rtol=0)
    e = math.exp(0.4)
    torch.testing.assert_close(moved("scale_x", 1.6, 0.25), sampled([e, 0, 0], [0, 1, 0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(moved("scale_y", 1.6, 0.25), sampled([1, 0, 0], [0, e, 0]), atol=1e-5, rtol=0)
    c, s = math.cosh(0.4), math.sinh(0.4)
    torch.testing.assert_close(moved("shear", 1.6, 0.25), sampled([c, s, 0], [s, c, 0]), atol=1e-5, rtol=0)
    assert not torch.allclose(moved("shear", 1.6, 0.25), moved("shear", 1.6, -0.25), atol=1e-3)


def test_scores_averaged_over_all_angles_become_invariant_to_turns() -> None:
    """Draws are independent: 64 times as many copies leave an eighth of the error, but for chance."""
    model, x = Linear(15), images(16, 1, 15)

    def error(copies: int, width: float) -> float:
        net = augerino(model, acts="rotation", width=width, copies=copies).eval()
        with torch.no_grad():
            before, after = net(x), net(x.rot90(1, (2, 3)))
        return float((after - before).norm() / (before - before.mean(0)).norm())

    few, many, most = (error(copies, FULL_TURN) for copies in (16, 128, 1024))
    assert few > many > most
    assert most < few / 4  # by theory an eighth
    assert error(1024, 0.0) > 1  # of a narrow average; and of the model alone:
    assert error(1, -20.0) > 1


def test_training_draws_anew_for_each_image() -> None:
    net = augerino(Linear(16), acts="rotation", width=FULL_TURN).train()
    same = images(1, 1, 16).expand(8, -1, -1, -1)
    first, second = net(same), net(same)
    assert len(first.detach().unique(dim=0)) == 8
    assert not torch.equal(first, second)
    torch.manual_seed(4)
    third = net(same)
    torch.manual_seed(4)
    assert torch.equal(net(same), third)
    assert len(net.eval()(same).detach().round(decimals=9).unique(dim=0)) == 1


def test_the_penalty_widens_until_a_width_reaches_ten() -> None:
    net = augerino(network(), acts="affine", width=1.0)
    w = math.log1p(math.e)
    penalty = net.width_penalty()
    assert penalty.item() == pytest.approx(-w * 6**0.5)
    assert symmetry_penalty(net).item() == penalty.item()
    (gradient,) = torch.autograd.grad(penalty, net.reach)
    assert gradient.tolist() == pytest.approx([-torch.tensor(1.0).sigmoid().item() / 6**0.5] * 6)
    relaxed = assembled(
        Call(name="resnet", args={"depth": 8, "width": 2}), {"prior": Call(name="rpp")}, DataShape((1, 16, 16), 10)
    )
    within = symmetry_penalty(relaxed.double()).item()
    assert within > 0
    both = symmetry_penalty(augerino(relaxed, acts="affine", width=1.0)).item()
    assert both == pytest.approx(within + penalty.item())
    with torch.no_grad():
        net.reach[2] = WIDEST + 0.1
    assert net.width_penalty().item() == 0
    (gradient,) = torch.autograd.grad(net.width_penalty(), net.reach)
    assert not gradient.any()


def test_widths_are_told_in_units_of_their_own() -> None:
    net = augerino(network(), acts="affine", width=1.0)
    w = math.log1p(math.e)
    units = {name: unit for name, (_, unit) in net.widths().items()}
    assert units == {"rotation": "rad"} | dict.fromkeys(["translation_x", "translation_y"], "side") | dict.fromkeys(
        ["scale_x", "scale_y", "shear"], "log"
    )
    assert net.widths()["rotation"][0] == pytest.approx(w)
    assert net.widths()["translation_x"][0] == pytest.approx(0.05 * w)  # a tenth of w, of half a side
    assert list(net.widths()) == list(GENERATORS)


TURNED = """\
study: turned
data: {name: digits, size: 12}
model: {name: resnet, depth: 8, width: 4}
averaging: {name: augerino, acts: rotation}
training: {epochs: 8, batch_size: 32, lr: 0.01, symmetry_penalty: 0.05}
objectives: {accuracy: maximize}
"""


@pytest.mark.slow
def test_the_width_grows_where_digits_are_turned_and_shrinks_where_they_stand_upright(tmp_path: Path) -> None:
    def learned(text: str) -> tuple[Amount, bool]:
        config = config_of(tmp_path / "study.yaml", text)
        result = run_trial(config, to_device(load_splits(config.data), "cpu"))
        assert result.state == "COMPLETE", result.traceback
        return result.amounts["averaging.rotation"], "relaxation" in result.metrics

    upright, _ = learned(TURNED)
    turned, is_amount = learned(TURNED + "augmentation: {rotate: {max_deg: 180}}\n")
    assert not is_amount  # a width is none
    assert upright.before == turned.before == pytest.approx(math.log(2))
    assert (upright.kind, upright.unit) == ("Augerino", "rad")
    assert upright.after < 0.6  # measured: 0.36
    assert turned.after > 0.9  # measured: 1.14

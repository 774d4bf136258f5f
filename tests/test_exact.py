"""What is said of a network before it trains, against what is measured of it at random weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fields import evaluation, images
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from equitune import catalog
from equitune.cli import cli
from equitune.downsamplers._blur import BlurPool
from equitune.errors import Infeasible
from equitune.groups.element import Element, sets
from equitune.groups.grid import uneven
from equitune.measures._compare import Plan, compare
from equitune.priors.local import LocalConv2d
from equitune.spec.space import Call, constant_call
from equitune.spec.trial import DataConfig, TrainingConfig, TrialConfig
from equitune.trial import exact
from equitune.trial.build import initial_model
from equitune.trial.exact import Exactness, predict_exact

GATE = 1e-10  # in float64: rounding gives 1e-14, a border or a stride 1e-4 and more


def config(model: str, prior: str, padding: str, downsampler: str, **args: Any) -> TrialConfig:
    """A trial; a blur continues its maps as the prior does, or by reflection."""
    sizes = {"resnet": {"depth": 8, "width": 4}, "cnn": {"width": 4}}
    if downsampler.startswith("blur"):
        args["padding"] = "circular" if padding == "circular" else "reflect"
    return TrialConfig(
        study="s",
        number=0,
        seed=1,
        params={},
        data=DataConfig(),
        model=constant_call("model", {"name": model, **sizes[model]}),
        prior=constant_call("prior", {"name": prior, "padding": padding}),
        downsampler=constant_call("downsampler", {"name": downsampler, **args}),
        augmentation=(),
        training=TrainingConfig(),
        measures=(),
    )


def measured(net: nn.Module, side: int, elements: list[Element]) -> dict[str, float]:
    """Of each layer the largest relative distance over these elements, in float64."""
    validation = evaluation(images(6, 1, side))
    plan = Plan(net, net.layers, validation, {"set": elements})  # type: ignore[arg-type]
    found: dict[str, float] = {}
    for (layer, _, _), pairs in compare(net, validation, plan).items():
        found[layer] = max(found.get(layer, 0.0), pairs.summary().relative_distance())
    return found


def assert_agree(said: Exactness, seen: dict[str, float], about: object) -> None:
    for layer, rule in ((layer, said.layers[layer]) for layer in seen if layer in said.layers):
        assert (seen[layer] < GATE) == (rule is None), f"{about}, {layer}: error {seen[layer]:.1e}, said {rule}"


configurations = st.builds(
    config,
    st.sampled_from(["resnet", "cnn"]),
    st.sampled_from(["conv", "conv", "local"]),
    st.sampled_from(["circular", "circular", "zero", "reflect"]),
    st.sampled_from(catalog.names("downsampler")),
)


def built(trial: TrialConfig, side: int) -> tuple[nn.Module, dict[str, Exactness]] | None:
    try:
        said = predict_exact(trial, (1, side, side), 10)
    except Infeasible:
        with pytest.raises(Infeasible):
            initial_model(trial, (1, side, side), 10)
        return None
    net = initial_model(trial, (1, side, side), 10).double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    net(images(16, 1, side))  # sets the statistics of normalisation, so that no layer is dead
    return net.eval(), said


@settings(deadline=None, derandomize=True, max_examples=30)
@given(trial=configurations, side=st.sampled_from([12, 13, 16, 17, 18]))
def test_the_error_is_rounding_if_and_only_if_it_says_exact(trial: TrialConfig, side: int) -> None:
    made = built(trial, side)
    if made is None:
        return
    net, said = made
    strides = [layout.stride for layout in net.layers.values() if layout.is_spatial]  # type: ignore[operator,union-attr]
    shifts = sets("translation", strides, side)
    assert_agree(said["translation"], measured(net, side, shifts["lattice"]), trial)
    assert_agree(said["translation_substride"], measured(net, side, shifts["substride"]), trial)
    assert_agree(said["d4"], measured(net, side, sets("d4", strides, side)["d4"][::3]), trial)


@pytest.mark.parametrize(
    ("kind", "trial", "symmetry"),
    [
        (LocalConv2d, config("resnet", "local", "circular", "stride"), "translation"),
        (BlurPool, config("resnet", "conv", "circular", "blur3"), "d4"),
    ],
)
def test_a_false_rule_is_caught(kind: Any, trial: TrialConfig, symmetry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kind, "breaks", lambda *_: None)
    monkeypatch.setattr(exact, "_of_convolution", lambda *_: None)
    made = built(trial, 16)
    assert made is not None
    elements = next(iter(sets(symmetry, [4], 16).values()))
    with pytest.raises(AssertionError, match="said None"):
        assert_agree(made[1][symmetry], measured(made[0], 16, elements), "twin")


@pytest.mark.parametrize("name", catalog.names("downsampler"))
@pytest.mark.parametrize("side", [12, 13, 16, 17, 18])
def test_so_it_is_for_turns_where_kernels_are_symmetric(name: str, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every kernel averaged over quarter turns and flips, what is left to break them are the strides."""

    def of_symmetric(module: nn.Conv2d, symmetry: Any, side: int) -> str | None:
        stride, padding = module.stride[0], int(module.padding[0])
        return uneven(symmetry, side, module.kernel_size[0], stride=stride, padding=padding, wraps=True)

    monkeypatch.setattr(exact, "_of_convolution", of_symmetric)
    made = built(config("resnet", "conv", "zero", name), side)
    if made is None:
        assert name in ("aps", "lps", "gsub")
        return
    net, said = made
    for path, module in net.named_modules():
        if isinstance(module, nn.Conv2d) and "halving" not in path:
            kernels = [module.weight.data.rot90(turn, (2, 3)) for turn in range(4)]
            module.weight.data = sum(each + each.flip(3) for each in kernels) / 8
    seen = measured(net, side, sets("d4", [4], side)["d4"][::3])
    if name == "lps" and side % 4 == 0:  # six images may well be scored alike at one of its halvings
        seen = {"output": seen["output"]}
    assert_agree(said["d4"], seen, name)


@pytest.mark.parametrize(
    ("trial", "side", "symmetry", "rule"),
    [
        (config("resnet", "conv", "circular", "stride"), 16, "translation", None),
        (config("resnet", "conv", "circular", "aps"), 16, "translation_substride", None),
        (
            config("resnet", "conv", "circular", "stride"),
            16,
            "translation_substride",
            "stages.1.0.conv1.layer: its strides do not follow a shift by one pixel",
        ),
        (
            config("resnet", "conv", "circular", "pool2"),
            18,
            "translation",
            "stages.2.0.halving: its stride of 2 does not divide the side of 9",
        ),
        (
            config("resnet", "conv", "zero", "aps"),
            16,
            "translation",
            "stem.layer: what lies beyond the border is not the other side of the map",
        ),
        (
            config("resnet", "conv", "zero", "stride"),
            17,
            "d4",
            "stem.layer: its kernels of 3 x 3 are free to point anywhere",
        ),
        (
            config("resnet", "local", "circular", "stride"),
            16,
            "translation",
            "stem.layer: it has a kernel of its own at each position",
        ),
        (
            config("cnn", "conv", "circular", "pool2"),
            16,
            "translation",
            "top.0.layer: its windows of 4 with padding 0 do not go round a side of 8",
        ),
    ],
)
def test_the_first_module_that_breaks_it_is_named_with_its_rule(
    trial: TrialConfig, side: int, symmetry: str, rule: str | None
) -> None:
    assert predict_exact(trial, (1, side, side), 10)[symmetry].broken_by == rule


def test_what_is_not_known_is_never_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    vit = config("resnet", "conv", "circular", "stride").model_copy(
        update={"model": constant_call("model", "vit"), "prior": Call(name="attention"), "downsampler": None}
    )
    for each in predict_exact(vit, (1, 16, 16), 10).values():
        assert each.broken_by == "nothing is known of model vit"
    monkeypatch.setattr(exact, "POINTWISE", tuple(kind for kind in exact.POINTWISE if kind is not nn.ReLU))
    said = predict_exact(config("resnet", "conv", "circular", "stride"), (1, 16, 16), 10)
    assert said["translation"].broken_by == "stages.0.0.relu: nothing is known of ReLU"


STUDY = """\
study: exactly
data: {name: digits, size: 16, limit: 100}
model: {name: resnet, depth: 8, width: 2}
prior: {name: conv, padding: {choice: [circular, zero]}}
downsampler: {choose: {aps: {}, stride: {}}}
objectives: {accuracy: maximize}
search: {sampler: random, trials: 8, seed: 3}
"""


def test_a_dry_run_says_which_trials_are_exact_and_what_breaks_the_others(study_file: Callable[..., Path]) -> None:
    done = CliRunner().invoke(cli, ["search", str(study_file(STUDY)), "--dry-run"])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    trials = [line for line in lines if line.startswith("  trial")]
    circular = [line for line in trials if "circular" in line]
    every = [line for line in circular if "downsampler aps" in line]
    assert 0 < len(every) < len(circular) < len(trials)
    assert f"exact under translation: {len(circular)} of 8 trials" in lines
    assert f"exact under translation_substride: {len(every)} of 8 trials" in lines
    assert "exact under d4: 0 of 8 trials" in lines
    border = "stem.layer: what lies beyond the border is not the other side of the map"
    assert f"  {8 - len(circular)} not: {border}" in lines

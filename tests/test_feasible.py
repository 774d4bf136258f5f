"""Networks that cannot be: found from the study's file alone, each with its place and its reason."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from equitune import catalog
from equitune.config.data_shape import DataShape
from equitune.config.load import load_study
from equitune.config.space import Call, filled
from equitune.config.trial import DataConfig
from equitune.data.splits import declared_shape, load_splits
from equitune.errors import UserError
from equitune.networks import blueprint
from equitune.networks.build import assembled
from equitune.preflight import feasible
from equitune.preflight.feasible import require_networks

Write = Callable[..., Path]

HEAD = "study: s\nobjectives: {accuracy: maximize}\n"


def mistakes(write: Write, text: str) -> list[str]:
    try:
        load_study(write(HEAD + text), (), require_networks)
    except UserError as error:
        return [line.split("study.yaml:")[-1] for line in str(error).splitlines()]
    return []


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        (
            "model: {name: resnet, depth: {choice: [8, 9]}}",
            ["3:43 model.depth.choice.1: no network can be built with depth 9: the depth of a resnet in 3 stages is 6n + 2"],
        ),
        (
            "data: {name: digits, size: 14}\nmodel: {name: resnet, depth: 8}\n"
            "downsampler: {choose: {stride: {}, aps: {blur: {choice: [1, 3]}}, gsub: {}}}",
            [
                "5:36 downsampler.choose.aps: no network can be built with aps: aps needs maps of even side, but got 7 x 7",
                "5:67 downsampler.choose.gsub: no network can be built with gsub: gsub needs maps of even side",
            ],
        ),
        (
            "data: {name: digits, size: 8}\nmodel: {name: resnet, depth: 10, stages: 4}\n"
            "downsampler: {choose: {stride: {}, blur5: {}}}\nprior: {padding: {choice: [zero, reflect]}, name: conv}",
            [
                "6:34 prior.padding.choice.1: no network can be built with padding reflect: reflect padding of 1 needs a map larger",
                "5:36 downsampler.choose.blur5: no network can be built with blur5: reflect padding of 2 needs a map larger",
            ],
        ),
        (
            "data: {name: digits, size: 8}\nmodel: {choose: {cnn: {}, resnet: {}}}\ninput: {size: {choice: [4, 16]}}\n"
            "downsampler: {choose: {pool2: {}, stride: {}}}\nprior: conv",
            [],
        ),
        (
            "model: cnn\ninput: {size: {choice: [4, 16]}}",
            ["4:25 input.size.choice.0: no network can be built with size 4: a map of 2 x 2 shrinks to nothing under kernel 4"],
        ),
        (
            "model: resnet\nprior: {choose: {conv: {}, ceconv: {}}}",
            ["4:28 prior.choose.ceconv: no network can be built with ceconv: ceconv turns the hue of images with 3 channels"],
        ),
        ("data: cifar10\nmodel: resnet\nprior: {choose: {conv: {}, ceconv: {}}}", []),
        (
            "data: {name: imagefolder, path: nowhere, grey: true}\nmodel: resnet\nprior: ceconv",
            ["4:1 model: no network of study s can be built for images of 32 x 32: ceconv turns the hue"],
        ),
        (
            "model: {name: vit, patch: {choice: [4, 5]}}",
            ["3:40 model.patch.choice.1: no network can be built with patch 5: an image of side 12 does not divide"],
        ),
        (
            "model: {name: vit, width: 32, heads: {choice: [2, 3]}}",
            ["3:51 model.heads.choice.1: no network can be built with heads 3: width 32 is not divisible by 3 heads"],
        ),
        (
            "model: {name: vit, width: 32, heads: {choice: [2, 4]}}\nprior: gpsa",
            ["3:48 model.heads.choice.0: no network can be built with heads 2: gpsa lays its heads out as a square"],
        ),
        (
            "model: {name: resnet, depth: {int: [8, 10], step: 1}}\nsearch: {sampler: grid}",
            [
                "3:23 model.depth: no network can be built with depth 9:",
                "3:23 model.depth: no network can be built with depth 10:",
            ],
        ),
        ("model: {name: resnet, depth: {int: [8, 10], step: 1}}", []),  # the search learns to keep away from 9 and 10
        ("model: {name: resnet, depth: 9}", ["3:1 model: no network of study s can be built for images of 12 x 12: the depth"]),
    ],
)  # fmt: skip
def test_a_choice_that_no_network_can_have_is_told_with_its_place(
    text: str, sentences: list[str], study_file: Write
) -> None:
    found = mistakes(study_file, text)
    assert len(found) == len(sentences), found
    for told, sentence in zip(found, sentences, strict=True):
        assert told.startswith(sentence), told


def test_a_value_that_only_some_others_spoil_is_left_to_the_search(study_file: Write) -> None:
    """27 goes with strides alone, and lps with 28 alone."""
    both = "model: {name: resnet, depth: 8}\ninput: {size: {choice: [27, 28]}}\ndownsampler: {choose: {lps: {}, stride: {}}}"
    assert mistakes(study_file, both) == []
    assert len(mistakes(study_file, both.replace(", stride: {}", ""))) == 1


def test_one_network_among_many_is_found(study_file: Write) -> None:
    """Two values must be right at once, among 60 of each, which no change of one value alone would find."""
    values = [5 + 2 * index for index in range(12)]
    text = (
        f"model: {{name: resnet, depth: {{choice: [8, {', '.join(str(9 + 6 * index) for index in range(12))}]}}}}\n"
        f"input: {{size: {{choice: [16, {', '.join(map(str, values))}]}}}}\ndownsampler: aps"
    )
    found = mistakes(study_file, text)
    assert len(found) == 24  # all but 8 and 16
    assert not any("no network of study" in sentence for sentence in found)


BOUNDED = [
    (kind, name, knob, value)
    for kind in ("model", "prior", "downsampler")
    for name in catalog.names(kind)
    for knob, written in catalog.describe(kind, name).annotations.items()
    for sign, bound in re.findall(r"([<>]=?) (-?[\d.]+)", written)
    for value in [(float(bound) if "." in bound else int(bound)) + (1 if sign[0] == "<" else -1)]
]


@pytest.mark.parametrize(("kind", "name", "knob", "value"), BOUNDED)
def test_every_knob_is_held_to_its_range(kind: str, name: str, knob: str, value: float, study_file: Write) -> None:
    model = name if kind == "model" else next(
        model for model in catalog.names("model") if name in catalog.parts(model, kind)
    )  # fmt: skip
    study = f"model: {model}\n" if kind != "model" else ""
    (told, *_) = mistakes(study_file, f"{study}{kind}: {{name: {name}, {knob}: {{choice: [{value}]}}}}")
    assert f"{kind}.{knob}.choice.0: must be " in told
    assert told.endswith(f"but got {value}")


@pytest.mark.parametrize("width", [1, 3, 5])
@pytest.mark.parametrize("model", ["resnet", "cnn"])
def test_no_group_asks_for_a_width_that_it_divides(model: str, width: int) -> None:
    """Maps hold their group on an axis of its own: C channels times |G| entries, whatever C is."""
    small = {"depth": 8} if model == "resnet" else {}
    for prior in catalog.parts(model, "prior"):
        call = filled("model", Call(name=model, args={"width": width, **small}))
        network = assembled(call, {"prior": filled("prior", Call(name=prior))}, DataShape((3, 8, 8), 5))
        with torch.inference_mode():
            assert network.eval()(torch.rand(2, 3, 8, 8)).shape == (2, 5), prior


@pytest.mark.parametrize(
    "config",
    [
        DataConfig(name="digits", args={"size": 12}),
        DataConfig(name="digits", args={"size": 16}, task="quadrant"),
        DataConfig(name="digits", args={"size": 16}, task="six_nine"),
    ],
)
def test_what_data_declare_is_what_they_load(config: DataConfig) -> None:
    splits = load_splits(config)
    assert declared_shape(config) == splits.data_shape


@pytest.mark.parametrize("name", catalog.names("dataset"))
def test_every_data_set_declares_its_shape(name: str) -> None:
    declared = declared_shape(DataConfig(name=name))
    assert len(declared.image) == 3
    assert declared.image[1] == declared.image[2]
    assert declared.classes >= 2


def test_a_folder_declares_what_it_is_asked_for() -> None:
    assert declared_shape(DataConfig(name="imagefolder", args={"size": 64, "grey": True})).image == (1, 64, 64)
    assert declared_shape(DataConfig(name="imagefolder", args={"size": 24, "grey": False})).image == (3, 24, 24)


def test_a_long_list_of_values_is_checked_for_seconds_alone(
    study_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of values that no network can have are not tried beside each other: the first hundred are said."""
    tried: list[int] = []
    original = feasible._Builds.tried
    monkeypatch.setattr(feasible._Builds, "tried", lambda self, pick: tried.append(1) or original(self, pick))
    monkeypatch.setattr(feasible, "MOST_TRIED", 300)
    depths = ", ".join(map(str, [8, *range(9, 1200, 6)]))  # all but the first are no 6n + 2
    text = f"study: s\nmodel: {{name: resnet, width: 2, depth: {{choice: [{depths}]}}}}\nobjectives: {{accuracy: maximize}}\n"
    with pytest.raises(UserError) as caught:
        load_study(study_file(text), (), require_networks)
    assert "model.depth.choice.1: no network can be built with depth 9" in str(caught.value)
    assert len(tried) < 300 + 1 + 200 + feasible.DRAWS + 1


def test_deep_networks_are_built_a_few_times_alone(
    study_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[int] = []
    monkeypatch.setattr(blueprint, "describe", lambda config, *_: built.append(config.model.args["depth"]))
    depths = ", ".join(map(str, range(8, 1203, 6)))
    text = f"study: s\nmodel: {{name: resnet, width: 2, depth: {{choice: [{depths}]}}}}\nobjectives: {{accuracy: maximize}}\n"
    load_study(study_file(text), (), require_networks)
    assert sum(built) < feasible.MOST_LAYERS + 1202

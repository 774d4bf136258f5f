"""The door for networks to be measured: names, weights from files, layouts, and what is refused."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fields import Net
from safetensors.torch import save_file
from torch import Tensor, nn

from equitune import catalog
from equitune.config.trial import TrialConfig
from equitune.data.on_device import DeviceData
from equitune.errors import UserError
from equitune.evaluation.capture import capturing, modified_in_place
from equitune.groups.layout import Grid, Layout, Tokens, Vector
from equitune.importing.weights import read_weights
from equitune.measuring.load import Subject, config_of, load_subject
from equitune.networks.build import build_model
from equitune.records.folder import StudyFolder, write_json
from equitune.results.values import TrialResult

SHAPE = (3, 32, 32)
IMAGENET = (torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225]))


def load(
    text: str | Path, root: Path = Path("nowhere"), shape: tuple[int, int, int] = SHAPE, **options: Any
) -> Subject:
    return load_subject(str(text), shape, 10, root=root, **options)


def scores(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return network.eval()(images)  # type: ignore[no-any-return]


def normalised(images: Tensor) -> Tensor:
    mean, std = (values.view(3, 1, 1) for values in IMAGENET)
    return (images - mean) / std


@pytest.fixture(scope="module")
def timm_network() -> nn.Module:
    """For 7 classes, with weights that no seed of ours gives."""
    import timm

    torch.manual_seed(123)
    return timm.create_model("resnet10t", num_classes=7).eval()  # type: ignore[no-any-return]


# Recorded trials.


@pytest.fixture
def study(tmp_path: Path, small_config: TrialConfig, small_data: DeviceData) -> Path:
    """A study with a trial that was trained (0), one that failed (1) and one that runs (2); the root it lies in."""
    folder = StudyFolder(tmp_path / "studies" / "small")
    write_json(folder.study, {"study": "small", "objectives": {"accuracy": "maximize"}, "trials": 2})
    for number in range(3):
        config = small_config.model_copy(update={"number": number, "seed": 5})
        write_json(folder.trial(number).config, config.to_json())
    model = build_model(small_config.model_copy(update={"seed": 5}), small_data)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1)
    save_file({name: weight.contiguous() for name, weight in model.state_dict().items()}, folder.trial(0).weights)
    failed = TrialResult(number=1, state="INFEASIBLE", reason="diverged: the loss is nan at step 3")
    write_json(folder.trial(1).result, failed.model_dump(mode="json"))
    return folder.path.parent


def test_a_recorded_trial_comes_with_its_weights_its_untrained_copy_and_its_data(
    study: Path, small_config: TrialConfig, small_data: DeviceData
) -> None:
    subject = load("small/0", study, small_data.data_shape.image)
    initial = build_model(small_config.model_copy(update={"seed": 5}), small_data)
    assert subject.untrained is not None
    for name, weight in initial.state_dict().items():
        assert subject.untrained.state_dict()[name].equal(weight)
        is_trained = name in dict(initial.named_parameters())
        assert subject.model.state_dict()[name].equal(weight + 0.1 if is_trained else weight)
    assert config_of("small/0", study).data == small_config.data
    assert subject.provenance["trial"] == "small/0"
    assert subject.provenance["architecture"] == "resnet:depth=8,width=2,width_rule=as_given,stages=3"
    assert len(subject.provenance["weights_sha256"]) == 64
    assert subject.notices == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("small/1", r"small/1 has no weights: it is INFEASIBLE \(diverged: the loss is nan at step 3\); name a trial"),
        ("small/2", "small/2 has no weights: it has not ended"),
        ("small/9", "study small has no trial 9: its trials are 0 to 2"),
        ("smal/0", "unknown study 'smal': did you mean 'small'"),
    ],
)
def test_a_trial_without_weights_says_how_it_stands(text: str, sentence: str, study: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        load(text, study)


def test_only_a_trial_knows_its_data() -> None:
    for text in ("resnet18", "timm/resnet18", "resnet:depth=8@a/b/3", "some/program.pt2"):
        assert config_of(text, Path("nowhere")) is None


# Known architectures and their weights.


def as_safetensors(state: dict[str, Tensor], path: Path) -> Path:
    save_file(state, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def as_torch(wrap: Callable[[dict[str, Tensor]], Any]) -> Callable[[dict[str, Tensor], Path], Path]:
    def write(state: dict[str, Tensor], path: Path) -> Path:
        torch.save(wrap(state), path.with_suffix(".pth"))
        return path.with_suffix(".pth")

    return write


@pytest.mark.parametrize(
    "write",
    [
        as_safetensors,
        as_torch(lambda state: state),
        as_torch(lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}),
        as_torch(lambda state: {"model": state}),
        as_torch(lambda state: {name: value for name, value in state.items() if "num_batches" not in name}),
    ],
)
def test_weights_of_a_timm_network_are_its_own_whatever_the_file_and_the_number_of_classes(
    write: Callable[[dict[str, Tensor], Path], Path], timm_network: nn.Module, tmp_path: Path
) -> None:
    subject = load(f"timm/resnet10t@{write(timm_network.state_dict(), tmp_path / 'w')}")
    images = torch.rand(2, *SHAPE)
    assert subject.classes == 7
    assert "the network has 7 classes and the data 10" in subject.notices[0]
    # timm's own statistics of resnet10t are ImageNet's; equal operators, hence to rounding.
    torch.testing.assert_close(
        scores(subject.model, images), scores(timm_network, normalised(images)), atol=1e-5, rtol=0
    )
    assert subject.untrained is not None
    untrained = scores(subject.untrained, images)
    assert untrained.shape == (2, 7)
    assert not torch.allclose(untrained, scores(subject.model, images), atol=1e-2)


def test_weights_of_a_torchvision_network_are_its_own(tmp_path: Path) -> None:
    from torchvision import models

    torch.manual_seed(123)
    network = models.shufflenet_v2_x0_5(num_classes=10)
    subject = load(f"torchvision/shufflenet_v2_x0_5@{as_safetensors(network.state_dict(), tmp_path / 'w')}")
    images = torch.rand(2, *SHAPE)
    torch.testing.assert_close(scores(subject.model, images), scores(network, normalised(images)), atol=1e-5, rtol=0)
    assert subject.notices == []


def test_weights_of_a_catalogue_model_bring_their_normalisation(tmp_path: Path) -> None:
    network = catalog.entry("model", "cnn")(SHAPE, 10, catalog.entry("prior", "conv")(padding="circular"), width=4)
    network.normalise.use(torch.full((3,), 0.3), torch.full((3,), 0.2))
    file = as_safetensors(network.state_dict(), tmp_path / "w")
    subject = load(f"cnn:width=4,prior=conv,prior.padding=circular,downsampler=pool2@{file}")
    images = torch.rand(2, *SHAPE)
    assert torch.equal(scores(subject.model, images), scores(network, images))
    assert subject.untrained is not None
    assert torch.equal(subject.untrained.normalise.mean, network.normalise.mean)
    assert subject.provenance["prior"] == "conv:padding=circular"
    assert subject.provenance["downsampler"] == "pool2"
    other = load(f"cnn:width=4,prior.padding=circular,downsampler=aps,downsampler.blur=3@{file}")
    assert other.provenance["downsampler"] == "aps:blur=3"
    assert not torch.equal(scores(other.model, images), scores(subject.model, images))


def test_the_stem_of_a_transformer_can_be_named(tmp_path: Path) -> None:
    plain = load("vit:depth=1,width=8,heads=2,patch=4")
    assert plain.provenance["stem"] == "conv:padding=zero"
    file = as_safetensors(plain.model.state_dict(), tmp_path / "w")
    turned = load("vit:depth=1,width=8,heads=2,patch=4,stem=p4,stem.head=mean")
    assert turned.provenance["stem"] == "p4:head=mean,padding=zero"
    with pytest.raises(UserError, match="these weights are of another network: 1 missing .patches.psi"):
        load(f"vit:depth=1,width=8,heads=2,patch=4,stem=p4@{file}")
    with pytest.raises(UserError, match="resnet takes no stem, but got stem 'p4'"):
        load("resnet:stem=p4")


def test_names_are_looked_up_in_the_catalogue_then_timm_then_torchvision() -> None:
    for text, expected in [
        ("resnet:depth=8,width=2", "resnet:depth=8,width=2,width_rule=as_given,stages=3"),
        ("resnet10t", "timm:architecture=resnet10t"),
        ("timm:architecture=resnet10t", "timm:architecture=resnet10t"),
        ("squeezenet1_1", "torchvision:architecture=squeezenet1_1"),
        ("torchvision/resnet18", "torchvision:architecture=resnet18"),
    ]:
        subject = load(text)
        assert subject.provenance["architecture"] == expected
        assert "no weights were given: the network is random" in subject.notices


def test_the_seed_decides_the_initial_weights() -> None:
    first, again, other = (load("resnet:depth=8,width=2", seed=seed).model for seed in (1, 1, 2))
    images = torch.rand(2, *SHAPE)
    assert torch.equal(scores(first, images), scores(again, images))
    assert not torch.equal(scores(first, images), scores(other, images))


def test_given_statistics_take_the_place_of_the_declared_ones() -> None:
    images = torch.rand(2, *SHAPE)
    declared = load("timm/resnet10t")
    given = load("timm/resnet10t", mean=[0.0] * 3, std=[1.0])
    assert torch.equal(scores(given.model, normalised(images)), scores(declared.model, images))
    for wrong in ({"mean": [0.5, 0.5]}, {"std": [0.0]}, {"std": [float("nan")]}):
        with pytest.raises(UserError, match="is 1 or 3 finite numbers"):
            load("resnet:depth=8,width=2", **wrong)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("resnt", "unknown model 'resnt': did you mean 'resnet'"),
        ("timm/resnt18", "timm has no architecture 'resnt18': nearest: resnet18"),
        ("torchvision/resnt18", "torchvision has no classifier 'resnt18': nearest: resnet18"),
        ("mine/resnet18", "unknown model 'mine/resnet18'"),
        ("resnet:widht=4", "widht: unknown name 'widht': did you mean 'width'"),
        ("resnet:depth=deep", "depth: must be a whole number, but got 'deep'"),
        ("resnet:depth", "arguments are KEY=VALUE, separated by commas, but got 'depth'"),
        ("resnet:depth=9", "the depth of a resnet in 3 stages is 6n"),
        ("vit:downsampler=aps", "vit takes no downsampler, but got downsampler 'aps'"),
        ("resnet:downsampler=aps,downsampler.blur=2", "blur: must be one of 1, 3 or 5, but got 2"),
        ("resnet:prior=attention", "resnet takes conv, ceconv, .*, but got prior 'attention'"),
        ("torchvision/inception_v3", "inception_v3 cannot take images of 32 x 32"),
        ("resnet18@nowhere.pth", "nowhere.pth: no such file: name a file of weights"),
        ("nowhere.pt2", "nowhere.pt2: no such file"),
    ],
)
def test_mistakes_are_said_in_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load(text)


def test_weights_alone_need_an_architecture(timm_network: nn.Module, tmp_path: Path) -> None:
    file = as_safetensors(timm_network.state_dict(), tmp_path / "w")
    with pytest.raises(UserError, match="holds weights alone: name their architecture too, ARCHITECTURE@"):
        load(file)


def test_weights_of_another_network_are_refused_with_what_differs(timm_network: nn.Module, tmp_path: Path) -> None:
    file = as_safetensors(timm_network.state_dict(), tmp_path / "w")
    with pytest.raises(UserError, match="these weights are of another network: ") as error:
        load(f"timm/resnet18@{file}")
    own, given = load("timm/resnet18").model.network.state_dict(), timm_network.state_dict()
    missing, unexpected = (
        [name for name in names if name not in others and "num_batches" not in name]
        for names, others in ((own, given), (given, own))
    )
    assert f" {len(missing)} missing ({', '.join(missing[:3])}, ...)" in str(error.value)
    assert f" {len(unexpected)} unexpected (" in str(error.value)  # a file has its own order
    assert "layer2.0.downsample.1.weight is 128 x 64 x 1 x 1 there and 128 here" in str(error.value)
    with pytest.raises(UserError, match="there and"):  # a width of as many channels as there are classes
        load(f"cnn:width=10@{as_safetensors(load('cnn:width=4').model.state_dict(), tmp_path / 'cnn')}")


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


def test_no_code_of_a_weights_file_is_run(tmp_path: Path) -> None:
    touched, file = tmp_path / "touched", tmp_path / "evil.pth"
    torch.save({"state_dict": {"fc.weight": torch.zeros(2)}, "args": Payload(touched)}, file)
    with pytest.raises(UserError, match=r"evil.pth is not a file of tensors alone, and nothing else is read from it"):
        load(f"resnet18@{file}")
    assert not touched.exists()
    torch.load(file, weights_only=False)
    assert touched.exists()  # the payload is alive


@pytest.mark.parametrize("content", [b"", b"text", json.dumps({"a": 1}).encode()])
@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_files_without_tensors_are_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="is not a file of tensors alone"):
        read_weights(tmp_path / name)


def test_a_file_of_one_tensor_holds_no_state_dict(tmp_path: Path) -> None:
    torch.save(torch.zeros(2), tmp_path / "w.pth")
    with pytest.raises(UserError, match="holds no state dict"):
        read_weights(tmp_path / "w.pth")


# Layouts.


@pytest.mark.parametrize(
    "architecture",
    [
        "resnet18",
        "vit_tiny_patch16_224",
        "deit_tiny_distilled_patch16_224",
        "swin_tiny_patch4_window7_224",
        "convnext_atto",
        "levit_128s",
        "mobilenetv3_small_100",
    ],
)
def test_maps_of_timm_networks_are_those_that_timm_itself_gives(architecture: str) -> None:
    subject = load(f"timm/{architecture}", shape=(3, 64, 64))
    network: Any = subject.model.network
    images = torch.rand(2, 3, 64, 64)
    seen: dict[str, Tensor] = {}
    with torch.no_grad(), capturing(subject.model, subject.model.layers, seen.__setitem__, clone=subject.model.layers):
        subject.model(images)
    with torch.no_grad():
        known = network.forward_intermediates(
            subject.model.normalise(images), output_fmt="NCHW", intermediates_only=True
        )
    assert list(seen) == list(subject.model.layers)
    assert len(seen) > len(known)  # the blocks of a stage, not its end alone
    for maps in known:
        same = [
            layer for layer, value in seen.items() if value.shape[-2:] == maps.shape[-2:] and value[:, :, 0].equal(maps)
        ]
        assert same, f"nothing that is measured equals timm's map of {tuple(maps.shape)}"
        assert all(subject.model.layers[layer].stride == 64 // maps.shape[-1] for layer in same)


@pytest.mark.parametrize(
    ("architecture", "layer", "layout"),
    [
        ("resnet18", "layer3.1", Grid(16)),
        ("vgg11", "features.9", Grid(4)),
        ("densenet121", "features.denseblock2.denselayer12", Grid(8)),
        ("mobilenet_v3_small", "features.12", Grid(32)),
        ("swin_t", "features.3.1", Grid(8, channels_last=True)),
        ("vit_b_32", "encoder.layers.encoder_layer_11", Tokens(32, 2, 2, special=1)),
        ("maxvit_t", "blocks.2.layers.0", Grid(16)),
    ],
)
def test_layers_of_torchvision_networks_have_the_layout_of_their_type(
    architecture: str, layer: str, layout: Layout
) -> None:
    side = 224 if architecture.startswith("maxvit") else 64
    with torch.device("meta"):  # shapes alone
        network = catalog.entry("model", "torchvision")((3, side, side), 10, None, architecture=architecture)
    assert network.layers[f"network.{layer}"] == layout
    assert list(network.layers.values())[-1] == Vector()


def test_sides_that_no_stride_divides_have_the_stride_that_is_applied() -> None:
    layers = load("torchvision/resnet18", shape=(3, 33, 33)).model.layers  # 33 -> 17 -> 9 -> 9, 5, 3, 2
    assert [layers[f"network.{name}"].stride for name in ("relu", "maxpool", "layer2.0", "layer4.1")] == [2, 4, 8, 32]


def test_maps_that_lose_the_border_are_not_measured_and_it_is_said() -> None:
    subject = load("torchvision/alexnet", shape=(3, 64, 64))  # 64 -> 15 positions at stride 4
    assert [layout.is_spatial for layout in subject.model.layers.values()] == [False] * 9
    assert "8 of 8 inner layers cannot be measured (network.features.1, " in subject.notices[1]


def test_special_tokens_can_be_told() -> None:
    declared, told = load("timm/cait_xxs24_224"), load("timm/cait_xxs24_224", special_tokens=0)
    assert "24 of 24 inner layers cannot be measured" in declared.notices[1]
    assert len(told.notices) == 1
    assert told.model.layers["network.blocks.0"] == Tokens(16, 2, 2, special=0)
    with pytest.raises(UserError, match="no layer of this network has tokens"):
        load("resnet:depth=8,width=2", special_tokens=1)


def test_a_program_is_loaded_as_a_network_and_must_be_a_classifier(tmp_path: Path) -> None:
    def export(network: nn.Module, name: str) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.save(torch.export.export(network, (torch.rand(2, *SHAPE),)), tmp_path / name)
        return tmp_path / name

    body = [nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU()]
    subject = load(export(nn.Sequential(*body, nn.Flatten(), nn.Linear(1024, 10)), "net.pt2"), mean=[0.5], std=[0.5])
    assert subject.untrained is None
    assert subject.classes == 10
    assert subject.model.layers == {"taps.relu": Grid(2), "output": Vector()}
    assert float(subject.model.normalise.mean.flatten()[0]) == 0.5
    assert any("no untrained copy" in notice for notice in subject.notices)
    assert {"program", "program_sha256", "parameters"} <= set(subject.provenance)
    with pytest.raises(
        UserError, match=r"a classifier gives scores \(2, K\) for two images, but this one gives \(2, 4, 16"
    ):
        load(export(nn.Sequential(*body), "maps.pt2"))


# Capturing.


class Overwritten(nn.Module):
    """A convolution whose output the next module writes over."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.act = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=inplace)
        self.layers: dict[str, Layout] = {"conv": Grid(1), "act": Grid(1)}

    def forward(self, images: Tensor) -> Tensor:
        return self.act(self.conv(images)).mean((2, 3))


def test_outputs_that_are_written_over_are_found_and_cloned() -> None:
    images = torch.rand(2, *SHAPE)

    def captured(inplace: bool, clone: set[str]) -> Tensor:
        seen: dict[str, Tensor] = {}
        network = Overwritten(inplace)
        with torch.inference_mode(), capturing(network, network.layers, seen.__setitem__, clone=clone):
            network(images)
        return seen["conv"]

    assert modified_in_place(Overwritten(False), ["conv", "act"], images) == set()
    assert modified_in_place(Overwritten(True), ["conv", "act"], images) == {"conv"}
    assert torch.equal(captured(True, {"conv"}), captured(False, set()))
    assert not torch.equal(captured(True, set()), captured(False, set()))  # the broken twin


class Both(nn.Module):
    def __init__(self, give: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.give = give

    def forward(self, images: Tensor) -> Any:
        return self.give(images)


@pytest.mark.parametrize("layout", [Grid(1), Tokens(1, 32, 32), Vector()])
@pytest.mark.parametrize(
    ("give", "said"), [(lambda x: (x, x), "gave a tuple"), (lambda x: {"maps": x}, "gave a dict"), (len, "gave a int")]
)
def test_outputs_that_are_no_tensor_cannot_be_measured(
    layout: Layout, give: Callable[[Tensor], Any], said: str
) -> None:
    network, reasons = Net(Both(give), layout), []
    with capturing(network, network.layers, lambda *_: None, lambda _, error: reasons.append(error)):
        network(torch.rand(1, *SHAPE))
    assert [error.status for error in reasons] == ["non_spatial"]
    assert said in str(reasons[0])
    assert modified_in_place(network, network.layers, torch.rand(1, *SHAPE)) == set()

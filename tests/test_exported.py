"""Exported programs: the same scores as the network, the same inner features, and no code of the file is run."""

import contextlib
import copy
import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equitune import catalog
from equitune.errors import UserError
from equitune.evaluation.capture import capturing
from equitune.groups.layout import Grid, Layout, Tokens
from equitune.importing.archive import DTYPES, LAYOUTS, MEMORY_FORMATS
from equitune.importing.exported import load_exported
from equitune.models.timm import TimmModel
from equitune.models.torchvision import TorchvisionModel

SHAPE = (3, 32, 32)


def export(network: nn.Module, path: Path, batch: int | None = None, shape: tuple[int, ...] = SHAPE) -> Path:
    """Saves a program; without a batch, one for any number of images."""
    images = torch.rand(batch or 2, *shape)
    dynamic = None if batch else ({0: torch.export.Dim.DYNAMIC},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(network.eval(), (images,), dynamic_shapes=dynamic), path)
    return path


def rewritten(
    path: Path, to: Path, changes: dict[str, Callable[[bytes], bytes]], compression: int = zipfile.ZIP_STORED
) -> Path:
    """A copy of an archive with some of its records changed, or added."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w", compression) as new:
        root = old.namelist()[0].split("/")[0]
        for name in dict.fromkeys([*old.namelist(), *(f"{root}/{name}" for name in changes)]):
            record = old.read(name) if name in old.namelist() else b""
            new.writestr(name, changes.get(name.split("/", 1)[1], bytes)(record))
    return to


def in_json(change: Callable[[Any], None]) -> Callable[[bytes], bytes]:
    def changed(record: bytes) -> bytes:
        data = json.loads(record)
        change(data)
        return json.dumps(data).encode()

    return changed


def features(network: nn.Module, layers: dict[str, Layout], images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    seen: dict[str, Tensor] = {}
    with torch.no_grad(), capturing(network, layers, seen.__setitem__, clone=layers):
        return network(images), seen


def small_vit() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return TimmModel(
        VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=10, reg_tokens=1),
        SHAPE,
    )


def small_swin() -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    return TimmModel(
        SwinTransformer(
            img_size=32, patch_size=2, window_size=4, embed_dim=8, depths=(2, 2), num_heads=(1, 2), num_classes=10
        ),
        SHAPE,
    )


def small_resnet() -> nn.Module:
    from torchvision.models.resnet import BasicBlock, ResNet

    network = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)
    return TorchvisionModel(network, SHAPE, ([0.0], [1.0]))


def catalogue_resnet() -> nn.Module:
    prior = catalog.entry("prior", "conv")()
    return catalog.entry("model", "resnet")(SHAPE, 10, prior, depth=8, width=4)  # type: ignore[no-any-return]


NETWORKS = {"vit": small_vit, "swin": small_swin, "resnet": small_resnet, "catalogue": catalogue_resnet}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("programs")


def plain() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 8, 3, 2, 1), nn.GELU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()


@pytest.fixture(scope="module")
def program(folder: Path) -> Path:
    return export(plain(), folder / "plain.pt2")


@pytest.mark.parametrize("name", NETWORKS)
def test_scores_and_features_are_those_of_the_network_that_was_exported(name: str, folder: Path) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):  # statistics that are not the identity
            nn.init.uniform_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    model = load_exported(export(network, folder / f"{name}.pt2"), SHAPE)
    images = torch.rand(3, *SHAPE)
    expected, declared = features(network.eval(), network.layers, images)
    scores, found = features(model, model.layers, images)
    assert torch.equal(scores, expected)  # the same operators on the same numbers
    assert list(found) == list(model.layers)
    for layer, layout in network.layers.items():
        value = declared[layer]
        if not layout.is_spatial or value[0, 0].numel() == 1 or layer == "stem":  # the stem's activation is measured
            continue
        same = [tap for tap in found if found[tap].shape == value.shape and found[tap].equal(value)]
        assert same, f"no tap has the features of {layer}"
        assert all(model.layers[tap].stride == layout.stride for tap in same)
    twin = copy.deepcopy(model).to("meta")
    assert twin(images.to("meta")).device.type == "meta"  # constants follow the images to another device


class ColumnsFirst(nn.Module):
    """Patches counted down the columns, then a residual step on them."""

    def __init__(self, is_transposed: bool, special_in_front: bool = True) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.special = nn.Parameter(torch.rand(1, 2, 8))
        self.step = nn.Linear(8, 8)
        self.output = nn.Linear(8, 5)
        self.is_transposed, self.special_in_front = is_transposed, special_in_front

    def forward(self, images: Tensor) -> Tensor:
        maps = self.patches(images)
        tokens = (maps.transpose(2, 3) if self.is_transposed else maps).flatten(2).transpose(1, 2)
        special = self.special.expand(images.shape[0], -1, -1)
        tokens = torch.cat([special, tokens] if self.special_in_front else [tokens, special], 1)
        tokens = tokens + self.step(tokens)
        return self.output(tokens.mean(1))


@pytest.mark.parametrize(
    ("is_transposed", "special_in_front", "is_known"), [(False, True, True), (True, True, False), (False, False, False)]
)
def test_tokens_are_read_where_the_graph_says_how_and_not_where_their_number_alone_would_fit(
    is_transposed: bool, special_in_front: bool, is_known: bool, tmp_path: Path
) -> None:
    network = ColumnsFirst(is_transposed, special_in_front)
    layers = load_exported(export(network, tmp_path / "tokens.pt2"), SHAPE).layers
    tokens = [layout for layout in layers.values() if isinstance(layout, Tokens)]
    assert tokens == ([Tokens(4, 8, 8, special=2)] if is_known else [])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ([nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU()], {"taps.relu": Grid(2)}),
        ([nn.Conv2d(3, 4, 3), nn.ReLU()], {}),  # 30 positions of 32: the image's border is lost
        ([nn.Conv2d(3, 4, (3, 1), (2, 1), (1, 0)), nn.ReLU()], {}),  # rows and columns at unlike steps
        ([nn.ZeroPad2d(1), nn.Conv2d(3, 4, 3), nn.ReLU()], {"taps.relu": Grid(1)}),
        ([nn.ConvTranspose2d(3, 4, 2, 2), nn.ReLU()], {}),
        ([nn.Conv2d(3, 4, 1), nn.ReLU(), nn.MaxPool2d(2)], {"taps.relu": Grid(1), "taps.max_pool2d": Grid(2)}),
        ([nn.Flatten(), nn.Linear(3072, 9), nn.ReLU(), nn.Unflatten(1, (1, 3, 3))], {}),
    ],
)
def test_strides_follow_from_the_operators(body: list[nn.Module], expected: dict[str, Layout], tmp_path: Path) -> None:
    network = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    layers = load_exported(export(network, tmp_path / "body.pt2"), SHAPE).layers
    assert {name: layout for name, layout in layers.items() if name != "output"} == expected


@pytest.mark.parametrize(("batch", "images"), [(2, 5), (3, 2), (1, 3)])
def test_a_program_with_a_fixed_batch_takes_any_number_of_images(batch: int, images: int, tmp_path: Path) -> None:
    network = plain()
    fixed = load_exported(export(network, tmp_path / "fixed.pt2", batch), SHAPE)
    free = load_exported(export(network, tmp_path / "free.pt2"), SHAPE)
    x = torch.rand(images, *SHAPE)
    scores, found = features(fixed, fixed.layers, x)
    expected, known = features(free, free.layers, x)
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=0)  # other batches, other sums: rounding
    assert list(found) == list(known) == ["taps.relu_", "taps.gelu", "output"]
    for layer, value in found.items():
        torch.testing.assert_close(value, known[layer], atol=1e-6, rtol=0)


def test_it_converts_as_a_network_does(program: Path) -> None:
    model = load_exported(program, SHAPE)
    x = torch.rand(3, *SHAPE)
    with torch.no_grad():
        single, double = model(x), model.double()(x)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, atol=1e-6, rtol=0)
    assert sum(weight.numel() for weight in model.parameters()) == sum(w.numel() for w in plain().parameters())


# What a file could make torch's own loader run; each with the twin that shows the payload to be alive.


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def expression(path: Path) -> str:
    return f"__import__('pathlib').Path({str(path)!r}).touch()"


def with_pickled_example(path: Path) -> dict[str, Any]:
    return {"data/sample_inputs/model.pt": lambda _: saved(Payload(path))}


def with_pickled_weight(path: Path) -> dict[str, Any]:
    return {
        "data/weights/model_weights_config.json": in_json(
            lambda data: next(iter(data["config"].values())).update(use_pickle=True)
        ),
        "data/weights/weight_0": lambda _: saved(Payload(path)),
    }


def with_pickled_constant(path: Path) -> dict[str, Any]:
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    return {
        "data/constants/model_constants_config.json": in_json(lambda data: data["config"].update(evil=entry)),
        "data/constants/opaque_obj_0": lambda _: pickle.dumps(Payload(path)),
    }


def with_expression(path: Path) -> dict[str, Any]:
    def change(data: Any) -> None:
        for value in data["graph_module"]["graph"]["tensor_values"].values():
            for size in value["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = expression(path)

    return {"models/model.json": in_json(change)}


def with_guard(path: Path) -> dict[str, Any]:
    return {"models/model.json": in_json(lambda data: data.update(guards_code=[expression(path)]))}


@pytest.mark.parametrize(
    ("attack", "is_taken"),
    [
        (with_pickled_example, True),
        (with_pickled_weight, False),
        (with_pickled_constant, False),
        (with_expression, True),
        (with_guard, True),
    ],
)
def test_no_code_of_the_file_is_run(
    attack: Callable[[Path], dict[str, Any]], is_taken: bool, program: Path, tmp_path: Path
) -> None:
    touched = tmp_path / "touched"
    path = rewritten(program, tmp_path / "evil.pt2", attack(touched))
    if is_taken:  # what could run is not read at all
        assert torch.equal(*(load_exported(file, SHAPE)(torch.ones(1, *SHAPE)) for file in (path, program)))
    else:
        with pytest.raises(UserError, match="stored as a pickle, which could run code"):
            load_exported(path, SHAPE)
    assert not touched.exists()
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.load(path).module()(torch.rand(2, *SHAPE))
    assert touched.exists(), "the payload is dead, so the test shows nothing"


def first_node(**changes: Any) -> dict[str, Any]:
    return {"models/model.json": in_json(lambda data: data["graph_module"]["graph"]["nodes"][0].update(changes))}


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system",
        "torch.load",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.__class__.__init__",
        "torch.ops.aten.conv2d.__class__",
        "torch.ops.higher_order.cond",
        "_operator.attrgetter",
        "#mine.op",
        "builtins.eval",
        "",
    ],
)
def test_a_node_calls_one_of_the_known_operators(target: str, program: Path, tmp_path: Path) -> None:
    path = rewritten(program, tmp_path / "evil.pt2", first_node(target=target))
    with pytest.raises(UserError, match="it calls .*, which is not among the operators that are taken"):
        load_exported(path, SHAPE)


class Counting(nn.Module):
    """Its scores depend on how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("asked", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.asked.add_(1)
        return images.mean((2, 3)) * self.asked


class Twice(nn.Module):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images.mean((2, 3)), images


class Unevaluated(nn.Module):
    """Drops out, whatever mode it is exported in."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.dropout(images.mean((2, 3)), training=True)


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        (Counting(), "changes its own weights or buffers while it runs"),
        (Twice(), "gives one tensor of class scores, but this one gives 2 outputs"),
        (Unevaluated(), "'dropout' was exported in training mode: export the network after model.eval()"),
    ],
)
def test_programs_that_are_no_classifiers_are_refused(network: nn.Module, sentence: str, tmp_path: Path) -> None:
    path = export(network, tmp_path / "other.pt2")
    with pytest.raises(UserError, match=sentence):
        load_exported(path, SHAPE)


def test_images_of_another_shape_are_refused(program: Path) -> None:
    with pytest.raises(UserError, match="takes images of 3 x 32 x 32, but these are 1 x 28 x 28"):
        load_exported(program, (1, 28, 28))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"models/model.json": lambda _: b"{"}, r"is not an exported program .*\(JSONDecodeError"),
        ({"models/model.json": lambda _: b"[" * 100_000}, "is not an exported program"),
        ({"models/other.json": lambda _: b"{}"}, "this one holds 2"),
        ({"models/model.json": in_json(lambda d: d["schema_version"].update(major=9))}, "its schema is 9, 8 is read"),
        ({"data/weights/weight_0": lambda record: record[:16]}, "'0.weight' of .* needs 432 bytes, but 16 are stored"),
        (first_node(inputs=[]), "cannot run on 2 images of 3 x 32 x 32: conv2d: RuntimeError"),
        (
            first_node(outputs=[{"as_tensor": {"name": "elsewhere"}}]),
            "cannot run on 2 images of 3 x 32 x 32: .*: KeyError",
        ),
    ],
)
def test_what_is_no_whole_program_is_a_sentence(
    changes: dict[str, Any], sentence: str, program: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        load_exported(rewritten(program, tmp_path / "broken.pt2", changes), SHAPE)


def test_files_that_are_no_archives_are_refused(program: Path, tmp_path: Path) -> None:
    (tmp_path / "text.pt2").write_text("weights")
    with pytest.raises(UserError, match=r"text.pt2 is not an exported program that torch.export.save wrote"):
        load_exported(tmp_path / "text.pt2", SHAPE)
    with pytest.raises(UserError, match="is compressed"):
        load_exported(rewritten(program, tmp_path / "small.pt2", {}, zipfile.ZIP_DEFLATED), SHAPE)


def test_the_numbers_of_the_schema_are_torchs_own() -> None:
    from torch._export.serde import serialize

    for own, known in (
        (DTYPES, serialize._SERIALIZE_TO_TORCH_DTYPE),
        (MEMORY_FORMATS, serialize._SERIALIZE_TO_TORCH_MEMORY_FORMAT),
        (LAYOUTS, serialize._SERIALIZE_TO_TORCH_LAYOUT),
    ):
        assert own.items() <= {int(number): value for number, value in known.items()}.items()

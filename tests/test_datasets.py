"""Data sets and their splits: what is there, what is divided how, and what is said of what is missing or broken."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from equitune import catalog
from equitune.config.trial import DataConfig
from equitune.data.splits import Splits, load_splits
from equitune.errors import UserError

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"


def digits(**values: object) -> Splits:
    return load_splits(DataConfig(name="digits", args={"size": 16}, **values))  # type: ignore[arg-type]


def test_digits_come_with_the_package_and_lose_nothing_under_small_shifts() -> None:
    splits = digits()
    assert splits.shape == (1, 16, 16)
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 1797
    pixels = np.concatenate([part.pixels for part in (splits.train, splits.validation, splits.test)])
    assert pixels[:, :, :4].max() == pixels[:, :, -4:].max() == pixels[..., :4].max() == pixels[..., -4:].max() == 0
    assert pixels[:, :, 4:12, 4:12].max() == 255
    assert 0 < splits.mean[0] < 1
    values = splits.train.pixels / 255
    assert splits.mean[0] == pytest.approx(values.mean(), abs=1e-12)
    assert splits.std[0] == pytest.approx(values.std(), abs=1e-12)


def test_splits_are_disjoint_stratified_and_seeded() -> None:
    splits, again, other = digits(), digits(), digits(split_seed=1)
    assert splits.fingerprint == again.fingerprint != other.fingerprint
    rows = [{image.tobytes() for image in part.pixels} for part in (splits.train, splits.validation, splits.test)]
    assert not rows[0] & rows[1]
    assert not rows[0] & rows[2]
    assert not rows[1] & rows[2]
    for part, share in ((splits.test, 0.2), (splits.validation, 0.16)):
        for label in range(10):
            whole = sum((p.labels == label).sum() for p in (splits.train, splits.validation, splits.test))
            assert (part.labels == label).sum() == pytest.approx(share * whole, abs=1.5)


def test_a_limit_is_stratified_too() -> None:
    splits = digits(limit=100)
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 100
    assert set(np.bincount(splits.train.labels)) <= {6, 7}


def test_too_few_images_are_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match="cannot be divided at"):
        digits(limit=12)


def write_idx(path: Path, array: np.ndarray) -> None:
    path.write_bytes(
        struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    )


def write_mnist(root: Path, n: int = 60) -> Path:
    """A data set in MNIST's own format."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for part, size in (("train", n), ("t10k", n // 3)):
        write_idx(raw / f"{part}-images-idx3-ubyte", draw.integers(0, 256, (size, 28, 28), np.uint8))
        write_idx(raw / f"{part}-labels-idx1-ubyte", (np.arange(size) % 10).astype(np.uint8))
    return raw


def test_torchvision_data_keep_their_own_test_split(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    splits = load_splits(DataConfig(name="mnist", root=str(tmp_path)))
    assert splits.shape == (1, 28, 28)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (48, 12, 20)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_missing_data_are_answered_with_the_command_that_gets_them(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_splits(DataConfig(name=name, root=str(tmp_path / "nowhere")))
    assert f"get it with `equitune download {name} --data-root {tmp_path / 'nowhere'}`" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: b"", lambda data: b"garbage" * 999])
def test_a_corrupt_file_is_named(damage: object, tmp_path: Path) -> None:
    broken = write_mnist(tmp_path) / "train-images-idx3-ubyte"
    broken.write_bytes(damage(broken.read_bytes()))  # type: ignore[operator]
    with pytest.raises(UserError) as caught:
        load_splits(DataConfig(name="mnist", root=str(tmp_path)))
    assert f"corrupt: {broken}; remove it first" in str(caught.value)
    assert "t10k" not in str(caught.value)


def test_a_corrupt_cifar_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(gzip.compress(b"no pickle"))
    with pytest.raises(UserError, match="equitune download cifar10"):
        load_splits(DataConfig(name="cifar10", root=str(tmp_path)))


def test_a_data_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"the data root is a folder, but .*file is a file: name another with --data-root"
    ):
        load_splits(DataConfig(name="mnist", root=str(tmp_path / "file")))


def test_the_data_root_comes_from_the_study_then_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path)
    monkeypatch.setenv("EQUITUNE_DATA", str(tmp_path))
    assert len(load_splits(DataConfig(name="mnist")).test) == 20
    with pytest.raises(UserError):
        load_splits(DataConfig(name="mnist", root=str(tmp_path / "other")))


def write_images(folder: Path, classes: int = 3, each: int = 10, size: tuple[int, int] = (20, 16)) -> None:
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for index in range(each):
            colour = (80 * label, 5 * index, 200)
            Image.new("RGB", size, colour).save(folder / f"class{label}" / f"{index}.png")


def folder_config(path: Path, **args: object) -> DataConfig:
    return DataConfig(name="imagefolder", args={"path": str(path), "test_path": None, "size": 8, "grey": False} | args)


def test_a_folder_of_images_is_read_by_class(tmp_path: Path) -> None:
    write_images(tmp_path / "photos")
    (tmp_path / "photos" / "class0" / "notes.txt").write_text("not an image")
    splits = load_splits(folder_config(tmp_path / "photos"))
    assert splits.class_names == ("class0", "class1", "class2")
    assert splits.shape == (3, 8, 8)
    for pixels, label in zip(splits.train.pixels, splits.train.labels, strict=True):
        assert (pixels[0] == 80 * label).all()
    assert load_splits(folder_config(tmp_path / "photos", grey=True)).shape == (1, 8, 8)


def test_a_folder_may_bring_its_own_test_images(tmp_path: Path) -> None:
    write_images(tmp_path / "a")
    write_images(tmp_path / "b", each=2)
    splits = load_splits(folder_config(tmp_path / "a", test_path=str(tmp_path / "b")))
    assert (len(splits.train) + len(splits.validation), len(splits.test)) == (30, 6)
    write_images(tmp_path / "c", classes=2)
    with pytest.raises(UserError, match="must have the same classes"):
        load_splits(folder_config(tmp_path / "a", test_path=str(tmp_path / "c")))


def test_images_are_cut_to_their_centre(tmp_path: Path) -> None:
    write_images(tmp_path / "x", size=(40, 8))
    picture = Image.new("RGB", (40, 8), (0, 0, 0))
    picture.paste((255, 255, 255), (16, 0, 24, 8))
    picture.save(tmp_path / "x" / "class0" / "0.png")
    splits = load_splits(folder_config(tmp_path / "x"))
    everything = np.concatenate([part.pixels for part in (splits.train, splits.validation, splits.test)])
    assert any((pixels == 255).all() for pixels in everything)


def test_broken_images_are_named(tmp_path: Path) -> None:
    write_images(tmp_path / "photos")
    broken = tmp_path / "photos" / "class1" / "3.png"
    broken.write_bytes(broken.read_bytes()[:40])
    empty = tmp_path / "photos" / "class2" / "9.jpg"
    empty.write_bytes(b"")
    with pytest.raises(UserError) as caught:
        load_splits(folder_config(tmp_path / "photos"))
    assert str(broken) in str(caught.value)
    assert str(empty) in str(caught.value)
    assert "2 images cannot be decoded" in str(caught.value)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: None, "there is no folder"),
        (lambda path: path.mkdir(), "must have one subfolder for each of two classes or more, but has 0"),
        (lambda path: [(path / name).mkdir(parents=True) for name in "ab"], "holds no image"),
    ],
)
def test_folders_that_hold_no_data(make: object, sentence: str, tmp_path: Path) -> None:
    make(tmp_path / "photos")  # type: ignore[operator]
    with pytest.raises(UserError, match=sentence):
        load_splits(folder_config(tmp_path / "photos"))


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is absent: real MNIST and Fashion-MNIST stay unread")
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_real_files_are_read(name: str) -> None:
    splits = load_splits(DataConfig(name=name, root=str(SHARED), limit=2000))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (1600, 400, 10_000)
    assert len(splits.class_names) == 10


@pytest.mark.parametrize("name", catalog.names("dataset"))
def test_every_data_set_keeps_the_contract(name: str, tmp_path: Path) -> None:
    arguments = {}
    if name == "imagefolder":
        write_images(tmp_path)
        arguments = {"path": str(tmp_path)}
    try:
        first, again = (catalog.entry("dataset", name)(SHARED, **arguments) for _ in range(2))
    except UserError as missing:
        pytest.skip(str(missing))
    for pixels, labels in ((first.pixels, first.labels), (first.test_pixels, first.test_labels)):
        if pixels is None:
            continue
        assert (pixels.dtype, pixels.ndim, labels.dtype) == (np.uint8, 4, np.int64)
        assert pixels.shape[1] in (1, 3)
        assert pixels.shape[2] == pixels.shape[3]
        assert len(pixels) == len(labels)
        assert set(labels) <= set(range(len(first.class_names)))
    assert np.array_equal(first.pixels, again.pixels)


def test_every_data_set_that_is_missing_can_be_fetched_by_name() -> None:
    fetched = [name for name in catalog.names("dataset") if hasattr(catalog.module("dataset", name), "download")]
    assert fetched == ["cifar10", "cifar100", "fashion_mnist", "mnist"]

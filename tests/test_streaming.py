"""Images that stay in their files: the same numbers as from arrays, bit for bit, and each broken one is named."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from equitune.config.load import load_study
from equitune.config.resources import Resources
from equitune.config.trial import DataConfig, InputConfig, TrialConfig
from equitune.data import decoders as _decoders
from equitune.data import files as _files
from equitune.data.cache import CannotKeep
from equitune.data.decoders import BrokenImage, DecoderLost, Decoders, decoders
from equitune.data.on_device import DeviceData, to_device
from equitune.data.resize import at_size
from equitune.data.split import DeviceSplit, StreamedSplit, move
from equitune.data.splits import Splits, load_splits
from equitune.driver.resources import Placement
from equitune.errors import UserError
from equitune.evaluation.image_set import EvaluationSet
from equitune.measuring.images import load_images
from equitune.records.folder import StudyFolder, TrialFolder
from equitune.records.reader import StudyReader
from equitune.results.values import Epoch, TrialResult
from equitune.training.run import run_trial
from equitune.training.test_split import measure_on_test

SIZE = 16


def write_photos(root: Path, each: int = 30) -> Path:
    """JPEGs of three classes, one colour each under noise, of several shapes."""
    rng = np.random.default_rng(0)
    for label, colour in enumerate(((200, 40, 40), (40, 200, 40), (40, 40, 200))):
        (root / f"class{label}").mkdir(parents=True)
        for index in range(each):
            pixels = rng.normal(colour, 60, (9, 12, 3)).clip(0, 255).astype(np.uint8)
            size = (24 + index, 33 - index % 7)
            Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(root / f"class{label}" / f"{index}.jpg")
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nobody writes there."""
    return write_photos(tmp_path_factory.mktemp("photos") / "photos")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where decoded images are kept; what is in a folder is read where it lies."""
    monkeypatch.delenv("EQUITUNE_DATA_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home/.cache/equitune"


@pytest.fixture(scope="module", autouse=True)
def no_decoders_afterwards() -> Iterator[None]:
    yield
    _decoders.close_decoders()


def loaded(folder: Path, **args: Any) -> Splits:
    return load_splits(DataConfig(name="imagefolder", args={"path": str(folder), "size": SIZE} | args))


def both(folder: Path, **args: Any) -> tuple[DeviceData, DeviceData]:
    """The data from arrays, and from their files."""
    in_memory, in_files = (to_device(loaded(folder, stream=stream, **args), "cpu", 2) for stream in (False, True))
    assert isinstance(in_memory.train, DeviceSplit)
    assert isinstance(in_files.train, StreamedSplit)
    return in_memory, in_files


@pytest.fixture(scope="module")
def data(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[DeviceData, DeviceData]:
    """Of the photographs that nobody changes."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("EQUITUNE_DATA_CACHE", "")
        patched.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        found = both(photos)
        assert found[1].validation.pixels.shape == (15, 3, SIZE, SIZE)
        return found


def same_batches(first: Any, second: Any, order: torch.Tensor, batch_size: int = 7) -> bool:
    """Compared when all are there: what is overwritten later has not been kept."""
    taken = [list(split.batches(order, batch_size)) for split in (first, second)]
    return len(taken[0]) == len(taken[1]) and all(
        torch.equal(images, others) and torch.equal(labels, their_labels)
        for (images, labels), (others, their_labels) in zip(*taken, strict=True)
    )


def numbers(result: TrialResult) -> str:
    return json.dumps(result.repeatable().model_dump(mode="json"), sort_keys=True)


def put_truncated(path: Path) -> str:
    """An image whose header is whole."""
    path.write_bytes(path.read_bytes()[:-200])
    return str(path)


# The same data.


@pytest.mark.parametrize("args", [{}, {"grey": True, "size": 5}])
def test_what_is_streamed_is_what_arrays_hold(photos: Path, args: dict[str, Any]) -> None:
    arrays, streamed = both(photos, **args)
    order = torch.randperm(len(arrays.train.labels))
    assert len(order) == 57
    assert same_batches(arrays.train, streamed.train, order)
    assert torch.equal(arrays.validation.pixels, streamed.validation.pixels)
    assert (arrays.mean, arrays.std, arrays.data_shape) == (streamed.mean, streamed.std, streamed.data_shape)


def test_another_order_is_noticed(data: tuple[DeviceData, DeviceData]) -> None:
    arrays, streamed = data
    assert isinstance(streamed.train, StreamedSplit)
    files = streamed.train.files
    swapped = replace(streamed.train, files=files[np.arange(len(files))[::-1]])
    assert not same_batches(arrays.train, swapped, torch.arange(len(files)))


def test_images_of_another_size(data: tuple[DeviceData, DeviceData]) -> None:
    arrays, streamed = (at_size(each, InputConfig(size=11)) for each in data)
    assert arrays.data_shape == streamed.data_shape
    assert streamed.train.shape == streamed.data_shape.image == (3, 11, 11)
    assert (arrays.mean, arrays.std) == (streamed.mean, streamed.std)
    assert same_batches(arrays.train, streamed.train, torch.randperm(57))
    assert torch.equal(arrays.validation.pixels, streamed.validation.pixels)


def test_batches_come_in_their_order_whoever_is_done_first(tmp_path: Path) -> None:
    paths = []
    for index in range(40):  # the first of each batch takes 50 times as long as the others
        paths.append(str(tmp_path / f"{index}.png"))
        side = 700 if index % 10 == 0 else 8
        Image.new("RGB", (side, side), (index, 0, 0)).save(paths[-1])
    by = Decoders(3)
    batches = [paths[start : start + 10] for start in range(0, 40, 10)]
    found = [pixels[:, 0, 0, 0].tolist() for pixels in by.decoded(batches, 10, 8, False)]
    by.close()
    assert found == [list(range(start, start + 10)) for start in range(0, 40, 10)]


def test_what_is_not_taken_to_its_end_spoils_nothing(data: tuple[DeviceData, DeviceData]) -> None:
    arrays, streamed = data
    left = streamed.train.batches(torch.arange(57), 7)
    next(left)
    assert same_batches(arrays.train, streamed.train, torch.randperm(57), 11)
    del left
    assert same_batches(arrays.train, streamed.train, torch.randperm(57), 30)


def test_mean_and_deviation_of_many_are_those_of_a_sample(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = loaded(photos)
    monkeypatch.setattr(_files, "SAMPLE", 40)
    first, again = (loaded(photos, stream=True) for _ in range(2))
    assert first.mean == again.mean != exact.mean
    assert first.mean == pytest.approx(exact.mean, abs=0.05)  # 17 images more or less of 57, whose means differ by 0.2
    assert first.std == pytest.approx(exact.std, abs=0.05)
    assert first.fingerprint == again.fingerprint


def test_other_images_have_another_fingerprint(photos: Path, tmp_path: Path) -> None:
    copies = [write_photos(tmp_path / name) for name in ("same", "renamed", "other")]
    (copies[1] / "class0/0.jpg").rename(copies[1] / "class0/x.jpg")
    Image.new("RGB", (24, 33)).save(copies[2] / "class0/0.jpg")
    found = [loaded(folder, stream=True).fingerprint for folder in (photos, *copies)]
    assert found[0] == found[1]
    assert len(set(found)) == 3


# Trials.


def test_a_trial_gives_the_same_numbers_also_after_an_interruption(
    data: tuple[DeviceData, DeviceData], small_config: TrialConfig, tmp_path: Path
) -> None:
    arrays, streamed = data
    whole = run_trial(small_config, arrays)
    assert whole.state == "COMPLETE"
    assert numbers(run_trial(small_config, streamed)) == numbers(whole)

    class Stopped(BaseException):
        pass

    def stop(epoch: Epoch) -> None:
        raise Stopped

    folder = TrialFolder(tmp_path / "00000")
    folder.path.mkdir()
    with pytest.raises(Stopped):
        run_trial(small_config, streamed, folder=folder, on_epoch=stop)
    assert numbers(run_trial(small_config, streamed, folder=folder)) == numbers(whole)


def test_the_test_split_is_measured(photos: Path, small_config: TrialConfig, tmp_path: Path) -> None:
    found = []
    for stream in (False, True):
        splits, folder = loaded(photos, stream=stream), TrialFolder(tmp_path / f"0000{stream:d}")
        folder.path.mkdir()
        run_trial(small_config, to_device(splits, "cpu"), folder=folder)
        found.append(measure_on_test(small_config, folder, splits))
    assert found[0] == found[1]


def test_measuring_a_split_that_is_streamed(photos: Path) -> None:
    first, second = (
        load_images(f"imagefolder:path={photos},size=16,stream={stream}", "test", None) for stream in ("false", "true")
    )
    assert torch.equal(move(first.split, "cpu").pixels, move(second.split, "cpu").pixels)
    smaller = second.at_size(InputConfig(size=9))
    assert smaller.shape == (3, 9, 9)
    assert smaller.fingerprint == first.at_size(InputConfig(size=9)).fingerprint


def test_pixels_may_lie_elsewhere_than_the_model() -> None:
    images = EvaluationSet(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4, device="meta"), "test")
    assert images.device.type == "meta"
    assert {batch.device.type for batch, _ in images.batches()} == {"meta"}


def test_files_take_none_of_the_devices_memory(
    photos: Path, small_config: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory, in_files = (
        Placement(Resources(gpu="auto"), StudyFolder(tmp_path / str(stream)), loaded(photos, stream=stream), 10.0)
        for stream in (False, True)
    )
    images = 57 + 15
    difference = in_memory.predicted_gib(small_config) - in_files.predicted_gib(small_config)
    assert difference * 2**30 == pytest.approx(images * (3 * SIZE * SIZE + 8))


# On this node's disk, once.


def test_pixels_are_decoded_once_for_all_processes_of_a_node(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = move(loaded(photos, stream=True).validation, "cpu").pixels
    monkeypatch.setattr(StreamedSplit, "_read", lambda self, first: pytest.fail("decoded again"))
    second = move(loaded(photos, stream=True).validation, "cpu").pixels
    assert torch.equal(first, second)


def test_pixels_that_were_written_in_part_are_completed(
    photos: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = move(loaded(photos, stream=True).validation, "cpu")
    whole = split.pixels.clone()
    (path,) = (cache / "decoded").glob("*.u8")
    path.with_suffix(".part").write_bytes(path.read_bytes()[: 5 * 3 * SIZE * SIZE + 77])
    path.unlink()
    read, begun = StreamedSplit._read, []

    def noted(self: StreamedSplit, first: int) -> Iterator[Any]:
        begun.append(first)
        return read(self, first)

    monkeypatch.setattr(StreamedSplit, "_read", noted)
    again = move(loaded(photos, stream=True).validation, "cpu")
    assert torch.equal(again.pixels, whole)
    assert begun == [5]
    path.write_bytes(path.read_bytes()[:-1])  # a file that is not whole is not taken
    assert torch.equal(move(loaded(photos, stream=True).validation, "cpu").pixels, whole)
    assert begun == [5, 0]


@pytest.mark.parametrize("is_noticed", [True, False])
def test_an_image_that_has_changed_is_decoded_again(tmp_path: Path, is_noticed: bool) -> None:
    folder = write_photos(tmp_path / "photos")
    splits = loaded(folder, stream=True)
    before = move(splits.validation, "cpu").pixels
    files = splits.validation.pixels
    assert isinstance(files, _files.Files)
    (path,) = files.paths(str(folder), np.array([3]))
    then = os.stat(path).st_mtime_ns
    Image.new("RGB", (20, 20)).save(path)
    os.utime(path, ns=(then + is_noticed, then + is_noticed))  # the twin hides the change of the very same file
    after = move(splits.validation, "cpu").pixels
    assert [index for index in range(len(files)) if not torch.equal(before[index], after[index])] == [3] * is_noticed


def test_a_full_disk_is_no_fault_of_the_trial(
    photos: Path, cache: Path, small_config: TrialConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = to_device(loaded(photos, stream=True), "cpu", 2)

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_files, "require_room", full)
    with pytest.raises(CannotKeep, match=f"{cache} is full: free some space"):
        run_trial(small_config, data)


STUDY = """\
study: photos
data: {{name: imagefolder, path: {path}, size: 16, stream: true}}
model: {{name: resnet, depth: 8, width: {{int: [2, 4]}}}}
training: {{epochs: 2, batch_size: 16}}
objectives: {{accuracy: maximize, parameters: minimize}}
search: {{trials: 2, seed: 3}}
resources: {{cpu: 2}}
"""


@pytest.mark.slow
def test_a_study_from_files_finds_what_one_from_arrays_does(photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "photos.yaml"
    file.write_text(STUDY.format(path=photos))
    command = [sys.executable, "-m", "equitune", "search", str(file), "--root", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    arrays = to_device(loaded(photos), "cpu")
    for record in StudyReader(StudyFolder(tmp_path / "photos")).read().trials:
        assert record.state == "COMPLETE"
        assert record.result is not None
        assert (
            json.loads(numbers(run_trial(record.config, arrays)))["metrics"]
            == json.loads(numbers(record.result))["metrics"]
        )


# What goes wrong.


def test_what_is_no_image_is_named_before_training(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos")
    (folder / "class0/empty.png").touch()
    (folder / "class1/3.jpg").write_text("a text")
    with pytest.raises(UserError) as caught:
        loaded(folder, stream=True)
    assert str(caught.value) == (
        f"2 images cannot be decoded: {folder}/class0/empty.png (UnidentifiedImageError), "
        f"{folder}/class1/3.jpg (UnidentifiedImageError): mend or remove them"
    )


@pytest.mark.parametrize("which", ["train", "validation"])
def test_an_image_that_is_cut_off_ends_the_trial_with_its_name(
    which: str,
    tmp_path: Path,
    small_config: TrialConfig,
    monkeypatch: pytest.MonkeyPatch,
    data: tuple[DeviceData, DeviceData],
) -> None:
    monkeypatch.setattr(_files, "SAMPLE", 1)  # or it would be noticed before, among so few
    folder = write_photos(tmp_path / "photos")
    splits = loaded(folder, stream=True)
    files = getattr(splits, which).pixels
    path = put_truncated(Path(files.paths(str(folder), np.array([9]))[0]))
    result = run_trial(small_config, to_device(splits, "cpu", 2))
    assert result.state == "FAILED"
    assert result.reason == f"BrokenImage: {path} (OSError): mend or remove what cannot be decoded"
    assert same_batches(*(each.train for each in data), torch.arange(57))  # the next trial has its images


def test_an_image_that_is_gone_is_named(photos: Path) -> None:
    by = decoders(2)
    with pytest.raises(BrokenImage, match=r"nowhere\.jpg \(FileNotFoundError\)"):
        list(by.decoded([[str(photos / "nowhere.jpg")]], 1, SIZE, False))


def test_a_decoder_that_dies_fails_the_trial_and_not_the_next(
    data: tuple[DeviceData, DeviceData], small_config: TrialConfig
) -> None:
    streamed = data[1]

    def kill(epoch: Epoch) -> None:
        if epoch.epoch == 1:
            os.kill(_decoders._kept[0]._processes[0].pid, signal.SIGKILL)

    result = run_trial(small_config, streamed, on_epoch=kill)
    assert result.state == "FAILED"
    assert re.match(
        r"DecoderLost: a process that decodes images has died \(.*\): was there memory enough", str(result.reason)
    )
    assert run_trial(small_config, streamed).state == "COMPLETE"


def test_larger_batches_find_room(photos: Path) -> None:
    by = Decoders(2)
    paths = [str(photos / f"class0/{index}.jpg") for index in range(30)]
    few = next(by.decoded([paths[:2]], 2, SIZE, False)).copy()
    for pixels in by.decoded([paths] * 5, 30, 64, True):
        assert pixels.shape == (30, 1, 64, 64)
        assert pixels.any((1, 2, 3)).all()
    assert np.array_equal(next(by.decoded([paths[:2]], 2, SIZE, False)), few)
    by.close()
    with pytest.raises(DecoderLost):
        list(by.decoded([paths], 30, SIZE, False))


ORPHANS = """
import os, sys, time
from equitune.data.decoders import Decoders
by = Decoders(2)
print(*(process.pid for process in by._processes), flush=True)
time.sleep(60)
"""


def test_decoders_end_with_their_process_however_it_ends() -> None:
    parent = subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    children = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(children) == 2
    assert all(is_running(child) for child in children)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while any(is_running(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_running(child) for child in children)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_tasks_are_made_of_arrays_alone(photos: Path, study_file: Callable[..., Path]) -> None:
    text = "study: s\ndata: {name: imagefolder, path: x, stream: true, task: turned}\nmodel: cnn\nobjectives: {loss: minimize}\n"
    with pytest.raises(
        UserError, match=r"study.yaml:2:\d+ .*task: turned is made of images in memory: leave stream out"
    ):
        load_study(study_file(text))
    with pytest.raises(UserError, match="task: another task than class is made of images in memory"):
        load_splits(DataConfig(name="imagefolder", task="turned", args={"path": str(photos), "stream": True}))

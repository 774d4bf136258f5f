"""What has been reported is on the disk: every step of a study may be the last before a power cut."""

import ast
import errno
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch
from invented import learns
from shadow_disk import MODES, ShadowDisk, Tree, restored
from test_architecture import modules
from test_replay import run, said, told

from equitune.config.load import load_study
from equitune.config.study import StudySpec
from equitune.config.trial import TrialConfig
from equitune.data.on_device import DeviceData
from equitune.errors import StoreError
from equitune.records import durable
from equitune.records.durable import append, make_folder, remove, replace, write_json, write_whole
from equitune.records.folder import StudyFolder, TrialFolder
from equitune.records.place import RemotePath
from equitune.records.reader import StudyReader
from equitune.results.values import Epoch
from equitune.search.engine import Engine
from equitune.search.storage import open_storage
from equitune.training.run import run_trial


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory, where there is such a place: what is tried here is the order of the steps."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as path:
        yield Path(path)


@pytest.fixture
def spec(study_file: Callable[..., Path]) -> StudySpec:
    return load_study(study_file(), ("search.sampler=random", "search.trials=3"))


JOURNAL = "study.journal"


def searched(root: Path, spec: StudySpec, ignores: Callable[[Path], bool] = lambda path: False) -> ShadowDisk:
    """A whole study on invented curves, and what a power cut would leave at each of its steps."""
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        disk = ShadowDisk(root, patch, ignores)
        reached, tell = Engine.reached, Engine._tell

        def hear(engine: Engine, number: int, epoch: int, metrics: Any) -> bool:
            disk.report((number, epoch))
            return reached(engine, number, epoch, metrics)

        def end(engine: Engine, trial: Any, result: Any) -> None:
            disk.report((number := trial.number, f"trials/{number:05d}/result.json"))
            tell(engine, trial, result)
            disk.report((number, JOURNAL))

        patch.setattr(Engine, "reached", hear)
        patch.setattr(Engine, "_tell", end)
        run(root, spec, learns, workers=2)
    return disk


def missing(tree: Tree, reported: tuple[Any, ...]) -> list[Any]:
    """What was reported, and is not in the study's folder that a power cut has left."""
    lost = []
    for number, what in reported:
        if what == JOURNAL:
            data = b"{}" if tree.get("small/study.journal") else None
        elif isinstance(what, str):
            data = tree.get(f"small/{what}")
        else:
            lines = (tree.get(f"small/trials/{number:05d}/epochs.jsonl") or b"").split(b"\n")
            data = next((line for line in lines if line and _epoch_of(line) == what), None)
        if not data or _epoch_of(data) is None:
            lost.append((number, what))
    return lost


def _epoch_of(data: bytes) -> int | None:
    """Of an epoch's line; 0 of other JSON, None of what is not whole."""
    try:
        return int(json.loads(data).get("epoch", 0))
    except ValueError:
        return None


def test_a_power_cut_at_any_step_ends_with_the_undisturbed_answer(tmp_path: Path, spec: StudySpec) -> None:
    disk = searched(tmp_path / "root", spec)
    whole = StudyFolder(tmp_path / "root" / "small")
    expected = told(whole, spec), said(StudyReader(whole).read())
    assert len(disk.cuts) > 150, "nothing was tried"
    assert sum(what == JOURNAL for _, what in disk.cuts[-1][2]) == 3
    trees: dict[int, Tree] = {}
    for survives, tree, reported in disk.cuts:
        assert missing(tree, reported) == [], survives
        trees.setdefault(hash(tuple(sorted(tree.items(), key=str))), tree)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        for number, tree in enumerate(trees.values()):
            root = restored(tree, tmp_path / f"cut{number}")
            run(root, spec, learns, workers=2)
            folder = StudyFolder(root / "small")
            assert (told(folder, spec), said(StudyReader(folder).read())) == expected, sorted(tree)


TWINS: dict[str, Callable[[Path], bool]] = {
    "files": lambda path: path.name.startswith("."),
    "lines": lambda path: path.suffix == ".jsonl",
    "folders": lambda path: path.is_dir(),
}


@pytest.mark.parametrize("twin", TWINS)
def test_a_twin_that_does_not_flush_loses_what_it_has_reported(twin: str, tmp_path: Path, spec: StudySpec) -> None:
    disk = searched(tmp_path / "root", spec, TWINS[twin])
    assert any(missing(tree, reported) for _, tree, reported in disk.cuts)


def test_a_trial_reports_what_is_on_the_disk(tmp_path: Path, small_config: TrialConfig, small_data: DeviceData) -> None:
    """Each epoch with its checkpoint, then weights and result; and every cut goes on to the same numbers."""
    (tmp_path / "root").mkdir()
    path = tmp_path / "root" / "00000"
    with pytest.MonkeyPatch.context() as patch:
        disk = ShadowDisk(tmp_path / "root", patch)

        def report(epoch: Epoch) -> None:
            disk.report(epoch.epoch)
            for survives in MODES:
                left = disk.left(survives)
                assert _epochs(left)[-1] == _saved(left) == epoch.epoch

        write_json(path / "config.json", {})
        expected = run_trial(small_config, small_data, folder=TrialFolder(path), on_epoch=report)
    left = disk.left("flushed")
    assert left["00000/result.json"] == (path / "result.json").read_bytes()
    assert left["00000/weights.safetensors"] == (path / "weights.safetensors").read_bytes()
    assert "00000/checkpoint.pt" not in left
    trees = {hash(tuple(sorted(tree.items(), key=str))): tree for _, tree, _ in disk.cuts if "00000" in tree}
    for tree in trees.values():
        assert _saved(tree) in (0, *_epochs(tree)), "a checkpoint without its epoch leaves a gap"
    kept = {(_saved(tree), len(_epochs(tree))): tree for tree in trees.values()}
    assert len(kept) > 4, "nothing was tried"
    for number, tree in enumerate(kept.values()):
        folder = TrialFolder(restored(tree, tmp_path / str(number)) / "00000")
        again = run_trial(small_config, small_data, folder=folder)
        same = [name for name in expected.metrics if name not in ("seconds", "peak_memory_gib")]
        assert {name: again.metrics[name] for name in same} == {name: expected.metrics[name] for name in same}
        assert [epoch.epoch for epoch in folder.read_epochs()] == [1, 2]


def _epochs(tree: Tree) -> list[int]:
    lines = (tree.get("00000/epochs.jsonl") or b"").splitlines()
    return [epoch for line in lines if (epoch := _epoch_of(line))]


def _saved(tree: Tree) -> int:
    """The epoch of the checkpoint; 0 where there is none. It must be whole."""
    data = tree.get("00000/checkpoint.pt")
    if data is None:
        return 0
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        return int(torch.load(file.name, weights_only=True)["epoch"])


@pytest.mark.parametrize("torn", [b'{"epoch": 1, "tr', b"\0\0\0\0", b'{"epoch": 1}'])
def test_a_torn_last_line_does_not_swallow_the_next(torn: bytes, tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path, 0)
    folder.epochs.write_bytes(torn)
    for number in (2, 3):
        folder.append_epoch(_epoch(number))
    assert [epoch.epoch for epoch in folder.read_epochs()] == [2, 3]
    assert folder.epochs.read_bytes().startswith(torn + b"\n")


def _epoch(number: int) -> Epoch:
    values = dict.fromkeys(("time", "train_loss", "validation_loss", "lr", "train_s", "images_per_s"), 1.0)
    return Epoch(epoch=number, validation_accuracy=0.5, **values)  # type: ignore[arg-type]


def failing(flushes: int, number: int = errno.EIO) -> Callable[[int], None]:
    """A disk that cannot take what is flushed, after so many times that it could."""
    count = itertools.count()

    def fsync(descriptor: int) -> None:
        if next(count) >= flushes:
            raise OSError(number, os.strerror(number))

    return fsync


@pytest.mark.parametrize("flushes", [0, 1])
def test_a_flush_that_fails_is_an_error_that_names_the_file(
    flushes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(b"before")
    monkeypatch.setattr(os, "fsync", failing(flushes))
    with pytest.raises(OSError, match="Input/output error") as caught:
        write_whole(path, b"after")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == (b"after" if flushes else b"before")
    assert [each.name for each in tmp_path.iterdir()] == ["result.json"]


def test_a_line_or_a_folder_that_cannot_be_flushed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", failing(0))
    lines = tmp_path / "epochs.jsonl"
    with pytest.raises(OSError, match=f"Input/output error: '{lines}'"):
        append(lines, "{}\n")
    with pytest.raises(OSError, match=f"Input/output error: '{tmp_path / 'new'}'"):
        make_folder(tmp_path / "new")


def test_a_second_flush_is_of_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel calls a file clean after a flush that failed: only what is written anew is flushed again."""
    numbers: list[int] = []

    def fsync(descriptor: int) -> None:
        numbers.append(os.fstat(descriptor).st_ino)
        if len(numbers) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    kept = os.open(tmp_path, os.O_RDONLY)  # a folder's number, to be told apart
    with pytest.raises(OSError, match="Input/output error"):
        write_whole(tmp_path / "a", b"data")
    (tmp_path / "between").write_bytes(b"takes the number that is free")
    write_whole(tmp_path / "a", b"data")
    os.close(kept)
    assert numbers[0] not in numbers[1:]


@pytest.mark.parametrize("number", durable.NO_FLUSH_OF_FOLDERS)
def test_a_file_system_that_flushes_no_folders_is_taken(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", failing(1, number))
    write_whole(tmp_path / "a", b"data")
    assert (tmp_path / "a").read_bytes() == b"data"


def test_a_folder_gets_its_name_with_all_that_lies_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = ShadowDisk(tmp_path, monkeypatch)
    source = tmp_path / ".00000.brought" / "inner"
    source.mkdir(parents=True)
    (source / "file").write_bytes(b"data")
    replace(source.parent, tmp_path / "00000")
    assert disk.left("flushed") == {"00000": None, "00000/inner": None, "00000/inner/file": b"data"}
    remove(tmp_path / "00000" / "inner" / "file")
    remove(tmp_path / "00000" / "inner" / "file")  # none is there any more
    assert disk.left("flushed") == {"00000": None, "00000/inner": None}


# Who writes past the door, and why what it writes need not be there after a power cut.
PAST_THE_DOOR = {
    "data.cache": "a copy of data; flushed in one go before it is called whole",
    "data.files": "decoded images; flushed before they get their name",
    "records.on_disk": "scratch, of what goes to an object store",
    "records.place": "an object store's own writes",
    "report.files": "tables and pictures, made anew by their command",
    "report.figures": "likewise",
    "report.front": "likewise",
    "report.arms": "likewise",
    "report.page": "likewise",
    "report.profile": "likewise",
    "driver.ray_address": "the null device",
    "driver.ray_files": "the folder of Ray's own files",
    "driver.session": "Ray Tune's own files are removed",
    "driver.run_here": "a trial's log",
    "search.warm_start": "a copy, flushed before it gets its name",
    "tracking.projector": "scratch, of what goes to MLflow",
    "importing.opener": "answers, through a pipe",
    "measuring.export": "a program, flushed when torch has written it",
    "training.epoch": "a checkpoint, into memory first",
    "cli.trials": "an export, to be made again",
}
WRITES = {"write_bytes", "write_text", "savefig", "save", "save_file", "dump", "rmtree", "copytree", "copyfile", "move"}
FLUSHES = {"fsync", "fdatasync", "sync", "replace", "rename"}


def past_the_door(text: str) -> list[str]:
    """The calls of a module that write, rename or flush files by themselves."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        of = ast.unparse(owner).split(".")[0] if owner else ""
        if of == "os" and name in FLUSHES:
            found.append(f"os.{name}")
        elif name == "replace" and owner and len(node.args) == 1 and not node.keywords:  # of a text it has two
            found.append("Path.replace")
        elif name == "open" and any(isinstance(each, ast.Constant) and _writes(each.value) for each in _modes(node)):
            found.append("open")
        elif (
            name in WRITES
            and owner
            and (of in ("shutil", "torch", "json") or name in ("write_bytes", "write_text", "savefig"))
        ):
            found.append(f"{of}.{name}")
    return found


def _modes(call: ast.Call) -> list[ast.expr]:
    return [*call.args, *(each.value for each in call.keywords if each.arg == "mode")]


def _writes(mode: object) -> bool:
    return isinstance(mode, str) and len(mode) < 4 and set(mode) <= set("rwaxbt+") and bool(set(mode) & set("wax+"))


def test_only_the_door_writes_what_must_survive() -> None:
    found = {name for name, text in modules().items() if past_the_door(text)} - {"records.durable"}
    assert found == set(PAST_THE_DOOR)


@pytest.mark.parametrize(
    "text",
    [
        "import os\nos.replace(a, b)",
        "import os\nos.fsync(file)",
        "path.replace(other)",
        "path.open('w')",
        "open(path, mode='ab')",
        "path.write_text('{}')",
        "import torch\ntorch.save(state, path)",
        "import json\njson.dump(data, file)",
        "import shutil\nshutil.move(a, b)",
    ],
)
def test_a_twin_that_writes_past_the_door_is_caught(text: str) -> None:
    assert past_the_door(text)
    assert not past_the_door("text.replace('a', 'b')\npath.open('rb')\nwrite_whole(path, data)")


def test_a_store_is_durable_by_its_contract() -> None:
    """What the store has answered counts; what it refuses is an error."""

    class Refusing:
        def pipe_file(self, key: str, data: bytes) -> None:
            raise PermissionError("403")

        def _strip_protocol(self, text: str) -> str:
            return text

    with pytest.raises(StoreError):
        write_json(RemotePath(Refusing(), "s3", PurePosixPath("bucket/a")), {})


@pytest.mark.parametrize("rewrites", [True, False])  # the second one is the broken twin
def test_a_result_whose_worker_died_is_flushed_before_it_is_told(
    rewrites: bool, tmp_path: Path, spec: StudySpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker was killed after the file had its name, and before it was flushed."""

    class Died(Exception):
        pass

    def die(engine: Engine, number: int, result: Any) -> None:
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "ended", die)
        with pytest.raises(Died):
            run(tmp_path, spec, learns)
    disk, tell = ShadowDisk(tmp_path, monkeypatch), Engine._tell  # nothing of what stands there was flushed

    def end(engine: Engine, trial: Any, result: Any) -> None:
        disk.report((trial.number, f"trials/{trial.number:05d}/result.json"))
        tell(engine, trial, result)

    monkeypatch.setattr(Engine, "_tell", end)
    if not rewrites:
        monkeypatch.setattr("equitune.search.engine.rewrite", lambda path: None)
    folder = StudyFolder(tmp_path / "small")
    Engine(spec, folder, open_storage(folder, spec))
    cuts = [(tree, reported) for survives, tree, reported in disk.cuts if survives == "names" and reported]
    assert cuts
    assert any(missing(tree, reported) for tree, reported in cuts) != rewrites

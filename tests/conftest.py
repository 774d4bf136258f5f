"""What the tests share: small studies and small data."""

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from equitune.config.load import load_study
from equitune.config.study import StudySpec
from equitune.config.trial import DataConfig, TrialConfig
from equitune.data.on_device import DeviceData, to_device
from equitune.data.splits import Splits, load_splits
from equitune.networks.device import make_deterministic
from equitune.records.folder import StudyFolder, write_json
from equitune.tracking.store import default_tracking_uri
from equitune.training.run import run_trial

SMALL_STUDY = """\
study: small
data: {name: digits, limit: 200}
model:
  name: resnet
  depth: 8
  width: {int: [2, 4]}
augmentation:
  translate: {max_px: {float: [0, 2]}}
training: {epochs: 2, batch_size: 32, lr: {float: [1e-3, 1e-2], log: true}}
measures:
  - equivariance
objectives: {accuracy: maximize, translation_error: minimize}
search: {trials: 4, seed: 7}
"""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What starts Ray or servers comes first: of `pytest -n 2` one process has all of that, and the other begins with
    the rest.

    Hosts of network namespaces and disks in files are made where `-m` asks for them by name, never by `slow or not
    slow`.
    """
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    for name in ("netns", "power"):
        if name not in config.option.markexpr:
            left_out = [item for item in items if item.get_closest_marker(name)]
            items[:] = [item for item in items if item not in left_out]
            config.hook.pytest_deselected(items=left_out)


@pytest.fixture(autouse=True)
def one_at_a_time(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Of the slow tests, which wait for each other where the second process has nothing else left.

    The fuzz suite starts no Ray and runs beside the others.
    """
    slow, processes = request.node.get_closest_marker("slow"), "PYTEST_XDIST_WORKER" in os.environ
    slow = slow and request.node.path.name != "test_fuzz.py"
    with FileLock(tmp_path_factory.getbasetemp().parent / "slow.lock") if slow and processes else nullcontext():
        yield


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """As a trial runs."""
    make_deterministic("cpu")
    torch.manual_seed(0)


@pytest.fixture
def study_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a study's text to a file: the small one, where none is given."""

    def write(text: str = SMALL_STUDY, name: str = "study.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def small_spec(study_file: Callable[..., Path]) -> StudySpec:
    return load_study(study_file())


@pytest.fixture(scope="session")
def small_splits() -> Splits:
    return load_splits(DataConfig(name="digits", limit=200, args={"size": 16}))


@pytest.fixture(scope="session")
def small_data(small_splits: Splits) -> DeviceData:
    return to_device(small_splits, "cpu")


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory, small_data: DeviceData) -> Path:
    """A root with a study, `small`, of two trials that were trained for an epoch; nobody writes there."""
    root = tmp_path_factory.mktemp("recorded")
    (root / "small.yaml").write_text(SMALL_STUDY.replace("epochs: 2", "epochs: 1"), encoding="utf-8")
    spec, folder = load_study(root / "small.yaml"), StudyFolder(root / "small")
    write_json(folder.study, {"study": spec.study, "objectives": {"accuracy": "maximize"}, "trials": 2})
    for number, end in enumerate((0, -1)):
        config = spec.suggest(number, lambda name, distribution, end=end: distribution.bounds[end])  # type: ignore[misc]
        write_json(folder.trial(number).config, config.to_json())
        assert run_trial(config, small_data, folder=folder.trial(number)).state == "COMPLETE"
    return root


@pytest.fixture
def small_config(small_spec: StudySpec) -> TrialConfig:
    """The first trial of the small study, with each parameter at its first or lowest value."""

    def lowest(name: str, distribution: object) -> object:
        return getattr(distribution, "choice", None) or distribution.bounds[0]  # type: ignore[attr-defined]

    return small_spec.suggest(0, lowest)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tracking store of MLflow with its tables; making them takes longer than all that is tested of it."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(tmp_path: Path, empty_store: Path) -> str:
    """The URI of a tracking store that is empty."""
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    return default_tracking_uri(tmp_path)

"""Trials of several workers, and of mixed sizes, on real Ray. Slow."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from chaos import MARK, Search, marked, trial_of
from services import wait_until

from equitune.config.resources import Resources, Size
from equitune.driver.resources import placement_of, request_of
from equitune.errors import WorkerLost
from equitune.records.folder import StudyFolder, TrialFolder
from equitune.records.reader import StudyReader
from equitune.results.values import TrialResult

pytestmark = pytest.mark.slow

EPOCHS = 40
STUDY = f"""\
study: small
data: {{name: digits, limit: 200}}
model: {{name: resnet, depth: 8, width: {{choice: [2, 4]}}}}
augmentation: {{translate: {{max_px: 1}}}}
training: {{epochs: {EPOCHS}, batch_size: 32}}
objectives: {{accuracy: maximize}}
search: {{trials: 2, seed: 3}}
resources: {{workers: 2, cpu: 1}}
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A machine with two cores, and with four GPUs that nobody looks for."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("RAY_AUTH_MODE", "disabled"), ("RAY_USAGE_STATS_ENABLED", "0"), (MARK, "team")):
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        memory = 100_000_000  # bytes of the object store
        node = {"num_cpus": 2, "num_gpus": 4, "object_store_memory": memory, "include_dashboard": False}
        started = Cluster(initialize_head=True, head_node_args=node)
        yield started
        started.shutdown()


def ranks() -> dict[int, int | None]:
    """The processes that train, with the trials of the first ones, which write their logs."""
    return {pid: trial_of(pid) for pid, command in marked("team").items() if command.startswith("ray::RayTrainWorker")}


def free(address: str) -> dict[str, float]:
    """What nobody occupies."""
    import ray

    ray.init(address=address, log_to_driver=False)
    try:
        return {name: amount for name, amount in ray.available_resources().items() if name in ("CPU", "GPU")}
    finally:
        ray.shutdown()


@pytest.fixture
def search(cluster: Any, study_file: Callable[..., Path], tmp_path: Path) -> Iterator[Search]:
    """Two trials at once, of two workers each, on two cores; both train."""
    made = Search(study_file(STUDY), tmp_path / "studies", "--address", cluster.address)
    made.mark = "team"
    try:
        made.start()
        assert made.until(lambda: len(epochs_of(made)) == 2, 300), made.output  # neither waits for the other's end
        yield made
    finally:
        made.kill_driver()


def epochs_of(search: Search) -> dict[int, list[int]]:
    """Those recorded of each trial that trains."""
    trials = [trial for trial in StudyFolder(search.folder).trials() if not trial.result.exists()]
    read = {trial.number: trial.epochs.read_text() for trial in trials if trial.epochs.exists()}
    return {number: [json.loads(line)["epoch"] for line in text.splitlines()] for number, text in read.items()}


def test_a_rank_that_dies_costs_an_epoch(search: Search, cluster: Any) -> None:
    killed = [pid for pid, trial in ranks().items() if trial is None]
    for pid in killed:
        os.kill(pid, signal.SIGKILL)

    def first_again() -> list[int]:
        """The first ranks of trials that have gone on."""
        gone_on = {number for number, epochs in epochs_of(search).items() if len(epochs) > 10}
        return [pid for pid, trial in ranks().items() if trial in gone_on]

    assert search.until(lambda: bool(first_again()), 300), search.output
    for pid in first_again()[:1]:
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)
    assert search.wait(300) == 0, search.output
    folder = StudyFolder(search.folder)
    study = StudyReader(folder).read()
    assert [trial.state for trial in study.trials] == ["COMPLETE", "COMPLETE"]
    again = 0
    for trial in folder.trials():
        assert json.loads(trial.result.read_text())["provenance"]["workers"] == "2"
        epochs = [json.loads(line)["epoch"] for line in trial.epochs.read_text().splitlines()]
        assert sorted(set(epochs)) == list(range(1, EPOCHS + 1))
        again += len(epochs) - EPOCHS
    assert len(killed) == 3
    assert again <= len(killed)  # each went on from its checkpoint


def test_who_is_stopped_leaves_nothing_behind(search: Search, cluster: Any) -> None:
    assert len(ranks()) == 4
    assert search.process
    search.process.send_signal(signal.SIGTERM)
    search.wait(60)
    wait_until(lambda: not ranks(), 30)
    wait_until(lambda: free(cluster.address) == {"CPU": 2.0, "GPU": 4.0}, 30)


def called(cluster: Any, function: Callable[[str], Any], folder: Path) -> Any:
    """What a function says that is called as a trial of two GPUs is, with a folder."""
    import ray

    ray.init(address=cluster.address, log_to_driver=False)
    try:
        return ray.get(ray.remote(num_cpus=1, num_gpus=2)(function).remote(str(folder)))
    finally:
        ray.shutdown()


def test_each_rank_sees_a_gpu_of_its_own(cluster: Any, tmp_path: Path) -> None:
    def trial(folder: str) -> list[int]:
        import ray

        from equitune.driver.team import own_rank, trainer_of

        gpus = ray.get_gpu_ids()

        def look() -> None:
            number = own_rank(gpus)
            (Path(folder) / f"seen-{number}").write_text(os.environ["CUDA_VISIBLE_DEVICES"])

        trainer_of(look, 2, folder).fit()
        return gpus

    gpus = called(cluster, trial, tmp_path)
    assert len(gpus) == 2
    assert [(tmp_path / f"seen-{number}").read_text() for number in range(2)] == [str(gpu) for gpu in gpus]


def test_a_rank_that_knows_how_the_trial_ends_ends_the_others(cluster: Any, tmp_path: Path) -> None:
    verdict = TrialResult(number=0, state="INFEASIBLE", reason="out of memory", cause="out_of_memory")

    def trial(folder: str) -> tuple[str, float]:
        from equitune.driver.team import Ended, _outcome, own_rank, trainer_of

        def train() -> None:
            if own_rank([]) == 1:
                raise Ended(verdict.model_dump_json())
            time.sleep(300)  # as nccl waits for a rank that has gone

        begun = time.monotonic()
        with ThreadPoolExecutor(1) as thread:
            run = thread.submit(trainer_of(train, 2, folder).fit)
        return _outcome(run, TrialFolder(Path(folder) / "00000")).model_dump_json(), time.monotonic() - begun

    said, took_s = called(cluster, trial, tmp_path)
    assert TrialResult.model_validate_json(said) == verdict
    assert took_s < 200


def test_trials_of_mixed_sizes_fill_the_gpus(cluster: Any, tmp_path: Path) -> None:
    import ray
    from ray import tune

    def occupy(config: dict[str, Any]) -> None:
        """A trial that holds what it has asked for until five are there, which fill the GPUs."""
        begun = time.time()
        (Path(config["folder"]) / str(config["number"])).touch()
        while len(list(Path(config["folder"]).iterdir())) < 5 and time.time() < begun + 120:
            time.sleep(0.1)
        tune.report({"gpus": ray.get_gpu_ids(), "begun": begun, "ended": time.time()})

    def parameters(config: dict[str, Any]) -> int:
        return 2_000_000 if config["number"] in (2, 5) else 10  # of the trial's network

    together = tmp_path / "begun"
    together.mkdir()
    sized = Resources(cpu=0.25, gpu=0.5, sizes=(Size(parameters=1e6, gpu=2),))
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        found = tune.Tuner(
            tune.with_resources(occupy, lambda config: placement_of(request_of(sized, parameters(config)))),
            param_space={"folder": str(together), "number": tune.grid_search(list(range(6)))},
            tune_config=tune.TuneConfig(reuse_actors=True),
            run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
        ).fit()
    finally:
        ray.shutdown()
    rows = [result.metrics for result in found]
    assert [len(row["gpus"]) for row in rows] == [1, 1, 2, 1, 1, 2]
    filling, last = rows[:5], rows[5]  # four of half a GPU and one of two
    assert max(row["begun"] for row in filling) < min(row["ended"] for row in filling)
    assert last["begun"] > min(row["ended"] for row in filling)


def test_the_process_of_a_device_that_failed_is_never_used_again(cluster: Any, tmp_path: Path) -> None:
    import ray
    from ray import tune

    from equitune.driver.tune_searcher import MAX_LOST_WORKERS

    def broken_once(config: dict[str, Any]) -> None:
        """A trial whose device fails the first time."""
        seen = Path(config["seen"])
        with seen.open("a") as file:
            file.write(f"{os.getpid()}\n")
        if len(seen.read_text().split()) == 1:
            raise WorkerLost("the GPU does not answer any more")
        tune.report({"pid": os.getpid()})

    ray.init(address=cluster.address, log_to_driver=False)
    try:
        found = tune.Tuner(
            broken_once,
            param_space={"seen": str(tmp_path / "seen"), "number": tune.grid_search([0, 1])},
            tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=1),
            run_config=tune.RunConfig(
                storage_path=str(tmp_path),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=MAX_LOST_WORKERS),
            ),
        ).fit()
    finally:
        ray.shutdown()
    first, *others = (tmp_path / "seen").read_text().split()
    assert len(others) == 2
    assert first not in others
    assert not found.errors

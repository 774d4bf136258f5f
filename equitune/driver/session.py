"""A study between its data and its end: its search is opened, Ray started, its trials run."""

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

from equitune.config.record import FORMAT
from equitune.config.study import StudySpec
from equitune.data.splits import Splits
from equitune.driver.attendance import Attendance, attend
from equitune.driver.cluster import Slots, connected, gpu_memory_gib
from equitune.driver.outcome import Outcome
from equitune.driver.ray_thread import RayWatch, run_with_ray
from equitune.driver.resources import Placement, require_memory
from equitune.driver.tune_searcher import MAX_LOST_WORKERS, RungScheduler, StopAll, StudySearcher
from equitune.driver.worker import trainable
from equitune.errors import UserError
from equitune.preflight.plan import require_feasible
from equitune.records.folder import StudyFolder, write_json
from equitune.records.info import read_info
from equitune.records.patience import hurry
from equitune.search.engine import Engine
from equitune.search.extend import adapted
from equitune.search.storage import open_storage, storage_at
from equitune.search.study_record import JOURNAL, begin, record_end
from equitune.search.warm_start import warmly_begun

if TYPE_CHECKING:
    from equitune.search.postgres import HeldStorage


@dataclass(frozen=True)
class Asked:
    """What a user asked for beside the study itself; see `run_study`."""

    source: Path | None
    overrides: tuple[str, ...]
    warm_start: tuple[str, ...]
    storage: str | None
    address: str | None


def run(
    spec: StudySpec,
    folder: StudyFolder,
    splits: Splits,
    asked: Asked,
    held: "HeldStorage | None",
    token: str,
    say: Callable[[str], None],
) -> Outcome:
    """Begin the search or resume it, and run it to its end.

    Args:
        spec: the study.
        folder: where it lies.
        splits: its data.
        asked: what else the user asked for.
        held: the database that is held already; None: it is opened here, if there is one.
        token: of this driver, with which it writes.
        say: is told what happens, a sentence at a time.

    Raises:
        UserError: the study cannot begin or go on; says why.
    """
    require_feasible(spec, splits.data_shape)
    started = warmly_begun(spec, folder, asked.warm_start, splits.fingerprint, say)
    with contextlib.nullcontext(held) if held else storage_at(asked.storage, folder, spec) as database:
        # Only now: what cannot begin leaves no study behind.
        begin(folder, spec, asked.source, asked.overrides, database.name if database else JOURNAL, started)
        _record_data(folder, splits, spec)
        adapt = partial(adapted, spec, folder, asked.source, asked.overrides)
        return _search(spec, folder, splits, asked.address, database, adapt, token, say)


def _search(
    spec: StudySpec,
    folder: StudyFolder,
    splits: Splits,
    address: str | None,
    database: "HeldStorage | None",
    adapt: Callable[[optuna.Study], optuna.Study],
    token: str,
    say: Callable[[str], None],
) -> Outcome:

    engine = Engine(spec, folder, open_storage(folder, spec, database, say, adapt), say)
    if database:
        database.connector.give_up = lambda: engine.stopping
    if engine.is_done():
        record_end(folder, engine)
        return Outcome("complete")
    say("starting Ray")
    watch = RayWatch(address)

    def with_ray() -> None:
        with connected(spec.resources, address, say, watch) as slots:
            say(f"{slots.concurrent} {'trials' if slots.concurrent > 1 else 'trial'} at a time")
            watch.is_running = True
            attendance = attend(spec, folder, splits, engine, say, is_shared=address is not None)
            device_gib = _memory_of_a_gpu(spec, engine, say)
            if not engine.draining:
                _run_trials(spec, folder, splits, slots, engine, token, attendance, device_gib)

    with _signals(engine, watch, say):
        run_with_ray(with_ray, engine, watch)
    if engine.halted:
        return Outcome("halted", engine.halted)
    if engine.draining:
        return Outcome("interrupted")
    record_end(folder, engine)
    return Outcome("complete")


def _run_trials(
    spec: StudySpec,
    folder: StudyFolder,
    splits: Splits,
    slots: Slots,
    engine: Engine,
    token: str,
    attendance: Attendance,
    device_gib: float,
) -> None:
    """Lets Ray Tune run trials until the engine has none left, or the user wants an end."""
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(slots.concurrent)
    import ray
    from ray import tune

    placement = Placement(spec.resources, folder, splits, device_gib)
    engine.gpus_of = lambda config: placement.request(config).gpu
    attempts = _attempts(folder)
    shared = (ray.put(splits),) if spec.resources.most_workers() > 1 else ()  # for each trial's other workers
    given = {"splits": splits, "resources": spec.resources, "token": token, "shared": shared}
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(trainable, **given), placement),
        tune_config=tune.TuneConfig(
            search_alg=StudySearcher(engine),
            scheduler=RungScheduler(engine, attendance),
            num_samples=-1,
            max_concurrent_trials=slots.concurrent,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"{trial.config['number']:05d}-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name=time.strftime("%Y%m%d-%H%M%S"),
            storage_path=str(attempts),
            verbose=0,
            stop=StopAll(engine),
            failure_config=tune.FailureConfig(max_failures=MAX_LOST_WORKERS),
        ),
    )
    tuner.fit()
    shutil.rmtree(attempts, ignore_errors=True)


def _attempts(folder: StudyFolder) -> Path:
    """Where Ray Tune keeps its own files, which no worker reads: where the study has no disk, on the driver's."""
    return folder.attempts if isinstance(folder.attempts, Path) else Path(tempfile.mkdtemp(prefix="equitune-attempts-"))


def _memory_of_a_gpu(spec: StudySpec, engine: Engine, say: Callable[[str], None]) -> float:
    """In GiB, held against what the study asks for; 0 on the CPU, or where the user wants an end before it is known."""
    if not spec.resources.gpu:
        return 0.0
    device_gib = gpu_memory_gib(say, lambda: engine.draining)
    if device_gib is None:
        return 0.0
    require_memory(spec.resources, device_gib)
    return device_gib


@contextlib.contextmanager
def _signals(engine: Engine, watch: RayWatch, say: Callable[[str], None]) -> Iterator[None]:
    """First Ctrl-C: begin no more trials. Second, or SIGTERM: stop now; running trials go on from their last epoch."""

    def interrupt(signum: int, frame: Any) -> None:
        if engine.draining or signum == signal.SIGTERM:
            engine.stopping = True
            hurry.set()
            say("stopping")
        elif not watch.is_running:
            say("interrupted")
        else:
            say("interrupted: finishing the running trials; press Ctrl-C again to stop them as well")
        engine.draining = True

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _record_data(folder: StudyFolder, splits: Splits, spec: StudySpec) -> None:
    """Keep the data's fingerprint, and the GPUs of a trial; other data under the same name are refused."""
    info = read_info(folder.study)
    known = info.get("data_fingerprint")
    if known not in (None, splits.fingerprint):
        raise UserError(
            f"study {folder.name} began on other data ({known}, now {splits.fingerprint}): restore them, "
            "or give the study another name"
        )
    sizes = {"train": len(splits.train), "validation": len(splits.validation), "test": len(splits.test)}
    known = {"data_fingerprint": splits.fingerprint, "splits": sizes, "image_shape": list(splits.shape)}
    write_json(folder.study, {"format": FORMAT} | info | known | {"gpus_of_a_trial": _gpus_of_every_trial(spec)})


def _gpus_of_every_trial(spec: StudySpec) -> float | None:
    """Return what each trial occupies; None where that differs from trial to trial."""
    gpu = spec.resources.gpu
    return None if gpu == "auto" or any(size.gpu not in (None, gpu) for size in spec.resources.sizes) else gpu

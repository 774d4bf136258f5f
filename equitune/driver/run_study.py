"""A study from its specification to its end: begins or goes on, runs its trials, reads its test split once."""

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
from typing import TYPE_CHECKING, Any, Literal

from equitune.config.record import FORMAT
from equitune.config.study import StudySpec
from equitune.data.splits import Splits, load_splits
from equitune.driver.cluster import Slots, connected, gpu_memory_gib, prepare, require_ray
from equitune.driver.lock import driving
from equitune.driver.log import logging_to
from equitune.driver.ray_files import sweep
from equitune.driver.ray_thread import RayWatch, run_with_ray
from equitune.driver.resources import Placement, require_memory
from equitune.errors import StoreError, UserError
from equitune.preflight.plan import require_feasible
from equitune.records.checked import is_there
from equitune.records.durable import make_folder
from equitune.records.folder import StudyFolder, write_json
from equitune.records.info import read_info
from equitune.records.patience import hurry
from equitune.search.compatible import require_extends, require_same_start
from equitune.search.study_record import JOURNAL as JOURNAL
from equitune.search.study_record import asked as asked
from equitune.search.study_record import begin as begin
from equitune.search.study_record import is_finished as is_finished
from equitune.search.study_record import record_end as record_end
from equitune.search.study_record import require_same_search as require_same_search

if TYPE_CHECKING:
    import optuna

    from equitune.driver.attendance import Attendance
    from equitune.search.engine import Engine
    from equitune.search.postgres import HeldStorage


@dataclass(frozen=True)
class Outcome:
    """How a call of `run_study` ended; the study itself may go on with the next."""

    state: Literal["complete", "interrupted", "halted"]
    reason: str | None = None


def run_study(
    spec: StudySpec,
    folder: StudyFolder,
    *,
    source: Path | None = None,
    overrides: tuple[str, ...] = (),
    address: str | None = None,
    extend: bool = False,
    warm_start: tuple[str, ...] = (),
    storage: str | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Outcome:
    """Run a study to its end, or go on with one that was interrupted; finished trials are kept.

    Args:
        spec: the study.
        folder: where it lies; made if it does not exist.
        source: the YAML file, of which a copy is kept.
        overrides: what `--set` changed, recorded.
        address: of a running Ray cluster; None starts a local one and ends it.
        extend: goes on in another search space, which must hold every trial that there is.
        warm_start: studies beside this one, whose fitting trials a new study begins with.
        storage: address of the PostgreSQL database that holds the search; None takes the journal in the folder.
        say: is told what happens, a sentence at a time.

    Raises:
        UserError: the study cannot begin or go on; says why.
    """
    hurry.clear()
    sweep()
    try:
        make_folder(folder.path)
        with _held_first(storage, folder, spec) as held, driving(folder) as token, logging_to(folder.log):
            if is_there(folder.study):
                require_same_start(folder, warm_start)
                (require_extends if extend else require_same_search)(folder, spec)
                if is_finished(folder, spec):
                    return Outcome("complete")
            if address is not None:
                require_ray(address)
            say(f"loading {spec.data.name}")
            splits = load_splits(spec.data, say)
            require_feasible(spec, splits.data_shape)
            from equitune.search.extend import adapted  # imports optuna, most of a second
            from equitune.search.storage import storage_at
            from equitune.search.warm_start import warmly_begun

            started = warmly_begun(spec, folder, warm_start, splits.fingerprint, say)
            with contextlib.nullcontext(held) if held else storage_at(storage, folder, spec) as database:
                # Only now: what cannot begin leaves no study behind.
                begin(folder, spec, source, overrides, database.name if database else JOURNAL, started)
                _record_data(folder, splits, spec)
                adapt = partial(adapted, spec, folder, source, overrides)
                return _search(spec, folder, splits, address, database, adapt, token, say)
    except StoreError as error:
        raise UserError(f"{error}, and run the same command again; nothing is lost") from error
    except OSError as error:
        raise UserError(
            f"{error.filename or folder.path} cannot be written: {error.strerror or error}: "
            "mend that and run the same command again; nothing is lost"
        ) from error


@contextlib.contextmanager
def _held_first(storage: str | None, folder: StudyFolder, spec: StudySpec) -> "Iterator[HeldStorage | None]":
    """Of a study in an object store, which has no locks, the database that holds it; None of all others."""
    if not folder.is_remote:
        yield None
        return
    from equitune.search.storage import storage_at

    with storage_at(storage, folder, spec) as database:
        yield database


def _search(
    spec: StudySpec,
    folder: StudyFolder,
    splits: Splits,
    address: str | None,
    database: "HeldStorage | None",
    adapt: "Callable[[optuna.Study], optuna.Study]",
    token: str,
    say: Callable[[str], None],
) -> Outcome:
    prepare(address)
    from equitune.driver.attendance import attend  # imports ray
    from equitune.search.engine import Engine
    from equitune.search.storage import open_storage

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
    engine: "Engine",
    token: str,
    attendance: "Attendance",
    device_gib: float,
) -> None:
    """Lets Ray Tune run trials until the engine has none left, or the user wants an end."""
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(slots.concurrent)
    import ray
    from ray import tune

    from equitune.driver.tune_searcher import MAX_LOST_WORKERS, RungScheduler, StopAll, StudySearcher
    from equitune.driver.worker import trainable

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


def _memory_of_a_gpu(spec: StudySpec, engine: "Engine", say: Callable[[str], None]) -> float:
    """In GiB, held against what the study asks for; 0 on the CPU, or where the user wants an end before it is known."""
    if not spec.resources.gpu:
        return 0.0
    device_gib = gpu_memory_gib(say, lambda: engine.draining)
    if device_gib is None:
        return 0.0
    require_memory(spec.resources, device_gib)
    return device_gib


@contextlib.contextmanager
def _signals(engine: "Engine", watch: RayWatch, say: Callable[[str], None]) -> Iterator[None]:
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

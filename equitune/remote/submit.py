"""Submits a study to a cluster as a job, follows it, and says how it ended."""

import re
import tempfile
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from equitune.errors import UserError
from equitune.records.archive import from_text
from equitune.remote.jobs import Cluster, Job, MachineGone, Taken, Unknown, Unreachable, last_line

MOST_SHIPPED_MIB = 100  # Ray keeps it in its head's memory
POLL_S = 1.0
BYTES_A_SECOND = 100_000  # of a long log, which is read whole each time
SILENT_S = 120.0  # a driver prints a line at least every 30 s
PENDING_S = 15.0  # a driver starts sooner where there is room for it
GONE_S = 900.0  # after which nobody believes any more that it is there
MOST_WAIT_S = 30.0  # between two tries to reach the cluster
TRIES = 5  # to reach it for a short question

Answer = TypeVar("Answer")


def submit_study(
    cluster: Cluster,
    study: str,
    command: Sequence[str],
    *,
    driver_on: str,
    ship: Sequence[Path],
    environment: Mapping[str, str],
    root: str | None = None,
    force: bool = False,
) -> Job:
    """Send a study's search as the next job of its name.

    Args:
        cluster: where to.
        study: its name.
        command: the program's words.
        driver_on: the resource of the machines that may hold its driver.
        ship: what its working folder holds.
        environment: variables of the job; public.
        root: where the study lies, kept for `fetch`.
        force: also where a job of the study seems to run; the study's own lock lets one driver in all the same.

    Raises:
        UserError: a job of this study runs already; the cluster refuses.
    """
    for _ in range(3):
        own = [job for job in cluster.jobs() if job.study == study]
        running = [job for job in own if not job.has_ended]
        if running and not force:
            job = running[-1]
            raise UserError(
                f"study {study} is being searched already: job {job.id} of {job.by} is {job.status}: "
                f"`equitune watch {job.id}` follows it, `equitune cancel {job.id}` stops it; "
                "--force submits beside one whose driver is gone"
            )
        numbers = [int(job.id.rpartition("@")[2]) for job in own if re.fullmatch(r".+@\d{1,9}", job.id)]
        metadata = {"equitune.study": study} | ({"equitune.root": root} if root else {})
        job_id = f"{study}@{max(numbers, default=0) + 1}"
        with suppress(Taken), _packed(ship) as package:
            place = {"driver_on": driver_on, "metadata": metadata}
            return _sent(cluster, job_id, command, package=package, environment=environment, **place)
    raise UserError(f"study {study} is being submitted by somebody else: look with `equitune watch {study}`")


def _sent(cluster: Cluster, job_id: str, command: Sequence[str], **options: Any) -> Job:
    """Submit a job; where the connection breaks meanwhile, find out whether it has arrived."""
    try:
        cluster.submit(job_id, command, **options)
    except Unreachable as error:
        for _ in range(TRIES):
            with suppress(Unknown):
                return patient(partial(cluster.job, job_id))
            time.sleep(POLL_S)
        raise UserError(f"{error}: nothing was submitted: try again") from None
    return patient(partial(cluster.job, job_id))


def patient(ask: Callable[[], Answer]) -> Answer:
    """Return what the cluster answers, over a connection that may break for some seconds.

    Raises:
        Unreachable: it broke again and again.
    """
    for _ in range(TRIES):
        with suppress(Unreachable):
            return ask()
        time.sleep(POLL_S)
    return ask()


def followed(
    cluster: Cluster,
    job: Job,
    show: Callable[[str], None],
    say: Callable[[str], None],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Job:
    """Show what a job prints, each character once, until it ends; give it as it is then.

    A connection that drops is made again: the log is read whole, and what was shown before is left out.

    Args:
        cluster: where it runs.
        job: which one.
        show: is given its text, as it grows.
        say: is told what happens to the connection or the job, a sentence at a time.
        clock: gives the time in seconds.
        sleep: waits as many seconds.

    Raises:
        UserError: its driver has said nothing for so long that it must be gone; the cluster has forgotten the job.
    """
    shown, wait_s, heard, warned, status = 0, POLL_S, clock(), False, ""
    while True:
        try:
            job = cluster.job(job.id)
            if job.status != status:
                status, heard, warned = job.status, clock(), False
            text = cluster.log(job)
        except Unknown:
            raise UserError(
                f"{cluster.url} knows nothing of {job.id} any more: its head was lost, and all jobs with it: "
                "the same `equitune submit` goes on"
            ) from None
        except Unreachable as error:
            if job.has_ended and isinstance(error, MachineGone) and wait_s > MOST_WAIT_S / 4:
                say(f"{error}: what it printed last is lost; the study's folder has all that counts")
                return job
            say(f"{error}: trying again in {wait_s:.0f} s")
            sleep(wait_s)
            wait_s = min(2 * wait_s, MOST_WAIT_S)
            continue
        if wait_s > POLL_S:
            say(f"{cluster.url} answers again")
            wait_s, heard = POLL_S, clock()
        if len(text) > shown:
            show(text[shown:])
            shown, heard, warned = len(text), clock(), False
        if job.has_ended:  # before its log was read: that was whole
            return _with_code(job, text)
        silent_s = clock() - heard
        if status == "RUNNING" and silent_s > GONE_S:
            raise UserError(_silence(job, silent_s))
        waits = status == "PENDING" and silent_s > PENDING_S
        if (waits or (status == "RUNNING" and silent_s > SILENT_S)) and not warned:
            say(f"{job.id} waits for a machine that may hold its driver" if waits else _silence(job, silent_s))
            warned = True
        sleep(max(POLL_S, len(text) / BYTES_A_SECOND))


def carried(
    cluster: Cluster, study: str, command: Sequence[str], *, driver_on: str, say: Callable[[str], None]
) -> bytes:
    """Return a study's folder as an archive, which a small job on the cluster prints to its log.

    Args:
        cluster: where the study lies.
        study: its name.
        command: the words of `equitune pack`.
        driver_on: as for a search.
        say: is told what it waits for.

    Raises:
        UserError: there is no such study there; the job cannot run; the archive did not arrive whole.
    """
    job_id = f"{study}@fetch-{uuid.uuid4().hex[:8]}"
    job = _sent(cluster, job_id, command, driver_on=driver_on, metadata={"equitune.fetch": study})
    text: list[str] = []
    job = followed(cluster, job, text.append, say)
    cluster.forget(job)
    data = from_text("".join(text))
    if data is None:  # where there is one, its hash says more than Ray's status
        raise UserError(verdict(job)[1] or last_line("".join(text)))
    return data


def _with_code(job: Job, text: str) -> Job:
    """Return a job with the exit code that it printed last, where Ray has none.

    Ray 2.60 overwrites the end of a job with "failed to get job supervisor" where the machine it runs on begins to
    watch it, as it does at the first look at a log there, while its driver leaves.
    """
    said = re.search(r"^equitune ends with code (\d+)\s*\Z", text, re.MULTILINE)
    return replace(job, exit_code=int(said[1])) if said and job.status == "FAILED" and job.exit_code is None else job


def _silence(job: Job, silent_s: float) -> str:
    return (
        f"{job.id} has printed nothing for {silent_s / 60:.0f} minutes, and a driver prints a line every half: it may "
        f"be gone with its machine though Ray says {job.status}: `equitune cancel {job.id}`, then submit the study "
        "again with --force: it goes on, and where the driver does live the study's lock refuses the second"
    )


def verdict(job: Job) -> tuple[int, str | None]:
    """Return the study's exit code by a job that has ended, and what there is to say of it that its log does not."""
    again = "the same `equitune submit` goes on, and nothing is lost but an epoch of each trial that ran"
    if job.status == "STOPPED":
        return 130, f"{job.id} was stopped: {again}"
    if job.exit_code == 127 or re.search(r"No module named '?equitune\b", job.message):
        return 2, (
            f"{job.id}: the cluster's image has no equitune where the job looked for it: name the program as it is "
            "there (--program /opt/venv/bin/equitune), or use an image with the package (deploy/images/trial)"
        )
    if job.exit_code in (0, 1, 2, 130):
        return job.exit_code, None
    if job.exit_code is None:
        return 2, f"{job.id} lost its driver ({last_line(job.message)}): {again}"
    number = job.exit_code - 128 if job.exit_code > 128 else -job.exit_code
    if number > 0:
        memory = ", as a machine does that has no memory left" if number == 9 else ""
        return 2, f"{job.id}: its driver was killed by signal {number}{memory}: {again}"
    return job.exit_code, f"{job.id}: its driver ended with code {job.exit_code}, which is none of equitune's"


@contextmanager
def _packed(paths: Sequence[Path]) -> Iterator[Path]:
    """Return the files and folders, by their names, as one archive that Ray unpacks into the working folder.

    Raises:
        UserError: one does not exist, two have one name, or all are too large.
    """
    names = [path.resolve().name for path in paths]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UserError(f"--ship: two of what is shipped are called {', '.join(sorted(twice))}: rename one")
    size = 0
    with tempfile.TemporaryDirectory() as temporary:
        package = Path(temporary) / "package.zip"
        with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
            for path, name in zip(paths, names, strict=True):
                if not path.exists():
                    raise UserError(f"--ship: {path} does not exist")
                for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                    if file.is_file():
                        size += file.stat().st_size
                        if size > MOST_SHIPPED_MIB * 2**20:
                            raise UserError(
                                f"--ship: what is shipped is larger than {MOST_SHIPPED_MIB} MiB: put data where the "
                                "cluster's machines read them, and name the place with --data-root"
                            )
                        archive.write(file, Path(name) / file.relative_to(path) if path.is_dir() else Path(name))
        yield package

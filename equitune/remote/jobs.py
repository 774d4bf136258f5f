"""A cluster as the laptop sees it: Ray's Jobs API. The only file that knows it.

A study that is submitted is a job, `STUDY@1`, then `STUDY@2` where it goes on. Nothing here needs Ray to run on the
laptop, or the laptop to stay: the job's driver lies on a machine of the cluster.
"""

import getpass
import logging
import os
import platform
import re
import shlex
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from equitune import __version__, catalog
from equitune.errors import UserError

CONNECT_S, ANSWER_S = 5.0, 60.0  # a server that takes longer does not answer
STOP_S = 45  # what Ray gives a driver between SIGTERM and SIGKILL; it needs up to 30
MOST_TOKEN = 100_000  # characters of a token's file
FORM = "http://HOST:PORT"
MOST_LETTERS = 1000  # of what a job's metadata says


class Unreachable(UserError):
    """The cluster does not answer now; it may do so again."""


class Unknown(UserError):
    """The cluster knows no such job."""


class MachineGone(Unreachable):
    """The cluster answers, but not the machine that a job runs on."""


@dataclass(frozen=True)
class Job:
    """A command on the cluster, as Ray tells of it."""

    id: str
    study: str | None  # the study that it searches; None: it does something else
    status: str  # PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED
    exit_code: int | None  # of its driver; None: it has not ended, or not by itself
    message: str
    submitted: float  # Unix time, in seconds
    by: str  # who submitted it
    root: str | None  # where its study lies, where that was said

    @property
    def has_ended(self) -> bool:
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")


def read_token(file: Path | None) -> str | None:
    """Ray's token: from a file, RAY_AUTH_TOKEN, or the file that RAY_AUTH_TOKEN_PATH names; None where none is given.

    Raises:
        UserError: the file cannot be read, or holds no token; what it holds is not said.
    """
    given = os.environ.get("RAY_AUTH_TOKEN", "").strip()
    path = file or (None if given else os.environ.get("RAY_AUTH_TOKEN_PATH"))
    if not path:
        return _one_word(given, "RAY_AUTH_TOKEN") if given else None
    try:
        with Path(path).expanduser().open(encoding="ascii") as opened:
            text = opened.read(MOST_TOKEN).strip()  # a device may have no end
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "it is not plain text"
        raise UserError(f"Ray's token cannot be read from {path}: {reason}") from None
    return _one_word(text, str(path))


def _one_word(token: str, where: str) -> str:
    if not token.isascii() or not token.isprintable() or len(token.split()) != 1:
        raise UserError(f"{where} holds no token: it must be one word, and nothing else")
    return token


class Cluster:
    """A connection to the dashboard of a Ray cluster.

    Args:
        url: such as http://127.0.0.1:8265.
        token: Ray's; None where the cluster asks for none.

    Raises:
        UserError: the address is none, the token is refused, or what answers is not Ray.
        Unreachable: nobody answers.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = _checked(url)
        _require_listener(self.url)
        with self._asking(), _no_other_address():
            self._client = _client(self.url, {"Authorization": f"Bearer {token}"} if token else {})
        self.ray_version = str(self._client._server_ray_version)

    def require_same_version(self) -> None:
        """Raise UserError where the cluster's Ray is another version than this machine's."""
        import ray

        if self.ray_version != ray.__version__:
            raise UserError(
                f"the cluster at {self.url} runs Ray {self.ray_version}, this machine has {ray.__version__}: "
                f"pip install 'ray[default]=={self.ray_version}', or use the image with {ray.__version__}"
            )

    def jobs(self) -> list[Job]:
        """Every job that was submitted, the latest last."""
        with self._asking():
            found = [_job(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted(found, key=lambda job: job.submitted)

    def job(self, name: str) -> Job:
        """Return the job of that id, or the latest of the study of that name.

        Raises:
            Unknown: there is none; names the nearest.
        """
        jobs = self.jobs()
        for job in reversed(jobs):
            if name in (job.id, job.study):
                return job
        known = sorted({job.study or job.id for job in jobs} | {job.id for job in jobs if "@" in name})
        raise Unknown(catalog.unknown("job or study", name, known) + f" (at {self.url})")

    def log(self, job: Job) -> str:
        """Return what a job has printed so far.

        Raises:
            Unreachable: the cluster does not answer.
            MachineGone: the machine that the job runs on does not.
        """
        with self._asking(f"the log of {job.id} cannot be read: the machine it ran on does not answer"):
            return str(self._client.get_job_logs(job.id))

    def stop(self, job: Job) -> bool:
        """Asks a job to stop, without waiting; whether there was one to ask."""
        with self._asking():
            return bool(self._client.stop_job(job.id))

    def forget(self, job: Job) -> None:
        """Take a job that has ended off the cluster's list."""
        with suppress(UserError), self._asking():
            self._client.delete_job(job.id)

    def resources(self) -> set[str]:
        """Return what the machines that are there now offer: CPU, GPU, and resources with names of their own."""
        with self._asking():
            answer = self._client._do_request("GET", "/api/v0/nodes?detail=1&limit=10000").json()
            nodes = answer["data"]["result"]["result"]
        alive = [node["resources_total"] or {} for node in nodes if node["state"] == "ALIVE"]
        hidden = ("node:", "memory", "object_store_memory", "accelerator_type:")
        return {name for totals in alive for name in totals if not name.startswith(hidden)}

    def submit(
        self,
        job_id: str,
        command: Sequence[str],
        *,
        driver_on: str,
        metadata: Mapping[str, str],
        package: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Send a command, which runs on a machine that has the resource `driver_on` (`any`: on any with a free CPU).

        Args:
            job_id: what it is called; must be new.
            command: its words; the first one is looked for on the machine's PATH.
            driver_on: what only machines that stay have.
            metadata: what anyone who sees the cluster's jobs may read.
            package: an archive (zip) of what it finds in its working folder.
            environment: variables that it and its trials get; as public as the metadata.

        Raises:
            UserError: no machine has the resource; it was refused.
            Taken: there is a job of that name.
            Unreachable: the connection broke, perhaps after the command had arrived.
        """
        place = {} if driver_on == "any" else {driver_on: 1.0}
        offered = self.resources()
        if place and driver_on not in offered:
            raise UserError(
                f"no machine of {self.url} has the resource '{driver_on}' (they have {', '.join(sorted(offered))}), "
                "which says where a driver lies safe from spot machines and from the head: start one with "
                f"`ray start --resources='{{\"{driver_on}\": 1}}'`, name another with --driver-on, "
                "or take any machine with --driver-on any"
            )
        runtime: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)} | dict(environment or {})}
        if package:
            runtime["working_dir"] = str(package)
        with self._asking():
            self._client.submit_job(
                entrypoint="exec " + shlex.join(command),  # the shell gives way, so that signals arrive
                submission_id=job_id,
                runtime_env=runtime,
                metadata={"equitune.version": __version__, "equitune.by": _who(), **metadata},
                entrypoint_num_cpus=1,
                entrypoint_resources=place or None,
            )

    @contextmanager
    def _asking(self, when_failing: str | None = None) -> Iterator[None]:
        """Says in a sentence what the client's exceptions mean; `when_failing` where the cluster itself failed."""
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            missing = "Authentication required" in str(error)
            raise UserError(
                f"the cluster at {self.url} {'asks for a token' if missing else 'refuses the token'}: give Ray's token "
                "in RAY_AUTH_TOKEN, or a file that holds it in RAY_AUTH_TOKEN_PATH or --token-file"
            ) from None
        except (ConnectionError, requests.ConnectionError, requests.Timeout) as error:
            slow = isinstance(error, requests.Timeout)
            raise Unreachable(f"{self.url} {'does not answer in time' if slow else 'broke the connection'}") from None
        except (requests.RequestException, ValueError, KeyError, TypeError):
            raise UserError(f"what answers at {self.url} is not the dashboard of a Ray cluster") from None
        except RuntimeError as error:
            text = str(error)
            if "returned 404" in text:
                raise UserError(f"what answers at {self.url} is not the dashboard of a Ray cluster") from None
            if "already exists" in text:
                raise Taken("a job of that name exists already") from None
            if re.search("code 5..", text):
                if when_failing:
                    raise MachineGone(when_failing) from None
                raise Unreachable(f"{self.url} failed to answer ({last_line(text)})") from None
            raise UserError(f"{self.url} refuses: {last_line(text)}") from None


class Taken(UserError):
    """A job of the name exists: somebody else was faster."""


def _job(details: Any) -> Job:
    # Whoever has the cluster's token writes it.
    metadata = {str(key): str(value)[:MOST_LETTERS] for key, value in (details.metadata or {}).items()}
    return Job(
        id=str(details.submission_id),
        study=metadata.get("equitune.study"),
        status=str(details.status),
        exit_code=details.driver_exit_code,
        message=details.message or "",
        submitted=(details.start_time or 0) / 1000,
        by=metadata.get("equitune.by", "somebody"),
        root=metadata.get("equitune.root"),
    )


def _checked(url: str) -> str:
    """Return the address of a dashboard, without a slash at its end."""
    try:
        parts = urlsplit(url.strip())
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port or parts.scheme == "https")
    except ValueError:  # a port that is no number
        parts, good = None, False
    if parts is not None and (parts.username or parts.password):
        raise UserError("--cluster: an address holds no user and no password: Ray's token comes from RAY_AUTH_TOKEN")
    if parts is None or not good or parts.path.strip("/") or parts.query:
        raise UserError(
            f"--cluster: the address of Ray's dashboard is {FORM}, such as http://127.0.0.1:8265, but got '{url}'"
        )
    return url.strip().rstrip("/")


def _require_listener(url: str) -> None:
    """Ray's client itself would wait for minutes."""
    parts = urlsplit(url)
    try:
        socket.create_connection((str(parts.hostname), parts.port or 443), timeout=CONNECT_S).close()
    except OSError as error:
        raise Unreachable(
            f"nobody answers at {url} ({error.strerror or error}): is the address right, and the port-forward up? "
            "`kubectl -n equitune port-forward svc/equitune-head-svc 8265` opens it"
        ) from None


def _client(url: str, headers: dict[str, str]) -> Any:
    logger = logging.getLogger("ray")
    logger.handlers, logger.propagate = [logging.NullHandler()], False  # it would tell of each upload
    try:
        import aiohttp  # noqa: F401 - what ray[default] has and ray[tune] has not
        from ray.job_submission import JobSubmissionClient
    except ImportError:
        raise UserError(
            "a cluster is reached with ray[default], which is missing: pip install 'equitune[cluster]'"
        ) from None

    class Client(JobSubmissionClient):
        """Ray's, which would wait for ever."""

        def _do_request(self, *args: Any, **options: Any) -> Any:
            return super()._do_request(*args, timeout=(CONNECT_S, ANSWER_S), **options)

    return Client(url, headers=headers)


@contextmanager
def _no_other_address() -> Iterator[None]:
    """Ray prefers the addresses in these variables to the one it is given."""
    names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def _who() -> str:
    try:
        return f"{getpass.getuser()} on {platform.node()}"
    except (KeyError, OSError):  # a user without a name
        return platform.node()


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it does not say why"

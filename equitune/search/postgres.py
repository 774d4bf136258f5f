"""Optuna's storage in PostgreSQL, held by one driver: a connection takes the study's lock before it writes.

The password comes from the address in EQUITUNE_STORAGE, from PGPASSWORD or from ~/.pgpass, and is shown nowhere.
"""

import functools
import hashlib
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import optuna
import sqlalchemy
import sqlalchemy.exc
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError

from equitune.errors import UserError

log = logging.getLogger(__name__)

CONNECT_S = 5
PATIENCE_S = 60.0  # that a server may be away while a study runs
FIRST_PATIENCE_S = 2.0  # the lock of a driver that was just killed on this machine is freed in less
SILENT_S = 30.0  # that of a driver whose machine has vanished, after 25 s of silence: see the keepalives below
DRIVERS = ("postgresql", "postgres", "postgresql+psycopg2")
FORM = "postgresql://USER@HOST:PORT/DATABASE"
NO_ADDRESS = "postgresql+psycopg2://"  # what Optuna is told: the connector knows the rest
# PendingRollbackError: Optuna went on within a session whose connection had broken.
BROKEN = (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError, sqlalchemy.exc.PendingRollbackError)
# Optuna's calls that talk to the server while a study runs.
RETRIED = (
    "_create_new_trial", "_get_trials", "_set_trial_param", "get_study_directions", "get_study_id_from_name",
    "get_study_name_from_id", "get_study_system_attrs", "get_study_user_attrs", "get_trial",
    "get_trial_id_from_study_id_trial_number", "set_study_system_attr", "set_study_user_attr",
    "set_trial_intermediate_value", "set_trial_state_values", "set_trial_system_attr", "set_trial_user_attr",
)  # fmt: skip


@dataclass(frozen=True)
class Address:
    """A database. `name` says which, without user and password."""

    name: str
    dsn: str = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)
    has_password: bool

    def cleaned(self, error: BaseException) -> str:
        """Return the first line of the first cause's words, without what nobody may read."""
        while error.__cause__ is not None:
            error = error.__cause__
        text = (str(error).strip().splitlines() or ["no reason given"])[0]
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text


def typed(url: str) -> str:
    """Return an address as given on the command line.

    Raises:
        UserError: it holds a password.
    """
    if parse(url).has_password:
        raise UserError(
            "--storage: every user of a machine can read its command lines, so a password is not taken from there: "
            "give it as PGPASSWORD, in ~/.pgpass, or give the whole address as EQUITUNE_STORAGE"
        )
    return url


def parse(url: str) -> Address:
    """Read an address; say nothing of it that could be part of a password.

    Raises:
        UserError: it is none, or that of another database.
    """
    scheme = url.partition(":")[0]
    if scheme.startswith("sqlite"):
        raise UserError(
            "--storage: sqlite is not taken, since its locks fail on network file systems: leave --storage out "
            f"(the study's own journal file needs no server either), or give {FORM}"
        )
    if scheme not in DRIVERS:
        named = f"driver {scheme}" if "://" in url and scheme.replace("+", "").isalnum() else "no driver"
        raise UserError(f"--storage: {FORM} is what is taken (psycopg2 is its driver), but got {named}")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        parts = None
    # One @ before the host at most: what libpq takes for the host then never holds a piece of a password.
    if parts is None or parts.netloc.count("@") > 1 or "@" in parts.path + parts.query or parts.fragment:
        raise UserError(
            f"--storage: the address cannot be read: it has the form {FORM}, and special characters within a user's "
            "name or password are written as %40 for @, %2F for /, %3A for :"
        )
    query = parse_qs(parts.query)
    at = host or (query.get("host") or [os.environ.get("PGHOST", "")])[0]
    name = f"postgresql://{at}{f':{port}' if port else ''}{parts.path}"
    given = [parts.password or "", unquote(parts.password or ""), *query.get("password", [])]
    secrets = tuple(secret for secret in (*given, os.environ.get("PGPASSWORD", "")) if secret)
    return Address(name, "postgresql" + url[len(scheme) :], secrets, has_password=any(given))


class _Held(UserError):
    """Another driver holds the study, or one that has died and whose connection the server still keeps."""

    def __init__(self, text: str, holder: str) -> None:
        super().__init__(text)
        host = holder.partition(" on ")[2]
        self.patience_s = FIRST_PATIENCE_S if host and platform.node().startswith(host) else SILENT_S


class Connector:
    """Makes connections that hold the study: who cannot have its lock cannot write.

    After the first one it is patient: a server may be restarted, or free the lock of a dead connection late.
    """

    def __init__(self, address: Address, study: str) -> None:
        self._address, self._study = address, study
        self._key = _key(study)
        self._has_held = False
        self.give_up: Callable[[], bool] = lambda: False  # whether somebody wants an end

    def __call__(self) -> Any:
        import psycopg2

        began = time.monotonic()
        while True:
            try:
                connection = self._held()
                self._has_held = True
                return connection
            except (_Held, psycopg2.OperationalError) as error:
                said = error if isinstance(error, UserError) else self.silent(error)
                patience_s = PATIENCE_S if self._has_held else error.patience_s if isinstance(error, _Held) else 0.0
                if time.monotonic() - began >= patience_s or self.give_up():
                    raise said from None
                log.warning("%s", said)
                time.sleep(0.3)

    def silent(self, error: BaseException) -> UserError:
        return UserError(
            f"{self._address.name} does not answer: {self._address.cleaned(error)}: mend the address (--storage) or "
            "the server, and run the same command again; nothing is lost"
        )

    def plain(self) -> Any:
        """Return a connection without the lock."""
        import psycopg2

        limited = {} if "connect_timeout" in self._address.dsn else {"connect_timeout": CONNECT_S}
        return psycopg2.connect(
            self._address.dsn,
            application_name=f"equitune process {os.getpid()} on {platform.node()}"[:63],
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
            tcp_user_timeout=20_000,  # ms
            **limited,
        )

    def _held(self) -> Any:
        connection = self.plain()
        with connection.cursor() as cursor:
            # The server, too, soon notices that a driver's machine is gone.
            cursor.execute(
                "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3"
            )
            cursor.execute("SELECT pg_try_advisory_lock(%s)", (self._key,))
            got = cursor.fetchone()[0]
            holder = "" if got else self._holder(cursor)
        connection.commit()
        if not got:
            connection.close()
            raise _Held(
                f"study {self._study} in {self._address.name} is being searched already ({holder}): "
                "wait for it, or stop it first",
                holder,
            )
        return connection

    def _holder(self, cursor: Any) -> str:
        cursor.execute(
            "SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' "
            "AND granted AND datname = current_database() AND (classid::bigint << 32) + objid::bigint = %s",
            (self._key,),
        )
        row = cursor.fetchone()
        return str(row[0]).removeprefix("equitune ") if row and row[0] else "by another process"


@contextmanager
def holding(url: str, study: str) -> Iterator["HeldStorage"]:
    """Return the database while the block runs; nobody else can search the study there for as long.

    Raises:
        UserError: there is no such database or driver, it does not answer, or another driver holds the study.
    """
    address = parse(url)
    try:
        import psycopg2
    except ImportError:
        raise UserError("--storage: PostgreSQL needs its driver psycopg2: pip install 'equitune[postgres]'") from None
    connector = Connector(address, study)
    try:
        with closing(connector.plain()) as first, first.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_key("tables"),))  # one driver at a time makes tables
            plain = optuna.storages.RDBStorage(NO_ADDRESS, engine_kwargs={"creator": connector.plain})
            plain.engine.dispose()
            storage = HeldStorage(address, connector)
    except psycopg2.OperationalError as error:
        raise connector.silent(error) from None
    except (psycopg2.Error, sqlalchemy.exc.SQLAlchemyError, StorageInternalError, RuntimeError) as error:
        raise UserError(f"{address.name} cannot hold a study: {address.cleaned(error)}") from None
    try:
        yield storage
    finally:
        storage.scoped_session.remove()
        storage.engine.dispose()


class HeldStorage(optuna.storages.RDBStorage):
    """Optuna's storage over the one connection that holds the study; a call whose connection breaks is made again."""

    def __init__(self, address: Address, connector: Connector) -> None:
        self.name, self.connector = address.name, connector
        self._again = False  # whether a call is made again
        self._num_trials: int | None = None  # before the one that is being made
        super().__init__(
            NO_ADDRESS,
            skip_compatibility_check=True,  # made and checked before: that takes two connections
            skip_table_creation=True,
            engine_kwargs={
                "creator": connector,
                "pool_size": 1,
                "max_overflow": 0,
                "pool_timeout": CONNECT_S,
                "pool_pre_ping": True,
            },
        )

    def _create_new_trial(self, study_id: int, template_trial: Any = None) -> Any:
        """As Optuna's; called again, it finds the trial that was made although nobody heard of it."""
        if self._num_trials is None:
            self._num_trials = self._count(study_id)
        elif self._count(study_id) > self._num_trials:
            made = self.get_trial_id_from_study_id_trial_number(study_id, self._num_trials)
            self._num_trials = None
            return self.get_trial(made)
        trial = super()._create_new_trial(study_id, template_trial)
        self._num_trials = None
        return trial

    def _count(self, study_id: int) -> int:
        with self.engine.connect() as connection:
            query = sqlalchemy.text("SELECT count(*) FROM trials WHERE study_id = :study")
            return int(connection.execute(query, {"study": study_id}).scalar_one())

    def set_trial_state_values(self, trial_id: int, state: Any, values: Any = None) -> bool:
        """As Optuna's; called again, a trial that has ended by now ended by us."""
        try:
            return bool(super().set_trial_state_values(trial_id, state, values))
        except UpdateFinishedTrialError:
            if self._again:
                return True
            raise


def _patient(name: str) -> Any:
    call = getattr(HeldStorage, name)

    @functools.wraps(call)
    def patient(self: HeldStorage, *args: Any, **kwargs: Any) -> Any:
        nested, limit = self._again, time.monotonic() + PATIENCE_S
        try:
            while True:
                try:
                    return call(self, *args, **kwargs)
                except (*BROKEN, StorageInternalError) as error:
                    broken = isinstance(error, BROKEN) or isinstance(error.__cause__, BROKEN)
                    if nested or not broken or time.monotonic() > limit:
                        raise
                    log.warning("the connection broke within %s: once more", name)
                    self._again = True
        finally:
            self._again = nested

    return patient


for _name in RETRIED:
    setattr(HeldStorage, _name, _patient(_name))


def _key(name: str) -> int:
    """Return what PostgreSQL calls an advisory lock: 64 bits, with a sign."""
    return int.from_bytes(hashlib.sha256(f"equitune/{name}".encode()).digest()[:8], signed=True)

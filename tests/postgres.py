"""A real PostgreSQL server for the tests: pgserver brings its binaries, and runs them as another user where we are root."""

import atexit
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECRET = "s3cr3t/p@ss"  # as typed; in an address it is written as
QUOTED = "s3cr3t%2Fp%40ss"


class Server:
    """Listens on a socket in its folder; the role `lab` has a password, and a database of its name."""

    def __init__(self, path: Path) -> None:
        os.environ.setdefault("XDG_RUNTIME_DIR", str(path.parent))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pgserver

            self._server = pgserver.get_server(path)
        self.path = path
        self.sql(f"CREATE ROLE lab LOGIN PASSWORD '{SECRET}'", "CREATE DATABASE lab OWNER lab")
        (path / "pg_hba.conf").write_text("local all postgres trust\nlocal all all scram-sha-256\n")
        self.sql("SELECT pg_reload_conf()")
        self.url = f"postgresql://lab:{QUOTED}@/lab?host={path}"
        self.without_password = f"postgresql+psycopg2://lab@/lab?host={path}"

    def sql(self, *statements: str, database: str = "postgres") -> list[Any]:
        """Runs statements as the server's owner; returns the rows of the last."""
        import psycopg2

        connection = psycopg2.connect(host=str(self.path), user="postgres", dbname=database)
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            rows = cursor.fetchall() if cursor.description else []
        connection.close()
        return rows

    def everything(self, database: str) -> str:
        """All rows of all tables, as text."""
        tables = (
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        )
        found = self.sql(tables, database=database)
        rows = (self.sql(f'SELECT t::text FROM "{schema}"."{name}" t', database=database) for schema, name in found)
        return "\n".join(row for each in rows for (row,) in each)

    def stop(self, how: str = "immediate") -> None:
        """`immediate` is a crash: clients hear nothing."""
        self._control("-w", "-m", how, "stop")

    def start(self) -> None:
        self._control("-w", "-l", str(self.path / "log"), "-o", f'-h "" -k {self.path}', "start")

    def _control(self, *arguments: str) -> None:
        from pgserver._commands import pg_ctl

        pg_ctl(list(arguments), pgdata=self.path, user=self._server.system_user, timeout=30)

    def end(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._server.cleanup()
            atexit.unregister(self._server._cleanup)  # it would make its folder again


@contextmanager
def server() -> Iterator[Server]:
    """Not under pytest's temporary folder: that is closed to the server's user by every pytest that starts."""
    with tempfile.TemporaryDirectory(prefix="equitune-pg-") as folder:
        started = Server(Path(folder) / "data")
        try:
            yield started
        finally:
            started.end()

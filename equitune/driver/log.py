"""The study's log: what Ray, Optuna, MLflow and warnings have to say, in a file instead of the terminal."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from equitune.errors import without_passwords
from equitune.records.on_disk import kept
from equitune.records.place import Place


class Discreet(logging.Formatter):
    """Leaves the passwords of addresses out of a record, its traceback included."""

    def format(self, record: logging.LogRecord) -> str:
        return without_passwords(super().format(record))


@contextmanager
def logging_to(path: Place) -> Iterator[None]:
    """Take all log records while the block runs."""
    import optuna  # most of a second

    with kept(path) as file:
        logging.raiseExceptions = False  # a log that cannot be written is no reason to talk of anything else
        handler = logging.FileHandler(file, encoding="utf-8")
        handler.setFormatter(Discreet("%(asctime)s %(name)s %(levelname)s %(message)s"))
        root = logging.getLogger()
        before, root.handlers = root.handlers, [handler]
        logging.captureWarnings(True)
        optuna.logging.disable_default_handler()
        optuna.logging.enable_propagation()
        for name in ("ray", "mlflow", "alembic"):
            logging.getLogger(name).handlers = []
            logging.getLogger(name).propagate = True
        try:
            yield
        finally:
            logging.captureWarnings(False)
            root.handlers = before or [logging.NullHandler()]  # without any, Python writes warnings to the terminal
            handler.close()

"""Waits until the database has this MLflow's schema: the migration job brings it, after that of the users' database."""

import os
import time

import sqlalchemy
from mlflow.store.db.utils import _get_latest_schema_revision, _get_schema_version

expected = _get_latest_schema_revision()
engine = sqlalchemy.create_engine(os.environ["MLFLOW_BACKEND_STORE_URI"], pool_pre_ping=True)
while True:
    try:
        found = _get_schema_version(engine)
        if found == expected:
            break
        print(f"the database's schema is {found}, not {expected}: waiting for the migration job", flush=True)
    except sqlalchemy.exc.OperationalError as error:
        print(f"no database yet: {type(error.orig).__name__}", flush=True)
    time.sleep(5)

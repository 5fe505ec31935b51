"""What Alembic runs: HOWL's tables, at the address HOWL's settings give."""

import logging
import random
import time

from alembic import context
from psycopg.errors import LockNotAvailable
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from howl.config import load_settings
from howl.connections.postgres import LONG_PATIENCE, engine, in_the_way, patient
from howl.errors import DatabaseUnavailable
from howl.models import Base

logger = logging.getLogger("alembic.howl")


#: Seconds that a statement waits for a lock, and that all of them try: what waits for a table that somebody reads keeps
#: everybody else from it, so it waits in short pieces.
LOCK_TIMEOUT, PATIENCE = 4, 60


def migrate() -> None:
    """Run the migrations in one transaction, or in that of a connection that is given."""
    given: Connection | None = context.config.attributes.get("connection")
    if given is not None:
        _migrate_on(given)
        return
    url = context.config.attributes.get("database_url") or load_settings().database()
    deadline = time.monotonic() + context.config.attributes.get("patience", PATIENCE)
    while not _migrated(url, last=time.monotonic() > deadline):
        time.sleep(random.uniform(0.2, 0.5))  # noqa: S311  # jitter


def _migrated(url: str, *, last: bool) -> bool:
    """Whether it could be done; raises DatabaseUnavailable where somebody is in the way the `last` time."""
    with patient(LONG_PATIENCE), engine(url).connect() as connection:
        try:
            _migrate_on(connection)
        except OperationalError as error:
            if not isinstance(error.orig, LockNotAvailable):
                raise
            connection.rollback()
            waits = f"The migration waits for {in_the_way(connection)}"
            if last:
                raise DatabaseUnavailable(
                    f"{waits}, and gives up, with nothing changed: end it, and migrate again."
                ) from None
            logger.warning("%s.", waits)
            return False
    return True


def _migrate_on(connection: Connection) -> None:
    """Two migrating processes wait for each other. The lock is one that a mere reader may not take (roles.sql)."""
    context.configure(connection=connection, target_metadata=Base.metadata, compare_server_default=True)
    with context.begin_transaction():
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}s'")
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('howl.migrate'))")
        context.run_migrations()


migrate()

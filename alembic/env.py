"""What Alembic runs: HOWL's tables, at the address HOWL's settings give."""

from alembic import context
from sqlalchemy import Connection

from howl.config import load_settings
from howl.db import engine
from howl.models import Base


def migrate() -> None:
    """Run the migrations in one transaction, or in that of a connection that is given."""
    given: Connection | None = context.config.attributes.get("connection")
    if given is not None:
        _migrate_on(given)
        return
    url = context.config.attributes.get("database_url") or load_settings().database()
    with engine(url).connect() as connection:
        _migrate_on(connection)


def _migrate_on(connection: Connection) -> None:
    """Two migrating processes wait for each other. The lock is one that a mere reader may not take (roles.sql).

    What waits for a table that somebody reads keeps everybody else from it: for a minute at most.
    """
    context.configure(connection=connection, target_metadata=Base.metadata, compare_server_default=True)
    with context.begin_transaction():
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('howl.migrate'))")
        connection.exec_driver_sql("SET LOCAL lock_timeout = '60s'")
        context.run_migrations()


migrate()

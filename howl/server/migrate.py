"""Migrate the database to this version's tables, and check whether it is current."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

import howl
from howl.connections.postgres import LONG_PATIENCE, patient, session
from howl.errors import DatabaseUnavailable


def upgrade(url: str) -> None:
    """Run missing migrations; raises DatabaseUnavailable."""
    with session(url) as opened:  # one clear error if nobody answers
        found = revision(opened.connection())
    if found and not knows(found):
        raise DatabaseUnavailable(_other_than(found))
    with patient(LONG_PATIENCE):
        command.upgrade(configuration(url), "head")


def require_current(url: str) -> None:
    """Raise DatabaseUnavailable, saying what to run, unless the tables match this version."""
    with session(url) as opened:
        require_current_on(opened.connection())


def require_current_on(connection: Connection) -> str:
    """Do the same within a transaction; return the revision."""
    found, wanted = revision(connection), head()
    if found != wanted:
        raise DatabaseUnavailable(_other_than(found))
    return wanted


def _other_than(found: str | None) -> str:
    """Return what to do about tables of another version."""
    if found and not knows(found):
        return f"The database is at migration {found}, which this HOWL does not know: update HOWL on this machine."
    return f"The database is at migration {found or 'none'} and this HOWL needs {head()}: run `howl migrate`."


def revision(connection: Connection) -> str | None:
    """Return the database's current migration; None if none ever ran."""
    return MigrationContext.configure(connection).get_current_revision()


def head() -> str:
    """Return the newest migration that this version knows."""
    return str(_scripts().get_current_head())


def knows(name: str) -> bool:
    """Return whether this version knows a migration of that name."""
    return name in {script.revision for script in _scripts().walk_revisions()}


def start_over_at(name: str, connection: Connection) -> None:
    """Recreate empty tables at a revision, within the current transaction; existing rows are lost."""
    if revision(connection) == name:
        return
    config = _configuration_on(connection)
    if revision(connection) is not None:
        command.downgrade(config, "base")
    command.upgrade(config, name)


def upgrade_on(connection: Connection) -> None:
    """Run missing migrations within the current transaction."""
    command.upgrade(_configuration_on(connection), "head")


def _configuration_on(connection: Connection) -> Config:
    made = configuration("")
    made.attributes["connection"] = connection
    return made


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(configuration(""))


def configuration(url: str) -> Config:
    """Return Alembic's configuration for one database, wherever HOWL is installed."""
    package = Path(howl.__file__).parent
    folders = (package / "_alembic", package.parent / "alembic")  # a wheel, a checkout
    made = Config()
    made.set_main_option("script_location", str(next(folder for folder in folders if (folder / "env.py").exists())))
    made.set_main_option("path_separator", "os")
    made.set_main_option("file_template", "%%(rev)s_%%(slug)s")
    made.attributes["database_url"] = url
    return made

"""Bringing the database to this version's tables, and asking whether it is there."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

import howl
from howl.db import session
from howl.errors import DatabaseUnavailable


def upgrade(url: str) -> None:
    """Run the migrations that are missing; raises DatabaseUnavailable."""
    with session(url):  # one clear error if nobody answers
        pass
    command.upgrade(configuration(url), "head")


def require_current(url: str) -> None:
    """Raise DatabaseUnavailable, saying what to run, unless the tables are of this version."""
    wanted = ScriptDirectory.from_config(configuration(url)).get_current_head()
    with session(url) as opened:
        found = MigrationContext.configure(opened.connection()).get_current_revision()
    if found != wanted:
        raise DatabaseUnavailable(
            f"The database is at migration {found or 'none'} and this HOWL needs {wanted}: run `alembic upgrade head`."
        )


def configuration(url: str) -> Config:
    """Alembic's configuration for one database, wherever HOWL is installed."""
    package = Path(howl.__file__).parent
    folders = (package / "_alembic", package.parent / "alembic")  # a wheel, a checkout
    made = Config()
    made.set_main_option("script_location", str(next(folder for folder in folders if (folder / "env.py").exists())))
    made.set_main_option("path_separator", "os")
    made.set_main_option("file_template", "%%(rev)s_%%(slug)s")
    made.attributes["database_url"] = url
    return made

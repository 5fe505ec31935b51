"""PostgreSQL: one engine an address, short sessions, one clear error."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from urllib.parse import urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import DiskFull, UndefinedColumn, UndefinedTable
from sqlalchemy import Engine, create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, ProgrammingError
from sqlalchemy.orm import Session

from howl.errors import DatabaseUnavailable, SettingsError

#: Seconds to wait for a connection.
CONNECT_TIMEOUT = 5
#: SQLSTATE's class of "program limit exceeded": PostgreSQL's documentation, appendix A.
PROGRAM_LIMIT = "54"


@cache
def engine(url: str) -> Engine:
    """The engine of this process for `url` (postgresql://…); connections are checked before use.

    Raises SettingsError for an option in it that PostgreSQL's library does not know.
    """
    try:
        conninfo_to_dict(f"postgresql:///?{urlsplit(url).query}")
    except psycopg.ProgrammingError as error:
        raise SettingsError(f"HOWL_DATABASE_URL cannot be used ({str(error).strip()}): leave that out.") from None
    return create_engine(
        make_url(url).set(drivername="postgresql+psycopg"),
        pool_pre_ping=True,
        pool_size=5,
        connect_args={"connect_timeout": CONNECT_TIMEOUT, "application_name": "howl"},
    )


@contextmanager
def session(url: str) -> Iterator[Session]:
    """A session that commits at the end and rolls back on an error; raises DatabaseUnavailable, naming no password."""
    try:
        with Session(engine(url), expire_on_commit=False) as opened:
            yield opened
            opened.commit()
    except (OperationalError, InterfaceError) as error:
        if str(getattr(error.orig, "sqlstate", None)).startswith(PROGRAM_LIMIT):
            raise  # this statement is too much for PostgreSQL, which is well
        if isinstance(error.orig, DiskFull):
            raise DatabaseUnavailable(
                f"PostgreSQL at {_address(url)} cannot write, for its disk is full: make room there, and work goes on "
                "by itself."
            ) from error
        raise DatabaseUnavailable(f"PostgreSQL at {_address(url)} does not answer: {_reason(error)}.") from error
    except ProgrammingError as error:
        if not isinstance(error.orig, UndefinedTable | UndefinedColumn):
            raise
        raise DatabaseUnavailable(
            f"The database at {_address(url)} has no tables of HOWL's, or an older version's: "
            "run `alembic upgrade head`."
        ) from error


def _address(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or 5432}"


def _reason(error: DBAPIError) -> str:
    return str(error.orig).strip().splitlines()[0].rstrip(".") if str(error.orig).strip() else "the connection was lost"

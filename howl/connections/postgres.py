"""Connections to PostgreSQL: one engine per address, short sessions, one clear error, and no endless waiting."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import psycopg
import sqlalchemy
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as NoneIsFree
from sqlalchemy.orm import Session

from howl.connections import postgres_session
from howl.errors import DatabaseUnavailable, SettingsError, visible

#: Seconds to wait for a connection, and for each answer outside of `patient`. A caller whose connection is dead, and
#: who then cannot get another, gets an error within 20 seconds.
CONNECT_TIMEOUT, ANSWER_TIMEOUT = 5, 12.0
#: Seconds to wait for each answer where a statement reads much (and in `howl server`), or moves whole tables.
SERVER_PATIENCE, LONG_PATIENCE = 60.0, 6 * 3600.0
#: Connections that a process keeps, more that it may open, and seconds to wait for one of them to be free.
KEPT, MORE, FREE_TIMEOUT = 5, 10, 10.0
#: Settings by which the kernel notices a path that was cut silently (seconds; milliseconds for the last).
KEEPALIVE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 15_000}
#: Query for clients that may hold a lock that a statement waits for, the oldest transaction first.
_OTHERS = """
SELECT pid, coalesce(nullif(application_name, ''), 'no name'), state, extract(epoch FROM now() - xact_start)::int
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
ORDER BY xact_start LIMIT 3
"""
#: SQLSTATE class of "program limit exceeded": PostgreSQL's documentation, appendix A.
PROGRAM_LIMIT = "54"
#: Errors of prepared statements that are lost or outdated: there is a pooler between, or the tables were migrated.
STALE = (errors.DuplicatePreparedStatement, errors.InvalidSqlStatementName, errors.FeatureNotSupported)

_patience: ContextVar[float] = ContextVar("howl_database_patience", default=ANSWER_TIMEOUT)


@contextmanager
def patient(seconds: float) -> Iterator[None]:
    """Wait so many seconds for each answer of PostgreSQL, here and in threads and tasks started within."""
    token = _patience.set(seconds)
    try:
        yield
    finally:
        _patience.reset(token)


class Connection(psycopg.Connection[Any]):
    """A connection that is given up when an answer does not come: a server may hang and never close it."""

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """Wait as psycopg does, but not without end; raises OperationalError."""
        limit = _patience.get() if timeout is None else timeout
        try:
            return super().wait(gen, interval, limit)
        except errors._WaitTimeout:  # noqa: SLF001  # it has no public name
            if timeout is not None:
                raise
            self.pgconn.finish()
            raise psycopg.OperationalError(f"no answer within {limit:g} s") from None


#: Held while an engine is looked up or made.
_making = threading.Lock()


def engine(url: str) -> Engine:
    """Return this process's engine for `url` (postgresql://…), which checks connections before use.

    Raises SettingsError for an option in `url` that PostgreSQL's library does not know.
    """
    with _making:  # or two threads would make one each, and nobody would close the connections of the one forgotten
        return _engine(url)


@cache
def _engine(url: str) -> Engine:
    try:
        conninfo_to_dict(f"postgresql:///?{urlsplit(url).query}")
    except psycopg.ProgrammingError as error:
        raise SettingsError(f"HOWL_DATABASE_URL cannot be used ({str(error).strip()}): leave that out.") from None
    address = make_url(url).set(drivername="postgresql+psycopg")
    standard = {"connect_timeout": CONNECT_TIMEOUT, "application_name": "howl", "client_encoding": "utf8", **KEEPALIVE}
    given = {name: value for name, value in standard.items() if name not in address.query}
    made = create_engine(
        address, pool_pre_ping=True, pool_size=KEPT, max_overflow=MORE, pool_timeout=FREE_TIMEOUT, connect_args=given
    )
    #: Not empty once prepared statements have been lost; psycopg then makes none.
    lost: list[bool] = []

    @event.listens_for(made, "do_connect")
    def connect(_dialect: Any, _record: Any, words: Any, named: Any) -> Connection:
        return Connection.connect(*words, **named)

    @event.listens_for(made, "connect")
    def begin(connection: Connection, record: Any) -> None:
        record.info["pooled"] = postgres_session.begin(connection)
        if lost or record.info["pooled"]:
            connection.prepare_threshold = None

    @event.listens_for(made, "begin")
    def pin(connection: Any) -> None:
        if connection.connection.info.get("pooled"):
            postgres_session.pin_transaction(connection.connection.driver_connection)

    @event.listens_for(made, "handle_error")
    def forget(context: Any) -> None:
        if isinstance(context.original_exception, STALE):
            lost.append(True)
        # A primary that became a standby keeps its connections; a new connection may reach the new primary.
        if isinstance(context.original_exception, (*STALE, errors.ReadOnlySqlTransaction)):
            context.is_disconnect = True

    return made


def in_the_way(connection: sqlalchemy.Connection) -> str:
    """Describe which clients of PostgreSQL may hold the lock that a statement of this transaction waited for."""
    rows = connection.exec_driver_sql(_OTHERS).all()
    told = [f"process {pid} of PostgreSQL ({visible(name)}, {state}, {age} s)" for pid, name, state, age in rows]
    return " or ".join(told) or "a lock that somebody held until now"


@contextmanager
def session(url: str) -> Iterator[Session]:
    """Open a session that commits at its end, or rolls back on an error; DatabaseUnavailable names no password."""
    try:
        with Session(engine(url), expire_on_commit=False) as opened:
            yield opened
            opened.commit()
    except DBAPIError as error:
        is_locked = isinstance(error.orig, errors.LockNotAvailable)
        told = _locked(url) if is_locked else _told(error, f"PostgreSQL at {_address(url)}")
        if told is None:
            raise  # PostgreSQL works, and refuses a row or a statement
        raise DatabaseUnavailable(told) from error
    except PendingRollbackError as error:  # the caller went on after an error
        raise DatabaseUnavailable(
            f"PostgreSQL at {_address(url)} does not answer: the connection was lost in the middle of a transaction."
        ) from error
    except NoneIsFree as error:
        raise DatabaseUnavailable(
            f"PostgreSQL at {_address(url)} keeps all {KEPT + MORE} connections of this process busy: try again."
        ) from error


def _told(error: DBAPIError, server: str) -> str | None:
    """Return what is wrong with the database or the way to it; None where neither is the cause."""
    state = str(getattr(error.orig, "sqlstate", None))
    if state.startswith(PROGRAM_LIMIT):
        return None  # PostgreSQL works, but this statement is too much for it
    for kinds, words in _TROUBLE:
        if isinstance(error.orig, kinds):
            return words.format(server=server, why=_reason(error))
    is_away = isinstance(error, OperationalError | InterfaceError) or state[:2] in _NO_STATE_TO_WORK_IN
    return f"{server} does not answer: {_reason(error)}." if is_away else None


_TROUBLE: tuple[tuple[Any, str], ...] = (
    (errors.DiskFull, "{server} cannot write, for its disk is full: make room there, and work goes on by itself."),
    (
        (errors.UndefinedTable, errors.UndefinedColumn, errors.InvalidSchemaName),
        "{server} has no tables of HOWL's, or an older version's: run `howl migrate`.",
    ),
    (
        errors.ReadOnlySqlTransaction,
        "{server} takes no writes ({why}): is it a standby? Name the primary in HOWL_DATABASE_URL.",
    ),
    (
        errors.InsufficientPrivilege,
        "{server} refuses what HOWL needs ({why}): use the role that owns HOWL's tables in HOWL_DATABASE_URL.",
    ),
    (STALE, "{server} has forgotten, or changed, a prepared statement ({why}): try again, it works without them now."),
)
#: SQLSTATE classes "invalid transaction state", as after an idle transaction's timeout, and "internal error", which
#: poolers report too.
_NO_STATE_TO_WORK_IN = ("25", "XX")


def _locked(url: str) -> str:
    try:
        with engine(url).connect() as connection:
            who = in_the_way(connection)
    except DBAPIError:
        who = "somebody's lock"
    return (
        f"PostgreSQL at {_address(url)} waited {postgres_session.LOCK_TIMEOUT} s for {who}, and gave up: end it there "
        "(`SELECT pg_terminate_backend(…)`), or try again when it is done."
    )


@contextmanager
def explained(words: str) -> Iterator[None]:
    """Raise DatabaseUnavailable, beginning with `words`, if the connection is lost within."""
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        raise DatabaseUnavailable(f"{words} PostgreSQL does not answer: {_reason(error)}.") from error


def _address(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or 5432}"


def _reason(error: DBAPIError) -> str:
    return str(error.orig).strip().splitlines()[0].rstrip(".") if str(error.orig).strip() else "the connection was lost"

"""Backup and restore of the database: every table saved from one snapshot, and loaded in one transaction."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psycopg
from psycopg import sql
from sqlalchemy import Connection, exists, func, inspect, select, text, update
from sqlalchemy import Table as ModelTable
from sqlalchemy.exc import DBAPIError

from howl.backup.archive import AT_ONCE, Progress, Writer, members
from howl.backup.manifest import Record, Table
from howl.connections.postgres import LONG_PATIENCE, patient, session
from howl.errors import ArchiveRefused, BackupFailed, RestoreRefused
from howl.models import Base, Task
from howl.outcomes import FINAL_RANK
from howl.server import migrate
from howl.submission import AS_NEW

#: All tables; each comes after those it refers to.
TABLES: Sequence[ModelTable] = Base.metadata.sorted_tables
#: Settings with which the same rows are the same bytes, whatever a server, a database or a role has set.
PLAIN_TEXT = ("timezone TO 'UTC'", "datestyle TO 'ISO, YMD'", "intervalstyle TO 'postgres'", "extra_float_digits TO 1")
LOCK_TIMEOUT = "10s"
#: New values of a task that ran when the backup was made: its worker, and what that held, are not in the archive.
QUEUED_AGAIN = {name: value for name, value in AS_NEW.items() if name not in ("expires_at", "target_worker_id")}


def save(url: str, writer: Writer, progress: Progress) -> Record:
    """Write every table from one snapshot; raises DatabaseUnavailable or BackupFailed."""
    with patient(LONG_PATIENCE), _refusals_explained(), session(url) as opened:
        connection = opened.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        connection.execute(text("SET TRANSACTION READ ONLY"))
        _speak_plainly(connection)
        return Record(
            revision=migrate.require_current_on(connection),
            postgresql=str(connection.scalar(text("SHOW server_version"))),
            tables=[_save_table(connection, table, writer, progress) for table in TABLES],
        )


def _save_table(connection: Connection, table: ModelTable, writer: Writer, progress: Progress) -> Table:
    columns, member = [column.name for column in table.columns], f"database/{table.name}.copy"
    step, rows = f"table {table.name}", 0
    progress(step, 0, None)
    with writer.member(member) as file, _cursor(connection) as cursor:
        with cursor.copy(_copy("COPY {} ({}) TO STDOUT", table.name, columns)) as copy:
            for block in copy:
                file.write(block)
                rows += bytes(block).count(b"\n")  # a line break in a value is written as \n
                progress(step, rows, None)
    progress(step, rows, rows)
    return Table(name=table.name, columns=columns, rows=rows, member=member)


def require_empty(url: str, record: Record) -> None:
    """Raise RestoreRefused unless the database is empty, ArchiveRefused for a migration this version does not know."""
    _require_known(record)
    with session(url) as opened:
        _require_empty(opened.connection())


def load(url: str, path: Path, record: Record, progress: Progress) -> int:
    """Fill an empty database, all or nothing, and migrate it to this version; return the number of tasks queued again.

    Raises what `require_empty` raises, DatabaseUnavailable, or BackupFailed if PostgreSQL refuses the rows.
    """
    _require_known(record)
    with patient(LONG_PATIENCE), _refusals_explained(), session(url) as opened:
        connection = opened.connection()
        connection.execute(text(f"SET LOCAL lock_timeout TO '{LOCK_TIMEOUT}'"))
        _speak_plainly(connection)
        _require_empty(connection)
        migrate.start_over_at(record.revision, connection)
        for table, file in _in_archive(path, record):
            _load_table(connection, table, file, progress)
        migrate.upgrade_on(connection)
        _set_sequences(connection)
        return _queue_again(connection)


def _require_known(record: Record) -> None:
    if not migrate.knows(record.revision):
        raise ArchiveRefused(
            f"The backup is of migration {record.revision}, which this HOWL does not know: update it, then restore."
        )


def _require_empty(connection: Connection) -> None:
    """Raise RestoreRefused for rows, foreign tables or an unknown migration; lock HOWL's tables for the transaction."""
    there = inspect(connection).get_table_names()
    tables = [table for table in TABLES if table.name in there]
    for table in tables:
        connection.execute(text(f"LOCK TABLE {table.name} IN ACCESS EXCLUSIVE MODE"))
    full = [table.name for table in tables if connection.scalar(select(exists().select_from(table)))]
    found = migrate.revision(connection)
    if full:
        reason = f"has rows already ({', '.join(full)})"
    elif tables and found is None:
        reason = f"has tables that HOWL did not make ({', '.join(table.name for table in tables)})"
    elif found is not None and not migrate.knows(found):
        reason = f"is at migration {found}, which this HOWL does not know"
    else:
        return
    raise RestoreRefused(
        f"The database {reason}: stop `howl server`, make an empty database, name it in HOWL_DATABASE_URL, "
        "and restore into that."
    )


def _in_archive(path: Path, record: Record) -> Iterator[tuple[Table, IO[bytes]]]:
    """Yield tables in the order they were written in, which is the one their references need."""
    tables = {table.member: table for table in record.tables}
    for name, file in members(path, tables):
        yield tables[name], file


def _load_table(connection: Connection, table: Table, file: IO[bytes], progress: Progress) -> None:
    step, rows = f"table {table.name}", 0
    with _cursor(connection) as cursor:
        with cursor.copy(_copy("COPY {} ({}) FROM STDIN", table.name, table.columns)) as copy:
            while block := file.read(AT_ONCE):
                copy.write(block)
                rows += block.count(b"\n")
                progress(step, rows, table.rows)
    progress(step, rows, table.rows)


def _set_sequences(connection: Connection) -> None:
    """Set the sequences, so that new rows get numbers above the restored ones."""
    for table in TABLES:
        for column in table.columns:
            if column.identity is not None:
                sequence = func.pg_get_serial_sequence(table.name, column.name)
                highest = select(func.max(column)).scalar_subquery()
                connection.execute(select(func.setval(sequence, func.coalesce(highest, 1), highest.is_not(None))))


def _queue_again(connection: Connection) -> int:
    """Reset pushed tasks that ran, or waited for another attempt: maintenance pushes them unless Redis has them."""
    begun = (Task.rank > 0) & (Task.rank < FINAL_RANK) & Task.pushed_at.is_not(None)
    return connection.execute(update(Task).where(begun).values(QUEUED_AGAIN)).rowcount


def _speak_plainly(connection: Connection) -> None:
    for setting in PLAIN_TEXT:
        connection.execute(text(f"SET LOCAL {setting}"))


def _cursor(connection: Connection) -> psycopg.Cursor:
    driver: psycopg.Connection = connection.connection.driver_connection  # type: ignore[assignment]
    return driver.cursor()


def _copy(statement: str, table: str, columns: Sequence[str]) -> sql.Composed:
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    return sql.SQL(statement).format(sql.Identifier(table), names)


@contextmanager
def _refusals_explained() -> Iterator[None]:
    try:
        yield
    except (psycopg.Error, DBAPIError) as error:
        reason = (str(getattr(error, "orig", error)).strip().splitlines() or [type(error).__name__])[0]
        raise BackupFailed(f"PostgreSQL refuses: {reason}. The database is as it was.") from error

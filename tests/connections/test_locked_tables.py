"""Tables of the record that another client has locked: said whose lock is waited for, and given up."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from sqlalchemy import text

from howl.config import Settings
from howl.connections import postgres
from howl.errors import DatabaseUnavailable


@contextmanager
def locked(settings: Settings, table: str) -> Iterator[int]:
    """Nobody else can even read it; gives the number of the process of PostgreSQL that has it."""
    with psycopg.connect(settings.database(), application_name="a long report") as connection:
        connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        yield connection.info.backend_pid


def test_a_table_that_stays_locked_is_given_up_and_it_is_said_who_has_it(settings: Settings) -> None:
    url = f"{settings.database()}?application_name=waits"  # an engine of its own
    with locked(settings, "tasks") as pid:
        began = time.monotonic()
        with pytest.raises(DatabaseUnavailable, match=rf"waited 10 s for process {pid} of .*\(a long report, idle in"):
            _count(url)
        assert time.monotonic() - began >= 1
    assert _count(url) == 0
    with postgres.session(url) as session:
        assert session.scalar(text("SHOW lock_timeout")) == "10s"


def _count(url: str) -> int:
    """Tasks, by a statement that waits for a second alone."""
    with postgres.session(url) as session:
        session.execute(text("SET LOCAL lock_timeout = '1s'"))
        return int(session.scalar(text("SELECT count(*) FROM tasks")) or 0)

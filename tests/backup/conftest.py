"""Servers that nobody has used, beside those of every test: another NATS, another Redis, another database."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from howl.config import Settings
from howl.connections import postgres
from howl.embedded.nats import Nats
from howl.embedded.stack import Stack
from howl.embedded.valkey import Valkey
from howl.files import Passwords
from tests.helpers.support import eventually


@pytest.fixture(scope="session")
def other_servers() -> Iterator[tuple[Valkey, Nats]]:
    """A Redis and a NATS with stores of their own."""
    home = Path(tempfile.mkdtemp(prefix="howl-other-", dir="/tmp"))
    passwords = Passwords(home / "passwords.json")
    redis, nats = Valkey(home, passwords), Nats(home, passwords)
    try:
        redis.start()
        nats.start()
        yield redis, nats
    finally:
        redis.stop()
        nats.stop()
        shutil.rmtree(home)


@pytest.fixture
def empty(settings: Settings, stack: Stack, other_servers: tuple[Valkey, Nats]) -> Iterator[Settings]:
    """The same namespace on servers that hold nothing, not even tables."""
    name, (redis, nats) = f"{settings.subject_prefix}_new", other_servers
    url = f"{settings.database().rpartition('/')[0]}/{name}"
    _execute(stack, "CREATE DATABASE {}", name)
    yield settings.model_copy(update={"redis_url": redis.url, "nats_url": nats.url, "database_url": url})
    postgres.engine(url).dispose()
    eventually(lambda: _dropped(stack, name))


def _dropped(stack: Stack, name: str) -> bool:
    try:
        _execute(stack, "DROP DATABASE {} WITH (FORCE)", name)
    except psycopg.errors.InsufficientPrivilege:
        return False  # PostgreSQL's own vacuuming looks in
    return True


def _execute(stack: Stack, statement: str, name: str) -> None:
    with psycopg.connect(stack.urls.database_url, autocommit=True) as connection:
        connection.execute(sql.SQL(statement).format(sql.Identifier(name)))

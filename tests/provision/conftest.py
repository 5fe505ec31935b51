"""A server as `howl init` makes it, at work: one for all tests that leave it as it was."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from howl.connections import postgres
from howl.embedded.stack import Stack
from howl.provision.state import OWNER
from howl.server import migrate
from tests.helpers.person import Person
from tests.helpers.servers import HOST, Server, psql, serving
from tests.helpers.support import Process

DATABASE = "mcp_provisioned"


@pytest.fixture
def out() -> Iterator[Path]:
    """A folder for .env and howl-server/."""
    folder = Path(tempfile.mkdtemp(prefix="howl-init-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def server(stack: Stack) -> Iterator[Server]:
    """Redis and NATS as docker-compose.yml starts them; of PostgreSQL a database that roles.sql was run in."""
    folder = Path(tempfile.mkdtemp(prefix="howl-init-", dir="/tmp"))
    made = Server(folder)
    try:
        made.start_redis()
        made.start_nats()
        _make_database(stack, made)
        yield made
    finally:
        made.stop()
        postgres.engine(database_url(stack, made)).dispose()
        _drop_database(stack)
        shutil.rmtree(folder)


@pytest.fixture
def howl_server(server: Server, start: Callable[..., Process]) -> Process:
    """`howl server` as the .env that `howl init` wrote has it."""
    return serving(start("server", env=server.env()))


@pytest.fixture
def person(server: Server, stack: Stack) -> Iterator[Person]:
    """Somebody who may submit."""
    somebody = Person(server, database_url(stack, server))
    yield somebody
    somebody.app.close()


def superuser_url(stack: Stack, database: str = "postgres") -> str:
    return f"postgresql://postgres:{stack.postgres.passwords['postgres']}@{HOST}:{stack.postgres.port}/{database}"


def database_url(stack: Stack, server: Server, role: str = OWNER) -> str:
    password = server.folder.existing().passwords[role]
    return f"postgresql://{role}:{password}@{HOST}:{stack.postgres.port}/{DATABASE}"


def _drop_database(stack: Stack) -> None:
    """Another module's server, in this process, makes its own."""
    with psycopg.connect(superuser_url(stack), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)".encode())


def _make_database(stack: Stack, server: Server) -> None:
    with psycopg.connect(superuser_url(stack), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {DATABASE}".encode())
    psql(superuser_url(stack, DATABASE), server.path / "postgres" / "init" / "roles.sql")
    migrate.upgrade(database_url(stack, server))
    with server.folder.env.open("a") as file:
        file.write(f"POSTGRES_PORT={stack.postgres.port}\nPOSTGRES_DB={DATABASE}\n")

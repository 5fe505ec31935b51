"""The embedded PostgreSQL server."""

import signal
from collections.abc import Sequence
from pathlib import Path

import psycopg
from psycopg import sql

from howl.embedded.account import Account, postgres_account
from howl.embedded.cluster import SUPERUSER, create_data_folder, reachable_installation, remove_leftovers
from howl.embedded.server import Server
from howl.errors import EmbeddedServerError
from howl.local_stack import HOST

#: The role that all but this module use, and the database it owns.
ROLE = "howl"
DATABASE = "mcp_manager"

CONNECT_PATIENCE = 10  # seconds

# No socket file: its path would have to be short, and its folder writable by the account.
SETTINGS = {"listen_addresses": HOST, "unix_socket_directories": "", "max_connections": "100"}

#: Lines of postmaster.pid, counted from 0 (PostgreSQL, src/include/utils/pidfile.h).
PID_LINE, STATUS_LINE = 0, 7


class Postgres(Server):
    """PostgreSQL on loopback; `url` is the role howl's, which owns mcp_manager and may create databases."""

    title = "PostgreSQL"
    slug = "postgres"
    stop_signal = signal.SIGINT  # "fast": does not wait for clients to leave
    death_signal = signal.SIGQUIT  # "immediate": ends busy backends too, which would outlive a killed postmaster

    @property
    def url(self) -> str:
        return f"postgresql://{ROLE}:{self.passwords[ROLE]}@{HOST}:{self.port}/{DATABASE}"

    def wait_until_ready(self) -> None:
        super().wait_until_ready()
        try:
            self._prepare_database()
        except psycopg.Error as error:
            text = self.passwords.hide_in(str(error)).strip()
            raise EmbeddedServerError(f"PostgreSQL in {self.folder} started but refused its set-up: {text}") from None

    def _account(self) -> Account | None:
        return postgres_account()

    def _command(self) -> Sequence[str | Path]:
        account = self._account()
        remove_leftovers(self.folder)
        installation = reachable_installation(self.home, account)
        if not self.folder.exists():
            create_data_folder(self.folder, installation, self.passwords[SUPERUSER], account)
        options = [f"--{name}={value}" for name, value in {**SETTINGS, "port": str(self.port)}.items()]
        return [installation / "bin" / "postgres", "-D", self.folder, *options]

    def _is_ready(self) -> bool:
        """Read postmaster.pid; a file left by an earlier run may say "ready" too, but not with this process id."""
        try:
            lines = (self.folder / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > STATUS_LINE and lines[PID_LINE] == str(self.pid) and lines[STATUS_LINE].strip() == "ready"

    def _prepare_database(self) -> None:
        with self._connect_as_superuser() as connection:
            if not _exists(connection, "SELECT 1 FROM pg_roles WHERE rolname = %s", ROLE):
                connection.execute(_create_role(connection, self.passwords[ROLE]))
            if not _exists(connection, "SELECT 1 FROM pg_database WHERE datname = %s", DATABASE):
                statement = sql.SQL("CREATE DATABASE {} OWNER {}")
                connection.execute(statement.format(sql.Identifier(DATABASE), sql.Identifier(ROLE)))

    def _connect_as_superuser(self) -> psycopg.Connection:
        return psycopg.connect(
            host=HOST,
            hostaddr=HOST,  # stated, because PGHOSTADDR would win over the host
            port=self.port,
            user=SUPERUSER,
            password=self.passwords[SUPERUSER],
            dbname="postgres",
            sslmode="disable",
            connect_timeout=CONNECT_PATIENCE,
            autocommit=True,
        )


def _exists(connection: psycopg.Connection, query: str, name: str) -> bool:
    return connection.execute(query.encode(), (name,)).fetchone() is not None


def _create_role(connection: psycopg.Connection, password: str) -> sql.Composed:
    """Build the statement with the password's verifier, so that the server cannot log the password."""
    verifier = connection.pgconn.encrypt_password(password.encode(), ROLE.encode(), b"scram-sha-256").decode()
    statement = sql.SQL("CREATE ROLE {} LOGIN CREATEDB PASSWORD {}")
    return statement.format(sql.Identifier(ROLE), sql.Literal(verifier))

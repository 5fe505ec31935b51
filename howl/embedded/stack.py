"""All embedded servers together, in one state folder."""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from howl.embedded.account import ACCOUNT_NAME, closed_folder
from howl.embedded.nats import Nats
from howl.embedded.postgres import Postgres
from howl.embedded.server import PORTS
from howl.embedded.valkey import Valkey
from howl.errors import EmbeddedServerError
from howl.files import Passwords, take_lock, write_private
from howl.local_stack import last_ports

#: Seconds to retry for the lock: a command that only checks whether a stack runs holds it for a moment.
LOCK_PATIENCE = 0.5


@dataclass(frozen=True)
class StackUrls:
    """The servers' URLs, passwords included."""

    redis_url: str = field(repr=False)
    nats_url: str = field(repr=False)
    database_url: str = field(repr=False)


class Stack:
    """Real Redis protocol (Valkey), NATS with JetStream and PostgreSQL servers on loopback, in one state folder.

    Their data, logs and passwords stay in the folder; the servers end with this process, however it ends. Each server
    can be stopped and started again by itself. A stack must be started from the main thread.
    """

    urls: StackUrls

    def __init__(self, home: Path) -> None:
        self.home = home.absolute()
        passwords = Passwords(self.home / "passwords.json")
        self.redis = Valkey(self.home, passwords)
        self.nats = Nats(self.home, passwords)
        self.postgres = Postgres(self.home, passwords)
        # PostgreSQL last: the others become ready while it makes its data folder.
        self._servers = (self.redis, self.nats, self.postgres)
        self._lock: BinaryIO | None = None
        #: Whether they listen on other ports than the last time, because those were taken.
        self.has_moved = False

    def start(self) -> None:
        """Start all servers and wait until they answer, or start none.

        Raises EmbeddedServerError if one cannot be started, or another process runs this folder's servers.
        """
        with _file_errors_explained(self.home):
            self._prepare_home()
            self._lock = self._take_lock()
            try:
                self._start_servers()
                self._announce()
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """Stop all servers and wait for them, at most half a minute each; stopping twice does nothing more."""
        if self._lock is None:
            return
        (self.home / "running.json").unlink(missing_ok=True)
        for server in self._servers:
            server.begin_stop()
        for server in self._servers:
            server.stop()
        self._lock.close()
        self._lock = None

    def check(self) -> None:
        """Raise EmbeddedServerError, with its last log lines, if a server ended by itself."""
        for server in self._servers:
            server.check()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _prepare_home(self) -> None:
        if not self.home.exists():
            self.home.mkdir(parents=True)
            self.home.chmod(0o711 if os.geteuid() == 0 else 0o700)
            write_private(self.home / ".gitignore", "*\n")  # it may be in a checkout, and holds passwords
        state = self.home.stat()
        if state.st_uid != os.geteuid() or state.st_mode & stat.S_IWOTH:
            raise EmbeddedServerError(
                f"The state folder {self.home} belongs to somebody else, or anyone may write to it: "
                "choose another HOWL_HOME."
            )
        self._refuse_closed_folder()

    def _refuse_closed_folder(self) -> None:
        closed = closed_folder(self.home) if os.geteuid() == 0 else None
        if closed:
            raise EmbeddedServerError(
                f"As root, PostgreSQL runs as the user `{ACCOUNT_NAME}`, who may not enter {closed}: "
                "choose another HOWL_HOME, for example one below /var/lib."
            )

    def _take_lock(self) -> BinaryIO:
        try:
            return take_lock(self.home / "lock", LOCK_PATIENCE)
        except BlockingIOError:
            raise EmbeddedServerError(
                f"Another `howl up` uses the state folder {self.home}: stop it, or choose another HOWL_HOME."
            ) from None

    def _start_servers(self) -> None:
        before = last_ports(self.home)  # which other terminals may be using
        for server in self._servers:
            if before.get(server.slug) in PORTS:
                server.port = server.port or before[server.slug]
            server.launch()
        for server in self._servers:
            server.wait_until_ready()
        now = {server.slug: server.port for server in self._servers}
        self.has_moved = bool(before) and before != now
        write_private(self.home / "ports.json", json.dumps(now))

    def _announce(self) -> None:
        self.urls = StackUrls(self.redis.url, self.nats.url, self.postgres.url)
        write_private(self.home / "running.json", json.dumps(asdict(self.urls)))


@contextmanager
def _file_errors_explained(home: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EmbeddedServerError(
            f"The state folder {home} cannot be used ({error}): choose another HOWL_HOME."
        ) from error

"""The base class of the embedded servers: a port, a start that waits until ready, a stop."""

import random
import signal
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from howl.embedded.account import Account
from howl.embedded.process import Child
from howl.errors import EmbeddedServerError
from howl.files import Passwords
from howl.local_stack import HOST

#: Ports below the range that kernels use for outgoing connections: a client that keeps trying to reach a stopped server
#: on a port in that range ends up connected to itself, and the server cannot get its port back.
PORTS = range(15_000, 32_000)
PORT_ATTEMPTS = 3

#: Seconds from start to ready; generous because a server reads its data first.
START_PATIENCE = 60.0


class Server(ABC):
    """A server with its data in a folder of its own; its port is chosen once and kept over `stop` and `start`.

    A `port` that was set before is used if it is free.
    """

    title: ClassVar[str]
    slug: ClassVar[str]
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    death_signal: ClassVar[signal.Signals] = signal.SIGKILL

    def __init__(self, home: Path, passwords: Passwords) -> None:
        self.home = home
        self.folder = home / self.slug
        self.passwords = passwords
        self.port = 0
        self._port_is_kept = False
        self._child: Child | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """The URL for clients, password included."""

    @property
    def pid(self) -> int:
        """The server's process id; raises EmbeddedServerError if it was not started, or was stopped."""
        if self._child is None:
            raise EmbeddedServerError(f"{self.title} is not running: start it first.")
        return self._child.pid

    def start(self) -> None:
        """Start the server and wait until it answers; raises EmbeddedServerError with its last log lines."""
        self.launch()
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def launch(self) -> None:
        """Start without waiting; `wait_until_ready` must follow."""
        if self._child is not None and self._child.exit_status() is None:
            raise EmbeddedServerError(f"{self.title} is running already: stop it first.")
        if not self._port_is_kept and not (self.port and _is_free(self.port)):
            self.port = free_port()
        self._child = self._spawn()

    def wait_until_ready(self) -> None:
        """Wait until it answers; choose another port if this one was taken in the meantime."""
        for _ in range(PORT_ATTEMPTS):
            if self._becomes_ready():
                self._port_is_kept = True
                return
            if self._port_is_kept or "address already in use" not in self._log_tail().lower():
                break
            self.port = 0
            self.launch()
        raise self._failure("could not be started")

    def begin_stop(self) -> None:
        """Ask it to stop, without waiting, so that several servers can stop at once."""
        if self._child is not None:
            self._child.send(self.stop_signal)

    def stop(self) -> None:
        """Stop it and wait, at most half a minute; do nothing if it does not run."""
        if self._child is not None:
            self._child.end(self.stop_signal)
            self._child = None

    def check(self) -> None:
        """Raise EmbeddedServerError with its last log lines if it ended by itself."""
        if self._child is not None and self._child.exit_status() is not None:
            raise self._failure("stopped by itself")

    @abstractmethod
    def _command(self) -> Sequence[str | Path]:
        """Write the configuration for the current port; return the command to run."""

    @abstractmethod
    def _is_ready(self) -> bool:
        """Return whether this very process, not another one on its port, answers."""

    def _account(self) -> Account | None:
        return None

    def _spawn(self) -> Child:
        return Child(
            self._command(),
            cwd=self.folder,
            log=self.home / f"{self.slug}.log",
            alive=self.home / f"{self.slug}.alive",
            account=self._account(),
            death_signal=self.death_signal,
        )

    def _becomes_ready(self) -> bool:
        """Wait until it answers; return False if it ended instead."""
        deadline = time.monotonic() + START_PATIENCE
        while self._child is not None and self._child.exit_status() is None:
            if self._is_ready():
                return True
            if time.monotonic() > deadline:
                raise self._failure(f"did not answer within {START_PATIENCE:.0f} s")
            time.sleep(0.01)
        return False

    def _log_tail(self) -> str:
        return self.passwords.hide_in(self._child.log_tail()) if self._child else ""

    def _failure(self, what: str) -> EmbeddedServerError:
        status = self._child.exit_status() if self._child else None
        ended = "" if status is None else f" (exit status {status})"
        return EmbeddedServerError(f"{self.title} {what}{ended}; its log ends with:\n{self._log_tail()}")


def free_port() -> int:
    """Return a loopback port that nobody listens on now; raises EmbeddedServerError after a hundred tries."""
    for port in random.sample(PORTS, 100):
        if _is_free(port):
            return port
    raise EmbeddedServerError(f"No free port was found from {PORTS.start} to {PORTS.stop}: end what listens there.")


def _is_free(port: int) -> bool:
    with socket.socket() as attempt:
        # Connections that ended a moment ago do not block a server.
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((HOST, port))
        except OSError:
            return False
    return True

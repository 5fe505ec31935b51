"""Redis and NATS as `howl init` sets them up, on Debian's redis-server, because the embedded one has no TLS."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from click import ClickException

from howl.embedded import binaries
from howl.embedded.server import HOST, free_port
from howl.provision.folder import Folder, build
from howl.provision.state import State

#: Most seconds for a server to listen, and to end after SIGTERM.
PATIENCE = 30


class Provisioned:
    """The servers of one namespace; Redis listens with TLS and without, so that nothing else differs."""

    def __init__(self, out: Path, space: str) -> None:
        out.mkdir()
        self.folder = Folder(out)
        self.folder.env.write_text(f"HOWL_KEY_PREFIX={space}:\nHOWL_SUBJECT_PREFIX={space}\n")
        self.state = State(HOST)
        build(self.folder, self.state)
        self.redis_port, self.tls_port, self.nats_port = free_port(), free_port(), free_port()

    def redis_url(self, user: str, *, tls: bool) -> str:
        """Return the address of Redis for a user, with TLS or without."""
        scheme, port = ("rediss", self.tls_port) if tls else ("redis", self.redis_port)
        return f"{scheme}://{self._login(user)}@{HOST}:{port}/0"

    def nats_url(self, user: str) -> str:
        """Return the address of NATS for a user, with TLS."""
        return f"tls://{self._login(user)}@{HOST}:{self.nats_port}"

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the servers until the block ends."""
        with ExitStack() as servers:
            servers.enter_context(self._program(self._redis(), "redis", self.redis_port))
            servers.enter_context(self._program(self._nats(), "nats", self.nats_port))
            yield

    def _login(self, user: str) -> str:
        return f"{user}:{self.state.passwords[user]}"

    def _redis(self) -> list[str]:
        program = shutil.which("redis-server")
        if program is None:
            raise ClickException("Comparing TLS needs Debian's redis-server: apt-get install redis-server.")
        # Later arguments override the file; all else is as it says.
        moved = {
            "port": self.redis_port, "tls-port": self.tls_port, "bind": HOST, "aclfile": "users.acl",
            "tls-cert-file": "server.crt", "tls-key-file": "server.key",
        }  # fmt: skip
        return [program, "redis.conf", *(word for name, value in moved.items() for word in (f"--{name}", str(value)))]

    def _nats(self) -> list[str]:
        places = {"store_dir": "data", "addr": HOST, "port": self.nats_port, "http_port": free_port()}
        words = (word for name, value in places.items() for word in (f"--{name}", str(value)))
        return [str(binaries.nats_server()), "--config", "nats.conf", *words]

    @contextmanager
    def _program(self, argv: list[str], name: str, port: int) -> Iterator[None]:
        log = self.folder.out / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(argv, cwd=self.folder.path / name, stdout=output, stderr=output)
        try:
            if not _listens(port, process):
                raise ClickException(f"{name} did not start.\n{log.read_text()[-2000:]}")
            yield
        finally:
            process.terminate()
            process.wait(PATIENCE)


def _listens(port: int, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as attempt:
            if attempt.connect_ex((HOST, port)) == 0:
                return True
        time.sleep(0.02)
    return False

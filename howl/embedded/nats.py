"""The embedded NATS server, with JetStream."""

import json
import secrets
import socket
from collections.abc import Sequence
from pathlib import Path

from howl.embedded import binaries
from howl.embedded.server import Server
from howl.files import Passwords, write_private
from howl.local_stack import HOST

USER = "howl"

# The store's path is relative to the folder that the server starts in, so it needs no quoting.
CONFIGURATION = """\
server_name: "{name}"
listen: "{host}:{port}"
authorization: {{ user: "{user}", password: "{password}" }}
jetstream: {{ store_dir: ".", max_memory_store: 128MB, max_file_store: 8GB }}
"""


class Nats(Server):
    """NATS with JetStream on loopback behind a user and password; streams hold at most 8 GB on disk."""

    title = "NATS"
    slug = "nats"

    def __init__(self, home: Path, passwords: Passwords) -> None:
        super().__init__(home, passwords)
        #: The server sends it in its greeting, which distinguishes it from another one on the same port.
        self._name = f"howl-{secrets.token_hex(6)}"

    @property
    def url(self) -> str:
        return f"nats://{USER}:{self.passwords['nats']}@{HOST}:{self.port}"

    def _command(self) -> Sequence[str | Path]:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        password = self.passwords["nats"]
        configuration = CONFIGURATION.format(name=self._name, host=HOST, port=self.port, user=USER, password=password)
        write_private(self.folder / "nats.conf", configuration)
        return [binaries.nats_server(), "--config", "nats.conf"]

    def _is_ready(self) -> bool:
        try:
            with (
                socket.create_connection((HOST, self.port), timeout=2) as connection,
                connection.makefile("rb") as lines,
            ):
                greeting = lines.readline(65_536)  # INFO {...}, the first line of the protocol
            return bool(json.loads(greeting.removeprefix(b"INFO "))["server_name"] == self._name)
        except (OSError, ValueError, KeyError, TypeError):
            return False  # not listening yet, or somebody else's server

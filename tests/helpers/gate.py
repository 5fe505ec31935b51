"""A TCP proxy that lets so many bytes through to a server, and then holds the rest back until it is opened."""

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit

CHUNK = 1 << 16


class Gate:
    """Forwards connections on loopback until left."""

    def __init__(self, url: str, limit: int) -> None:
        self._parts = urlsplit(url)
        self._left = limit
        self._open = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = [self._listener]
        #: Set once something is held back.
        self.holds = threading.Event()

    @property
    def url(self) -> str:
        """The server's address, by way of here."""
        login, _, _ = self._parts.netloc.rpartition("@")
        return urlunsplit(self._parts._replace(netloc=f"{login}@127.0.0.1:{self._listener.getsockname()[1]}"))

    def open(self) -> None:
        self._open.set()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.open()
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._sockets.append(client)
                with suppress(OSError):
                    self._connect(client)

    def _connect(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection((self._parts.hostname or "", self._parts.port or 0), 10)
        except OSError:
            client.close()
            raise
        server.settimeout(None)
        self._sockets.append(server)
        threading.Thread(target=self._carry, args=(client, server, True), daemon=True).start()
        threading.Thread(target=self._carry, args=(server, client, False), daemon=True).start()

    def _carry(self, here: socket.socket, there: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while data := here.recv(CHUNK):
                self._left -= len(data) * counted
                if counted and self._left < 0 and not self._open.is_set():
                    self.holds.set()
                    self._open.wait(60)
                there.sendall(data)
        for each in (here, there):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

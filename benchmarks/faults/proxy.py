"""A TCP proxy that can cut every connection through it, after losing the data in one direction."""

import asyncio
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit

#: The two directions.
REQUESTS, ANSWERS = "requests", "answers"
CHUNK = 1 << 16


class Proxy(threading.Thread):
    """A proxy that forwards connections on loopback to a server until its context is left."""

    def __init__(self, url: str) -> None:
        super().__init__(name="proxy", daemon=True)
        self._parts = urlsplit(url)
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._port = 0
        self._connections: set[Connection] = set()

    @property
    def url(self) -> str:
        """The server's address through this proxy."""
        login, _, _ = self._parts.netloc.rpartition("@")
        return urlunsplit(self._parts._replace(netloc=f"{login}@127.0.0.1:{self._port}"))

    def cut(self, direction: str, after: float) -> int:
        """Lose all data in one direction for `after` seconds, then cut; return the number of connections."""
        return asyncio.run_coroutine_threadsafe(self._cut(direction, after), self._loop).result(10)

    def __enter__(self) -> Self:
        self.start()
        assert self._ready.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self.join(10)

    def run(self) -> None:
        self._loop.run_until_complete(self._listen())
        self._loop.run_forever()
        self._loop.run_until_complete(self._close())
        self._loop.close()

    async def _listen(self) -> None:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._server = server
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()

    async def _close(self) -> None:
        self._server.close()
        for connection in list(self._connections):
            connection.close()
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await asyncio.open_connection(self._parts.hostname, self._parts.port)
        except OSError:
            writer.close()
            return
        connection = Connection((reader, writer), there)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)

    async def _cut(self, direction: str, after: float) -> int:
        now = list(self._connections)
        for connection in now:
            connection.losing = direction
        await asyncio.sleep(after)
        for connection in now:
            connection.close()
        return len(now)


Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Connection:
    """A client's connection and the one to the server that was opened for it."""

    def __init__(self, client: Stream, server: Stream) -> None:
        self._client, self._server = client, server
        self.losing = ""

    async def run(self) -> None:
        """Forward in both directions until the connections end."""
        pumps = (self._pump(REQUESTS, self._client[0], self._server[1]),
                 self._pump(ANSWERS, self._server[0], self._client[1]))  # fmt: skip
        await asyncio.gather(*pumps)

    def close(self) -> None:
        """Abort both connections at once, without a clean close."""
        for _, writer in (self._client, self._server):
            writer.transport.abort()

    async def _pump(self, direction: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(CHUNK):
                if self.losing != direction:
                    writer.write(data)
                    await writer.drain()
        writer.close()

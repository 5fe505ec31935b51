"""The gate: a SOCKS proxy on loopback that checks every address a browser asks for, and connects to it itself.

A browser resolves names on its own, follows redirects, and opens connections that intercepting its requests does not
show (WebSockets, preconnects, workers). Through the gate it names a host, which is resolved once, checked, and
connected to at the very address that was checked. It is SOCKS rather than an HTTP proxy because all TCP traffic then
looks the same, and no request for one site can end up on a connection to another. See RFC 1928; there is no
authentication, because nobody on this machine reaches more through the gate than without it.
"""

import asyncio
import contextlib
import logging
from typing import Self

from howl.errors import AddressRefused, FetchFailed, HowlError
from workers.addresses import resolve_host

log = logging.getLogger(__name__)

#: Most bytes that one page may transfer, in both directions and with all that belongs to it.
PAGE_BYTES = 100_000_000
#: Most connections at one time, and most failed destinations of one page whose reason is kept.
CONNECTIONS = 256
REMEMBERED = 1_000

#: Most seconds for a client to name its destination, and to connect to one address.
GREETING_TIME = 10.0
CONNECT_TIME = 10.0
CHUNK = 1 << 16

VERSION, CONNECT, NO_AUTHENTICATION = 5, 1, 0
#: SOCKS address type of a name; browsers do not send the types of IPv4 and IPv6 addresses.
NAME = 3
GRANTED, NOT_ALLOWED, UNREACHABLE = 0, 2, 4


class Gate:
    """The only network access of a browser that visits one page at a time."""

    def __init__(self) -> None:
        self.allow_private = False
        #: Bytes that this page has transferred, and the reason why a destination was not reached, by host and port.
        self.moved = 0
        self.failures: dict[tuple[str, int], HowlError] = {}
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=CHUNK)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        self.clear()

    @property
    def port(self) -> int:
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def exhausted(self) -> bool:
        """Whether this page has transferred more than PAGE_BYTES."""
        return self.moved > PAGE_BYTES

    def clear(self) -> None:
        """End a page: close its connections, and reset the counts and failures for the next."""
        for connection in self._connections:
            connection.cancel()
        self.moved = 0
        self.failures = {}

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None  # noqa: S101 - asyncio serves each connection in a task of its own
        self._connections.add(connection)
        try:
            if len(self._connections) <= CONNECTIONS and not self.exhausted:
                await self._serve(reader, writer)
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            log.debug("A connection of the browser ended: %r", error)
        except asyncio.CancelledError:
            log.debug("A connection of the browser ended with its page.")
        finally:
            self._connections.discard(connection)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(GREETING_TIME):
            host, port = await _destination(reader, writer)
        try:
            far_reader, far_writer = await self._connect(host, port)
        except HowlError as error:
            if len(self.failures) < REMEMBERED:
                self.failures[host, port] = error
            writer.write(_answer(NOT_ALLOWED if isinstance(error, AddressRefused) else UNREACHABLE))
            await writer.drain()
            return
        writer.write(_answer(GRANTED))
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass_on(reader, far_writer))
                both.create_task(self._pass_on(far_reader, writer))
        except* OSError as errors:
            log.debug("A connection of the browser was cut: %r", errors.exceptions)
        finally:
            far_writer.transport.abort()

    async def _connect(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the first address that accepts; raises AddressRefused, FetchFailed."""
        for address in await resolve_host(host, port, self.allow_private):
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(CONNECT_TIME):
                    return await asyncio.open_connection(address, port, limit=CHUNK)
        raise FetchFailed(f"{host} does not accept connections on port {port}.")

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(CHUNK):
            self.moved += len(chunk)
            if self.exhausted:
                raise ConnectionAbortedError("The page has moved all that it may.")
            writer.write(chunk)
            await writer.drain()
        writer.write_eof()


async def _destination(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[str, int]:
    """Read the client's destination; raises ValueError unless it speaks SOCKS 5 and gives a name."""
    version, methods = await reader.readexactly(2)
    if version != VERSION or NO_AUTHENTICATION not in await reader.readexactly(methods):
        raise ValueError("not SOCKS 5 without authentication")
    writer.write(bytes([VERSION, NO_AUTHENTICATION]))
    version, command, _, kind, length = await reader.readexactly(5)
    if (version, command, kind) != (VERSION, CONNECT, NAME):
        raise ValueError("not a CONNECT to a name")
    host = (await reader.readexactly(length)).decode("ascii")
    return host, int.from_bytes(await reader.readexactly(2), "big")


def _answer(reply: int) -> bytes:
    return bytes([VERSION, reply, 0, 1, *bytes(4 + 2)])

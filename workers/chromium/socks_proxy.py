"""The gate: a SOCKS proxy on loopback that checks every address a browser wants to reach, and connects to it itself.

A browser resolves names on its own, follows redirects, and opens connections that no interception of its requests
shows (WebSockets, preconnects, workers). Sent through here it names a host, which is resolved once, checked, and
connected to at the very address that was checked. SOCKS rather than an HTTP proxy: all that TCP carries looks the same
then, and no request for one site can end up on a connection to another. See RFC 1928; without authentication, because
nobody on this machine reaches more through it than without it.
"""

import asyncio
import contextlib
import logging
from typing import Self

from howl.errors import AddressRefused, FetchFailed, HowlError
from workers.addresses import resolve_host

log = logging.getLogger(__name__)

#: Bytes that one page may move, in both directions and with all that belongs to it.
PAGE_BYTES = 100_000_000
#: Connections at one time, and destinations of one page of which it is remembered why they were not reached.
CONNECTIONS = 256
REMEMBERED = 1_000

#: Seconds to say where to, and to connect to one address.
GREETING_TIME = 10.0
CONNECT_TIME = 10.0
CHUNK = 1 << 16

VERSION, CONNECT, NO_AUTHENTICATION = 5, 1, 0
#: Kinds of addresses: names (of any spelling), and bytes of an IPv4 or IPv6 address, which browsers do not send.
NAME = 3
GRANTED, NOT_ALLOWED, UNREACHABLE = 0, 2, 4


class Gate:
    """The only way out for a browser whose pages come one at a time."""

    def __init__(self) -> None:
        self.allow_private = False
        #: Bytes that this page has moved, and why destinations of it were not reached, by host and port.
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
        """Whether this page has moved all that it may."""
        return self.moved > PAGE_BYTES

    def clear(self) -> None:
        """End a page: nothing of it stays connected, and the next begins from nothing."""
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
        """Connected to the first address that accepts; raises AddressRefused, FetchFailed."""
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
    """Where a client wants to be connected to; raises ValueError unless it asks in SOCKS 5, and for a name."""
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

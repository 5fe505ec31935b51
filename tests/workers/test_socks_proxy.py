"""The gate, spoken to as a browser does, in front of real sockets on loopback."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable

import pytest

from howl.errors import AddressRefused, FetchFailed
from tests.helpers.site import Site
from workers import addresses
from workers.chromium.socks_proxy import Gate

HELLO = bytes([5, 1, 0])


def through(talk: Callable[[Gate, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> None:
    """Have a client talk to a gate."""

    async def run() -> None:
        async with asyncio.timeout(30), Gate() as gate:
            reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
            await talk(gate, reader, writer)
            writer.close()

    asyncio.run(run())


async def ask_for(host: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
    """The gate's reply to a client that wants to go there."""
    writer.write(HELLO + bytes([5, 1, 0, 3, len(host)]) + host.encode() + port.to_bytes(2, "big"))
    assert await reader.readexactly(2) == bytes([5, 0])
    return (await reader.readexactly(10))[1]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the name rebinding.test resolves to, an address for each time it is asked."""
    given: list[str] = []
    real = socket.getaddrinfo

    def getaddrinfo(host, port, *args, **kwargs):
        return real(given.pop(0) if host == "rebinding.test" else host, port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(addresses, "is_public", lambda address: address == "127.0.0.1")
    return given


def test_a_name_is_resolved_once_and_the_checked_address_is_the_one_connected_to(answers: list[str]):
    answers += ["127.0.0.1", "127.0.0.2"]

    async def talk(gate, reader, writer):
        assert await ask_for("rebinding.test", site.server_port, reader, writer) == 0
        writer.write(b"GET /page HTTP/1.0\r\nHost: rebinding.test\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")

    with Site("127.0.0.1") as site:
        through(talk)
    assert answers == ["127.0.0.2"]


def test_a_second_answer_is_checked_as_the_first_was(answers: list[str]):
    answers.append("127.0.0.2")

    async def talk(gate, reader, writer):
        assert await ask_for("rebinding.test", site.server_port, reader, writer) == 2
        assert isinstance(gate.failures["rebinding.test", site.server_port], AddressRefused)

    with Site("127.0.0.2") as site:
        through(talk)
        assert site.seen == []


def test_nobody_there_is_told_apart_from_refused(answers: list[str]):
    async def talk(gate, reader, writer):
        assert await ask_for("127.0.0.1", closed, reader, writer) == 4
        assert isinstance(gate.failures["127.0.0.1", closed], FetchFailed)

    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    through(talk)


@pytest.mark.parametrize(
    "said",
    [
        b"GET http://example.com/ HTTP/1.1\r\n\r\n",
        bytes([4, 1, 0]),
        bytes([5, 1, 2]),
        HELLO + bytes([5, 2, 0, 3, 1]) + b"x" + bytes(2),
        HELLO + bytes([5, 3, 0, 3, 1]) + b"x" + bytes(2),
        HELLO + bytes([5, 1, 0, 1, 127, 0, 0, 1, 0, 80]),
        HELLO + bytes([5, 1, 0, 3, 2]) + b"\xff\xff" + bytes(2),
    ],
)
def test_what_is_no_wish_to_connect_to_a_name_is_hung_up_on(said: bytes):
    async def talk(gate, reader, writer):
        writer.write(said)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() in (b"", bytes([5, 0]))
        assert gate.failures == {}

    through(talk)

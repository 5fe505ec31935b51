"""Connections to NATS over a network that cuts them at any moment: a relay stands between client and server."""

import asyncio
import gc
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from howl.config import Settings
from howl.connections.nats import TROUBLE, Connection
from tests.helpers import secured_anyhow

#: Seconds in which a connection that is not stuck has been made, or closed.
SOON = 20


class Relay:
    """Ends the connections of these numbers, from 1, in this way; passes on what goes through all others."""

    def __init__(self, port: int, ended: tuple[int, ...], way: str) -> None:
        self.port, self.ended, self.way = port, ended, way
        self.connections: list[asyncio.StreamWriter] = []
        #: Cleared, nothing goes through.
        self.passes = asyncio.Event()
        self.passes.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(writer)
        with suppress(OSError):
            if len(self.connections) in self.ended:
                await self._end(reader, writer)
                writer.transport.abort()
                return
            beyond, there = await asyncio.open_connection(secured_anyhow.ELSEWHERE, self.port)
            await asyncio.gather(self._pump(reader, there), self._pump(beyond, writer))

    async def _end(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.way == "at once":
            return
        hello = await reader.read(4096)
        if self.way == "with words that are no TLS":
            writer.write(b"INFO {}\r\n" * 10)
            await writer.drain()
        elif self.way == "amid the certificate":
            beyond, there = await asyncio.open_connection(secured_anyhow.ELSEWHERE, self.port)
            there.write(hello)
            writer.write(await beyond.read(300))
            await writer.drain()
            there.transport.abort()
        elif self.way == "in silence":
            while await reader.read(4096):  # until the client has had enough
                pass

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while said := await reader.read(1 << 16):
                await self.passes.wait()
                writer.write(said)
                await writer.drain()
        finally:
            writer.close()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[secured_anyhow.Secured]:
    folder: Path = tmp_path_factory.mktemp("secured")
    with secured_anyhow.serve(folder, host=secured_anyhow.ELSEWHERE) as made:
        yield made


def behind(
    servers: secured_anyhow.Secured,
    scene: Callable[[Relay, Settings], Coroutine[Any, Any, None]],
    *ended: int,
    way: str = "",
) -> None:
    """Play a scene with the settings of a worker whose connections come through a relay."""

    async def play() -> None:
        relay = Relay(servers.nats_port, ended, way)
        async with await asyncio.start_server(relay.serve, secured_anyhow.ELSEWHERE, 0) as listening:
            port = str(listening.sockets[0].getsockname()[1])
            settings = servers.settings("worker")
            url = settings.nats().replace(str(servers.nats_port), port)
            async with asyncio.timeout(SOON):
                await scene(relay, settings.model_copy(update={"nats_url": url}))
            for writer in relay.connections:
                writer.transport.abort()

    asyncio.run(play())
    gc.collect()  # a socket that was left open is a warning, and so a failure


WAYS = ["at once", "after hello", "with words that are no TLS", "amid the certificate", "in silence"]


def patience(way: str) -> float:
    """Seconds for a try to connect: all of them pass in silence alone, and what is not cut must be made in them."""
    return 3 if way == "in silence" else SOON / 2


@pytest.mark.parametrize("way", WAYS)
def test_a_first_connection_that_is_cut_twice_is_made_the_third_time(servers: secured_anyhow.Secured, way: str) -> None:
    async def scene(relay: Relay, settings: Settings) -> None:
        client = await Connection().open(
            settings, "test", lasting=True, reconnect_time_wait=0.1, connect_timeout=patience(way)
        )
        assert client.is_connected
        assert len(relay.connections) == 3
        await client.close()

    behind(servers, scene, 1, 2, way=way)


@pytest.mark.parametrize("way", WAYS)
def test_a_broken_connection_is_made_anew_although_that_is_cut_twice(servers: secured_anyhow.Secured, way: str) -> None:
    async def scene(relay: Relay, settings: Settings) -> None:
        back = asyncio.Event()

        async def is_back() -> None:
            back.set()

        client = await Connection().open(
            settings, "test", lasting=True, reconnect_time_wait=0.1, connect_timeout=patience(way),
            reconnected_cb=is_back,
        )  # fmt: skip
        relay.connections[0].transport.abort()
        await back.wait()
        assert len(relay.connections) == 4
        await client.flush(5)
        await client.close()

    behind(servers, scene, 2, 3, way=way)


@pytest.mark.parametrize("way", WAYS)
def test_who_tries_once_hears_why_it_failed(servers: secured_anyhow.Secured, way: str) -> None:
    async def scene(relay: Relay, settings: Settings) -> None:
        with pytest.raises(TROUBLE):
            await Connection().open(settings, "test", connect_timeout=1)
        assert len(relay.connections) == 1

    behind(servers, scene, 1, 2, way=way)


def test_where_nobody_listens_it_is_said_at_once(servers: secured_anyhow.Secured) -> None:
    async def scene(relay: Relay, settings: Settings) -> None:
        url = settings.nats().replace(secured_anyhow.ELSEWHERE, "127.0.0.3")
        with pytest.raises(ConnectionRefusedError):
            await Connection().open(settings.model_copy(update={"nats_url": url}), "test")

    behind(servers, scene)


def test_who_closes_does_not_wait_for_a_server_that_no_longer_hears(servers: secured_anyhow.Secured) -> None:
    async def scene(relay: Relay, settings: Settings) -> None:
        client = await Connection().open(settings, "test", lasting=True)
        relay.passes.clear()
        await client.publish(f"{settings.subject_prefix}.events.x", b"[]")
        await client.close()
        assert client.is_closed
        relay.passes.set()

    behind(servers, scene)


def test_closing_ends_the_tries_to_connect_again(servers: secured_anyhow.Secured) -> None:
    async def scene(relay: Relay, settings: Settings) -> None:
        client = await Connection().open(settings, "test", lasting=True, reconnect_time_wait=0.1)
        relay.connections[0].transport.abort()
        while len(relay.connections) < 3:  # noqa: ASYNC110  # nobody announces it
            await asyncio.sleep(0.01)
        await client.close()
        tried = len(relay.connections)
        await asyncio.sleep(1)
        assert len(relay.connections) == tried

    behind(servers, scene, *range(2, 100), way="after hello")


def test_what_never_connected_can_be_closed() -> None:
    asyncio.run(Connection().close())


def test_a_connection_that_is_cut_is_closing_at_once_in_all_its_layers(servers: secured_anyhow.Secured) -> None:
    """One that only will be is an open one to who drops it in the meantime: a warning, and so a failure."""

    async def scene(relay: Relay, settings: Settings) -> None:
        client = await Connection().open(settings, "test")
        layers = client._transport
        client.abort()
        assert layers._io_writer.is_closing()
        assert layers._bare_io_writer.is_closing()
        await client.close()

    behind(servers, scene)

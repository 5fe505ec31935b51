"""The thread of a worker that sends to NATS: events when there are some, a heartbeat when it is due."""

import asyncio
import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable

from howl.config import Settings
from howl.connections.explain import reason
from howl.connections.nats import CONNECT_TIMEOUT, TROUBLE, Connection
from howl.worker.events.delivery import EventDelivery

logger = logging.getLogger(__name__)

#: Seconds that NATS has, when the worker leaves, to take the last events, and again to take its goodbye.
GOODBYE_TIMEOUT = 2.0
#: Seconds in which events are gathered for one message.
PACE = 0.1
#: Seconds between two tries of a NATS that is away or slow to answer, and between two warnings of one kind.
RETRY, COMPLAIN = (0.5, 1.5), 30.0
#: Seconds between two pings of NATS; after three without an answer the connection is made anew.
PING = 8


class EventPublisher(threading.Thread):
    """The connection to NATS, in a thread and a loop of its own: the worker's never waits for NATS."""

    def __init__(self, settings: Settings, name: str, courier: EventDelivery, event: Callable[[str], bytes]) -> None:
        super().__init__(name="howl-beacon", daemon=True)
        self.settings = settings
        self.client_name = name
        self.courier = courier
        #: Makes an event of a given kind, as of now.
        self.event = event
        self.loop = asyncio.new_event_loop()
        #: Set when there is something to do: events wait, NATS is back, the worker leaves.
        self.news = asyncio.Event()
        self.leaving = asyncio.Event()
        #: Set when a heartbeat is due before its time.
        self.due = asyncio.Event()
        #: Monotonic seconds before which no heartbeat is sent, no trouble is logged, and no dropped event is counted.
        self.next_beat = self.next_complaint = self.next_count = 0.0
        courier.buffer.filled = self._wake

    def run(self) -> None:
        try:
            self.loop.run_until_complete(self._announce())
        finally:
            self.loop.close()

    def beat(self) -> None:
        """Send a heartbeat now; from any thread."""
        self.next_beat = 0.0
        with contextlib.suppress(RuntimeError):  # it has left, and sends no more heartbeats
            self.loop.call_soon_threadsafe(self.due.set)

    def stop(self) -> None:
        """Send what is left and a goodbye; wait for it a few seconds at most."""
        with contextlib.suppress(RuntimeError):  # it has ended, and its loop is closed
            self.loop.call_soon_threadsafe(self._leave)
        self.join(CONNECT_TIMEOUT + 3 * GOODBYE_TIMEOUT)

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # what comes after the goodbye is not sent
            self.loop.call_soon_threadsafe(self.news.set)

    def _leave(self) -> None:
        self.leaving.set()
        self.news.set()

    # --- in the loop ------------------------------------------------------------------------------------------------

    async def _announce(self) -> None:
        """Run from the first connection to the goodbye; replace a client that gives up, as after a refused login."""
        self.courier.say(self.event("worker-online"))
        self.next_beat = time.monotonic() + self.settings.heartbeat_interval
        while not self.leaving.is_set():
            client = await self._connect()
            if client is None:
                return
            async with asyncio.TaskGroup() as group:
                heart = group.create_task(self._beat(client))
                while not (self.leaving.is_set() or client.is_closed):
                    await self._talk(client)
                    await self._gather(client)
                heart.cancel()
            if self.leaving.is_set():
                await self._say_goodbye(client)
            await client.close()

    async def _connect(self) -> Connection | None:
        """Try to connect until NATS answers or the worker leaves."""
        while not self.leaving.is_set():
            try:
                return await Connection().open(
                    self.settings, self.client_name, lasting=True, ping_interval=PING,
                    error_cb=self._complain, reconnected_cb=self._be_seen_again,
                )  # fmt: skip
            except TROUBLE as error:
                await self._complain(error)
                await _within(random.uniform(1, 5), self.leaving)  # noqa: S311
        return None

    async def _beat(self, client: Connection) -> None:
        """Send heartbeats in time, however long NATS takes to answer; while it is away, keep none for later."""
        while True:
            await _within(self.next_beat - time.monotonic(), self.due)
            self.due.clear()
            self.next_beat = time.monotonic() + self.settings.heartbeat_interval
            if client.is_connected:
                try:
                    await self.courier.mention(client, self.event("worker-heartbeat"))
                except TROUBLE as error:
                    await self._complain(error)

    async def _talk(self, client: Connection) -> None:
        """Send all that waits; while NATS is away, send nothing."""
        try:
            while client.is_connected and await self.courier.deliver(client):
                pass
        except TROUBLE as error:
            await self._complain(error)
        self._count_what_was_dropped()

    async def _gather(self, client: Connection) -> None:
        """Wait until there is something to do, then a moment for what comes with it."""
        all_told = client.is_connected and not self.courier.under_way
        retry = random.uniform(*RETRY)  # noqa: S311
        if await _within(self.settings.heartbeat_interval if all_told else retry, self.news):
            await _within(PACE, self.leaving)
        self.news.clear()

    async def _say_goodbye(self, client: Connection) -> None:
        """Send the last events, then that the worker has left; NATS has a moment to come back for each."""
        await self._tell_the_rest(client)
        self.courier.say(self.event("worker-offline"))
        await self._tell_the_rest(client)
        self.next_count = 0.0
        self._count_what_was_dropped()

    async def _tell_the_rest(self, client: Connection) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_TIMEOUT):
                while self.courier.pending and not (client.is_closed or self.courier.unheard):
                    await self._talk(client)
                    await asyncio.sleep(PACE if self.courier.under_way else 0)

    async def _be_seen_again(self) -> None:
        self.beat()
        self.news.set()

    async def _complain(self, error: Exception) -> None:
        if time.monotonic() >= self.next_complaint:
            self.next_complaint = time.monotonic() + COMPLAIN
            logger.warning("NATS cannot be used (%s): tasks go on, this worker may show as lost.", reason(error))

    def _count_what_was_dropped(self) -> None:
        if time.monotonic() >= self.next_count and (dropped := self.courier.buffer.dropped()):
            self.next_count = time.monotonic() + COMPLAIN
            logger.warning("%d events will not be seen: too many for a NATS that was away or slow, or too large; "
                           "tasks go on.", dropped)  # fmt: skip


async def _within(seconds: float, event: asyncio.Event) -> bool:
    """Wait for the event; return whether it came."""
    try:
        async with asyncio.timeout(seconds):  # asyncio.wait_for loses a cancellation that comes as the event does
            await event.wait()
    except TimeoutError:
        return False
    return True

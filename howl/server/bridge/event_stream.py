"""The stream of workers' events, a work queue that the bridge reads in batches; each is confirmed once recorded."""

import asyncio
import contextlib
import json
import time
from datetime import UTC, datetime
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig, DiscardPolicy, RetentionPolicy, StreamConfig
from nats.js.errors import BadRequestError, ServerError

from howl.connections.nats import events_stream
from howl.errors import EventsNotKept
from howl.server.bridge.events import Letter

#: Retention of unread messages, in seconds and in bytes; beyond either, the oldest are dropped.
KEPT_SECONDS, KEPT_BYTES = 86_400.0, 256 << 20
#: Maximum waiting messages of one credential, and maximum bytes of a message with its headers.
KEPT_EACH, LARGEST = 100_000, 600 << 10
#: Seconds within which a repeated message id counts as a duplicate: NATS keeps every id in memory for as long, however
#: long the id is. Later duplicates are recognized in the record by their id.
REPETITION = 0.1
#: Maximum messages and bytes of a batch, and seconds to wait for the first message and then for more.
BATCH, BATCH_BYTES, WAIT, LINGER = 2000, 4 << 20, 1.0, 0.03
#: Seconds that a pull request lasts, and after which its end counts as lost in transit.
ASKING, LOST = 5.0, 6.0
#: Seconds after which messages read but not confirmed, as by a killed bridge, are delivered again.
AGAIN = 10.0
#: Timeouts in seconds, for NATS to answer and for the stream to confirm that it keeps a message.
ANSWER_TIMEOUT, KEEP_TIMEOUT = 2, 5
#: The message that tests whether it does: one without events.
NO_EVENTS = b"[]"
#: The consumer's name, and the status codes with which NATS ends a pull request that delivered all it could.
CONSUMER, ENDS = "bridge", ("404", "408", "409")
#: NATS's error code for a stream that exists with another configuration (JSStreamNameExistErr).
OTHERWISE = 10058


class EventStream:
    """A reader of the durable consumer that all bridges share; NATS delivers each message to one of them.

    nats-py's own `fetch` waits its whole timeout for a batch to fill, which delays live display by a second.
    """

    def __init__(self, client: Client, subject_prefix: str) -> None:
        self.client = client
        self.prefix = subject_prefix
        self.name = events_stream(subject_prefix)
        self._inbox = ""
        self._arrived: list[Msg] = []
        self._news = asyncio.Event()
        #: Messages that the last pull request may still deliver, and the monotonic second by which it has ended.
        self._due, self._due_until = 0, 0.0
        self._refused: str | None = None

    async def open(self) -> None:
        """Create the stream and the consumer if they are missing; raises NATS's errors."""
        await self._make_stream()
        stream = self.client.jetstream()
        settings = ConsumerConfig(durable_name=CONSUMER, ack_wait=AGAIN, max_ack_pending=10 * BATCH)
        await stream.add_consumer(self.name, settings)
        self._inbox = self.client.new_inbox()
        await self.client.subscribe(self._inbox, cb=self._take)

    async def batch(self) -> list[Msg]:
        """Return messages in order of arrival; none after WAIT seconds without any. Raises EventsNotKept."""
        await self._ask()
        if not self._arrived:
            await self._wait()
        if len(self._arrived) < BATCH:  # a batch costs as much as ten messages
            await asyncio.sleep(LINGER)
        if self._refused is not None:
            raise EventsNotKept(f"NATS gives out no events: {self._refused}")
        taken, self._arrived = self._arrived[:BATCH], self._arrived[BATCH:]
        return taken

    async def confirm(self, messages: list[Msg]) -> None:
        """Confirm messages one by one: NATS accepts nothing else for a work queue."""
        for message in messages:
            await message.ack()

    def ask_again(self) -> None:
        """Forget the open pull request: NATS lost it when the connection was cut."""
        self._due = 0

    async def heard_until(self) -> datetime | None:
        """Return the current time if everything sent so far is recorded, by this bridge or another; else None.

        Raises if NATS does not answer. A flush would not: nats-py counts it as done when nobody reads any more.
        """
        now = datetime.now(UTC)
        info = await self.client.jetstream(timeout=ANSWER_TIMEOUT).consumer_info(self.name, CONSUMER)
        return None if info.num_pending or info.num_ack_pending else now

    async def require_keeping(self) -> None:
        """Delete the stream and raise EventsNotKept unless it keeps messages.

        After a failed write, as on a full disk, NATS answers and delivers, but keeps nothing until `open` creates the
        stream again, once there is room. What it still held has been read.
        """
        if await self._keeps():
            return
        # If NATS only stalled, it has lost nothing: it answers now, or this raises.
        await self.heard_until()
        if not await self._keeps():
            await self.client.jetstream().delete_stream(self.name)
            raise EventsNotKept(
                "NATS keeps no events, as when its disk is full: make room there. Until then workers' silence does not "
                "count; tasks go on"
            )

    async def _keeps(self) -> bool:
        stream = self.client.jetstream()
        try:
            await stream.publish(f"{self.prefix}.events.server", NO_EVENTS, timeout=KEEP_TIMEOUT)
        except TimeoutError:
            return False
        return True

    async def _make_stream(self) -> None:
        stream = self.client.jetstream()
        wanted = StreamConfig(
            name=self.name,
            subjects=[f"{self.prefix}.events.*"],
            retention=RetentionPolicy.WORK_QUEUE,
            max_age=KEPT_SECONDS,
            max_bytes=KEPT_BYTES,
            max_msgs_per_subject=KEPT_EACH,
            max_msg_size=LARGEST,
            discard=DiscardPolicy.OLD,
            duplicate_window=REPETITION,
        )
        try:
            await stream.add_stream(wanted)
        except BadRequestError as error:
            if error.err_code != OTHERWISE:
                raise
            await self._remake(wanted)

    async def _remake(self, wanted: StreamConfig) -> None:
        """Replace an older version's stream."""
        stream = self.client.jetstream()
        try:
            await stream.update_stream(wanted)
        except (BadRequestError, ServerError):
            # It also kept messages that had been read; NATS changes no stream into a work queue.
            await stream.delete_stream(self.name)
            await stream.add_stream(wanted)

    async def _ask(self) -> None:
        """Send a pull request unless one is open; what arrives meanwhile is the next batch."""
        now = time.monotonic()
        if self._due > 0 and now < self._due_until:
            return
        self._due, self._due_until = BATCH, now + LOST
        asking = {"batch": BATCH, "max_bytes": BATCH_BYTES, "expires": int(ASKING * 1e9)}
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self.name}.{CONSUMER}"
        await self.client.publish(subject, json.dumps(asking).encode(), reply=self._inbox)

    async def _wait(self) -> None:
        self._news.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), WAIT)

    async def _take(self, message: Msg) -> None:
        # A worker may send a status header like NATS's own, but only NATS's status messages lack a reply address.
        if message.reply.startswith("$JS.ACK."):
            self._arrived.append(message)
            self._due -= 1
        else:
            status: Any = (message.headers or {}).get("Status")
            self._due = 0
            self._refused = None if status in ENDS else f"it answers {status}"
        self._news.set()


def letter_of(message: Msg) -> Letter:
    """Build a letter from a message and NATS's metadata: `$JS.ACK.…` has its sequence and its time in nanoseconds."""
    told, headers = _told(message), message.headers or {}
    return Letter(
        message.subject, message.data, headers.get("Howl-Sent"), int(told[3]), int(told[1]),
        headers.get("Nats-Msg-Id", ""),
    )  # fmt: skip


def still_unread(message: Msg) -> int:
    """Return the number of messages still waiting when NATS delivered this one."""
    return int(_told(message)[4])


def _told(message: Msg) -> list[str]:
    """Return deliveries, stream sequence, consumer sequence, nanoseconds and the number of messages behind it."""
    tokens = message.reply.split(".")
    return tokens[4:9] if len(tokens) == 9 else tokens[6:11]  # with a JetStream domain

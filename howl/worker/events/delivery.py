"""Delivery of messages to NATS's stream of events: one after another, each repeated until the stream has it."""

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.errors import NoStreamResponseError

from howl.config import Settings
from howl.connections.nats import events_stream, receipt_fault, user_token
from howl.worker.events.buffer import EventBuffer

#: Largest message in bytes, and bytes of what NATS allows that are left for its headers.
LARGEST, HEADERS = 512 << 10, 1 << 10
#: Seconds to wait for the stream's answer, and seconds after which a message without any is sent again.
ANSWER_TIMEOUT, AGAIN = 3.0, 30.0


@dataclass
class Message:
    """A list of events that is sent at once."""

    body: bytes
    number: int
    #: The connection it was last sent over, and when (monotonic seconds).
    sent: tuple[int, int] | None = None
    sent_at: float = 0.0
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    refusal: NatsError | None = None


class EventDelivery:
    """The sender of events, one message at a time, so that all arrive in order and none is lost with a connection."""

    def __init__(self, buffer: EventBuffer, settings: Settings, life: str) -> None:
        self.buffer = buffer
        #: One subject for all of a credential's workers: NATS keeps each subject of a stream in memory.
        self.subject = f"{settings.subject_prefix}.events.{user_token(settings)}"
        self.stream = events_stream(settings.subject_prefix)
        #: Begins the ids of messages, by which the stream knows those it has.
        self.life = life
        #: Whether nobody keeps events: no `howl server` has ever run here.
        self.unheard = False
        self._count = 0
        self._outgoing: deque[Message] = deque()
        self._client: Client | None = None
        self._inbox = ""

    def say(self, document: bytes) -> None:
        """Queue an event to be sent next, before what waits in the buffer."""
        self._outgoing.append(self._message([document]))

    @property
    def pending(self) -> bool:
        """Whether anything is still to be sent."""
        return bool(self._outgoing or self.buffer)

    @property
    def under_way(self) -> bool:
        """Whether it is still unknown if the stream has what was last sent."""
        return bool(self._outgoing)

    async def deliver(self, client: Client) -> bool:
        """Deliver one message, and return whether more waits than it could hold.

        Raises NatsError, OSError or TimeoutError: the next call then finds out whether the stream has it.
        """
        more = self._fetch(min(LARGEST, client.max_payload - HEADERS))
        if self._outgoing:
            await self._bring(client, self._outgoing[0])
            self._outgoing.popleft()
        return more

    async def mention(self, client: Client, document: bytes) -> None:
        """Send an event now and once, whether or not it arrives."""
        async with asyncio.timeout(ANSWER_TIMEOUT):
            await client.publish(self.subject, b"[%b]" % document, headers=_clock())

    def _fetch(self, limit: int) -> bool:
        if self._outgoing:
            return True
        documents, more = self.buffer.take(limit)
        if documents:
            self._outgoing.append(self._message(documents))
        return more

    async def _bring(self, client: Client, message: Message) -> None:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            if client is not self._client:
                await self._listen(client)
            connection = (id(client), client.stats["reconnects"])
            if message.sent != connection or message.answered.is_set() or time.monotonic() > message.sent_at + AGAIN:
                message.sent, message.sent_at, message.refusal = connection, time.monotonic(), None
                message.answered.clear()
                await self._send(client, message)
            await message.answered.wait()
        if message.refusal is not None:
            raise message.refusal

    async def _listen(self, client: Client) -> None:
        self._inbox = client.new_inbox()
        await client.subscribe(f"{self._inbox}.*", cb=self._answered)
        self._client = client

    async def _send(self, client: Client, message: Message) -> None:
        headers = {"Nats-Msg-Id": f"{self.life}.{message.number}", **_clock()}
        reply = f"{self._inbox}.{message.number}"
        await client.publish(self.subject, message.body, reply, headers)

    async def _answered(self, answer: Msg) -> None:
        message = self._outgoing[0] if self._outgoing else None
        if message is not None and answer.subject.endswith(f".{message.number}"):
            message.refusal = receipt_fault(answer, self.stream)
            message.answered.set()
            self.unheard = isinstance(message.refusal, NoStreamResponseError)

    def _message(self, documents: list[bytes]) -> Message:
        self._count += 1
        return Message(b"[%b]" % b",".join(documents), self._count)


def _clock() -> dict[str, str]:
    """Return this machine's time as a header: beside NATS's own, it shows the server how wrong it is."""
    return {"Howl-Sent": f"{time.time():.6f}"}

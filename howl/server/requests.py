"""The stream of workers' questions to the server; it holds a few per credential, and a few are answered at a time."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from howl.config import Settings
from howl.connections.explain import reason
from howl.errors import HowlError
from howl.server_requests import ADDRESS, ANSWER_TO, LARGEST, LONGEST, MOST, stream_name

logger = logging.getLogger(__name__)

KINDS = ("leave", "upload")
#: Maximum bytes of waiting questions; questions of a kind answered at a time; deliveries of one if its server dies.
ROOM, AT_ONCE, DELIVERIES = 4 << 20, 32, 2
#: Seconds between two log lines about unanswered questions.
QUIET = 1.0
#: Seconds within which a repeated message id counts as a duplicate: NATS keeps every id in memory for as long.
REPETITION = 0.1


@dataclass(frozen=True)
class Question:
    """A question from a credential's worker."""

    user: str
    data: bytes
    #: Subject of its answers: below that credential's inbox, whatever the question says.
    address: str


class Questions:
    """Passes each question of a kind to `answer`, which sends its answers to the question's address."""

    def __init__(
        self, client: Client, settings: Settings, kind: str, answer: Callable[[Question], Awaitable[None]]
    ) -> None:
        self.client = client
        self.prefix, self.kind = settings.subject_prefix, kind
        self.answer = answer
        self._next_line = 0.0
        self._under_way: set[asyncio.Task[None]] = set()

    async def begin(self) -> None:
        """Start taking questions; raises NATS's errors."""
        await self.be_there()
        # Each question goes to one of several servers.
        await self.client.subscribe(self._given(self.kind), queue="server", cb=self._take)

    async def be_there(self) -> None:
        """Ensure that the stream and its consumers exist: they are in memory, so a restarted NATS has neither."""
        stream = self.client.jetstream()
        await stream.add_stream(
            StreamConfig(
                name=stream_name(self.prefix), subjects=[f"{self.prefix}.{kind}.*" for kind in KINDS],
                retention=RetentionPolicy.WORK_QUEUE, storage=StorageType.MEMORY, discard=DiscardPolicy.NEW,
                discard_new_per_subject=True, max_msgs_per_subject=MOST, max_msg_size=LARGEST, max_bytes=ROOM,
                max_age=LONGEST, duplicate_window=REPETITION,
            )
        )  # fmt: skip
        for kind in KINDS:
            reader = ConsumerConfig(
                durable_name=kind, filter_subject=f"{self.prefix}.{kind}.*", deliver_subject=self._given(kind),
                deliver_group="server", ack_policy=AckPolicy.EXPLICIT, ack_wait=LONGEST, max_ack_pending=AT_ONCE,
                max_deliver=DELIVERIES, mem_storage=True,
            )  # fmt: skip
            await stream.add_consumer(stream_name(self.prefix), reader)

    def _given(self, kind: str) -> str:
        return f"{self.prefix}.{kind}-given"

    async def _take(self, message: Msg) -> None:
        task = asyncio.create_task(self._treat(message))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _treat(self, message: Msg) -> None:
        """Answer one question; an error stops no other."""
        try:
            question = self._read(message)
            if question is not None:
                await self.answer(question)
        except (HowlError, NatsError, OSError, TimeoutError) as error:
            if time.monotonic() > self._next_line:
                self._next_line = time.monotonic() + QUIET
                logger.warning("A question (%s) is not answered: %s.", message.subject, reason(error))
        finally:
            with suppress(NatsError, OSError):  # it is then delivered again, and answered twice
                await message.ack()

    def _read(self, message: Msg) -> Question | None:
        user = message.subject.rpartition(".")[2]
        address = (message.headers or {}).get(ANSWER_TO, "")
        if not ADDRESS.fullmatch(address):
            logger.debug("A question of %s says not where its answer goes.", user)
            return None
        return Question(user, message.data, f"{self.prefix}.inbox.{user}.{address}")

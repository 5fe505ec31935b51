"""The bridge receives workers' events over NATS, records them and shows them live: presence, and progress of tasks.

Everything it writes may be written twice without harm: a killed bridge receives again what it had not confirmed, and
two bridges share the work.
"""

import asyncio
import logging
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from nats.aio.msg import Msg
from redis import RedisError
from sqlalchemy.exc import DataError, IntegrityError, OperationalError

from howl.config import Settings
from howl.connections.explain import reason
from howl.connections.nats import Connection
from howl.connections.postgres import session
from howl.connections.redis import redis_client
from howl.server.bridge import events, presence, task_events
from howl.server.bridge.event_stream import BATCH, WAIT, EventStream, letter_of, still_unread
from howl.server.bridge.events import Heard, Letter
from howl.server.bridge.rebroadcast import Rebroadcast
from howl.server.recorder.quota import Budget

logger = logging.getLogger(__name__)

#: Timeout in seconds for Redis, which is only used for live display here.
ANSWER_TIMEOUT = 2
#: Seconds until an unavailable Redis is tried again, and between two log lines about it.
TRY_AGAIN, SAY_AGAIN = 5.0, 60.0
#: Errors with which a working PostgreSQL refuses a message.
REFUSED = (DataError, IntegrityError, OperationalError)


class Bridge:
    """Moves workers' events to where they are kept and where they are shown."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.redis: Any = redis_client(settings, timeout=ANSWER_TIMEOUT)
        self.rebroadcast = Rebroadcast(self.redis, settings)
        self.complain = events.Complaints()
        self.budget = Budget(settings)
        self.stream: EventStream | None = None
        #: Monotonic second since which the connection to NATS has had no gap; None while there is none.
        self.hearing_since: float | None = None
        #: Monotonic second at which the stream last delivered or accepted a message.
        self.kept_at = 0.0
        #: Time at which NATS received the last recorded message.
        self.recorded_until = datetime.fromtimestamp(0, UTC)
        #: Monotonic second of the next check for silent workers.
        self.next_look = 0.0
        #: Monotonic seconds of the next try to show events, and of the next log line about an unavailable Redis.
        self.next_show, self.next_line = 0.0, 0.0

    async def run(self) -> None:
        """Run until cancelled. Raises NATS's errors or DatabaseUnavailable; running it again misses nothing."""
        client = await self._connect()
        try:
            stream = self.stream = EventStream(client, self.settings.subject_prefix)
            await stream.open()
            await self._require_keeping(stream)
            self.hearing_since = time.monotonic()
            while True:
                messages = await stream.batch()
                letters = [letter_of(message) for message in messages]
                await asyncio.to_thread(self.take, letters)
                await stream.confirm(messages)
                if letters:
                    self.kept_at = time.monotonic()
                    self.recorded_until = letters[-1].taken_at
                if _is_abreast(messages):
                    await self._look_for_the_silent(stream)
        finally:
            self.hearing_since = None
            await client.close()
            self.redis.close()

    def take(self, letters: list[Letter]) -> None:
        """Record the messages' events, then show them; repeating it changes no record. Raises DatabaseUnavailable."""
        if not letters:
            return
        heard = events.read(
            letters, self.complain, frozenset() if self.rebroadcast.is_due else task_events.SEEN_LIVE_ALONE
        )
        try:
            self._record(heard)
        except REFUSED:
            for letter in letters:  # one that PostgreSQL refuses must not hold up the others
                self._record_or_drop(letter)
        self._show(heard)

    def mark_lost(self, until: datetime) -> None:
        """Mark silent workers as lost. Silence counts only while NATS is connected, and only up to what is recorded."""
        since = self.hearing_since  # the event loop may change it meanwhile
        if since is None or time.monotonic() - since < self.settings.lost_after:
            return
        with session(self.settings.database()) as opened:
            lost = presence.mark_lost(opened, until - timedelta(seconds=self.settings.lost_after))
        for worker_id in lost:
            logger.warning("Worker %s has been silent for %g s: lost.", worker_id, self.settings.lost_after)

    def _record(self, heard: Heard) -> None:
        if heard.sightings or heard.happenings:
            with session(self.settings.database()) as opened:
                presence.record(opened, heard.sightings, self.budget)
                task_events.record(opened, heard.happenings, self.budget)

    def _record_or_drop(self, letter: Letter) -> None:
        try:
            self._record(events.read([letter], lambda *_: None))  # its faults have been logged
        except REFUSED as error:
            self.complain(letter.subject, f"PostgreSQL refuses it: {str(error.orig).splitlines()[0]}")

    def _show(self, heard: Heard) -> None:
        """Show events to those who watch; an unavailable Redis costs them this, and the record nothing."""
        if time.monotonic() < self.next_show:
            return
        try:
            task_events.show(self.redis, self.settings, heard.happenings)
            self.rebroadcast.pass_on(heard)
        except RedisError as error:
            self.next_show = time.monotonic() + TRY_AGAIN
            if time.monotonic() >= self.next_line:
                logger.warning("Progress and events cannot be shown: %s.", reason(error))
                self.next_line = time.monotonic() + SAY_AGAIN

    async def _look_for_the_silent(self, stream: EventStream) -> None:
        """Check for silent workers once in a while, unless NATS does not answer although its connection stands.

        Silence does not count either while messages wait: because PostgreSQL was slow, or this machine slept.
        """
        if time.monotonic() < self.next_look:
            return
        until = await stream.heard_until() or self.recorded_until
        if time.monotonic() - self.kept_at > self.settings.lost_after / 2:
            await self._require_keeping(stream)
        await asyncio.to_thread(self.mark_lost, until)
        self.next_look = time.monotonic() + WAIT

    async def _require_keeping(self, stream: EventStream) -> None:
        await stream.require_keeping()
        self.kept_at = time.monotonic()

    async def _connect(self) -> Connection:
        return await Connection().open(
            self.settings, "howl bridge", lasting=True,
            disconnected_cb=self._went_deaf, reconnected_cb=self._hears_again, error_cb=_complain,
        )  # fmt: skip

    async def _went_deaf(self) -> None:
        if self.hearing_since is None:
            return  # closed by this bridge itself
        self.hearing_since = None
        logger.warning("NATS is away: workers' silence does not count until it is back.")

    async def _hears_again(self) -> None:
        self.hearing_since = time.monotonic()
        if self.stream is not None:
            self.stream.ask_again()


def _is_abreast(messages: list[Msg]) -> bool:
    """Return whether all that workers sent has been read, but for the last instant."""
    return not messages or still_unread(messages[-1]) < BATCH


async def _complain(error: Exception) -> None:
    logger.warning("NATS: %s.", reason(error))

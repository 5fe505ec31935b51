"""The outcomes streams as the recorder reads them, one a Redis user: in batches, each confirmed when it is recorded."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, ResponseError
from redis.utils import str_if_bytes

from howl.broker.areas import DEFAULT_USER, Area, areas_of, user_of
from howl.config import Settings
from howl.errors import UnreadableOutcome
from howl.outcomes import ENTRY_FIELD, Entry, Outcome, decode
from howl.server.storable import NEST_LIMIT
from howl.tls import redis_options, takes_nothing_new

logger = logging.getLogger(__name__)

GROUP, CONSUMER = "recorder", "recorder"
#: Most entries of a batch, and milliseconds to wait for the first.
BATCH, WAIT = 500, 2000
#: Entries of the first batch, and bytes that a batch shall have, about: see `_next_count`.
FIRST_BATCH, BATCH_BYTES = 8, 8 << 20
#: Seconds between two looks for users who came since.
NEWCOMERS = 2.0
#: Seconds to rest when a worker has spoilt its stream.
RECOVERY = 0.1
#: Characters of a reason that is logged: it may quote what a worker wrote.
REASON_LIMIT = 200
#: Of what could not be read: entries kept, and bytes of each.
UNREADABLE_KEPT, UNREADABLE_BYTES = 1000, 65_536


@dataclass(frozen=True)
class Received:
    """An entry of the stream; its id is when Redis took it, by the server's clock."""

    entry_id: str
    entry: Entry
    #: The Redis user whose workers wrote it; None: somebody who may do everything.
    user: str | None = None
    #: Whether it has as many lists and objects as may at most be within each other.
    may_be_deep: bool = False
    #: Bytes of its document.
    size: int = 0

    @cached_property
    def at(self) -> datetime:
        milliseconds = int(self.entry_id.partition("-")[0])
        # A worker may give its entry an id of its own, of the year 500,000, and Redis's own ids go on from there.
        return datetime.fromtimestamp(min(milliseconds / 1000, time.time()), UTC)


@dataclass(frozen=True)
class Batch:
    """Entries in their stream's order, and the ids of all that were read, unreadable ones included."""

    stream: str
    received: list[Received]
    entry_ids: list[bytes]

    @cached_property
    def ended(self) -> set[str]:
        """Ids of the tasks that ended in this batch."""
        outcomes = [item.entry for item in self.received if isinstance(item.entry, Outcome)]
        return {outcome.task_id for outcome in outcomes if outcome.is_final}


class OutcomeStream:
    """A consumer group of one on each stream: what was read and not confirmed is read again."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        # Any: redis-py types an answer as everything any protocol version might give.
        self.redis: Any = Redis.from_url(
            settings.redis(),
            retry=Retry(NoBackoff(), 0),
            socket_timeout=30,
            socket_connect_timeout=5,
            **redis_options(settings),
        )
        #: By stream: the entry after which to read, ">" when all that an earlier life left is read.
        self._after: dict[str, str] = {}
        self._users: dict[str, str | None] = {}
        self._count = FIRST_BATCH
        #: By stream: the monotonic second until which it is not read.
        self._paused: dict[str, float] = {}

    def pause(self, stream: str, seconds: float) -> None:
        """Read nothing of this stream for a while: what is written to it waits, and other streams do not."""
        self._paused[stream] = time.monotonic() + seconds

    async def batches(self) -> AsyncIterator[Batch]:
        """First what an earlier life read and did not confirm, then what comes; one stream's entries at a time."""
        self._after.clear()
        look_again = 0.0
        while True:
            if time.monotonic() >= look_again:
                await self._find_streams()
                look_again = time.monotonic() + NEWCOMERS
            answer = await self._read_next()
            for stream, entries in answer:
                yield await self._read(stream, entries)
            largest = max((_largest(entries) for _, entries in answer), default=0)
            self._count = _next_count(largest, self._count) if answer else FIRST_BATCH

    async def _find_streams(self) -> None:
        """Those of users who came since; a stream that its user has spoilt is nobody's loss but his."""
        for area in await self._areas():
            stream = area.key("outcomes")
            if stream in self._after or (area.user != DEFAULT_USER and not await self.redis.exists(stream)):
                continue
            try:
                await self._make_group(stream)
            except ResponseError as error:
                if area.user == DEFAULT_USER or takes_nothing_new(error):
                    raise
                logger.warning("What workers of Redis user %s tell cannot be recorded: %s.", area.user, error)
                continue
            self._users[stream] = None if area.user in (DEFAULT_USER, user_of(self.settings)) else area.user
            self._after[stream] = "0"

    async def _areas(self) -> list[Area]:
        try:
            users = [str_if_bytes(name) for name in await self.redis.acl_users()]
        except NoPermissionError:  # a rented Redis: it has one user for everything
            users = []
        return areas_of(self.settings, users)

    async def _read_next(self) -> list[tuple[str, list[tuple[bytes, dict[bytes, bytes]]]]]:
        """Of each stream some entries, if it has any."""
        now = time.monotonic()
        self._paused = {stream: until for stream, until in self._paused.items() if until > now}
        asked = {stream: after for stream, after in self._after.items() if stream not in self._paused}
        soonest = min([until - now for until in self._paused.values()], default=WAIT / 1000)
        wait = max(1, min(WAIT, round(soonest * 1000))) if all(after == ">" for after in asked.values()) else None
        try:
            answer = await self.redis.xreadgroup(GROUP, CONSUMER, asked, count=self._count, block=wait)
        except ResponseError as error:
            if takes_nothing_new(error):
                raise
            logger.warning("A stream of outcomes was gone or spoilt (%s): reading the others.", error)
            self._after.clear()
            await self._find_streams()
            await asyncio.sleep(RECOVERY)
            return []
        found = {stream.decode(): entries for stream, entries in answer or []}
        for stream, after in asked.items():
            if after != ">":
                left = found.get(stream)
                self._after[stream] = left[-1][0].decode() if left else ">"
        return [(stream, entries) for stream, entries in found.items() if entries]

    async def confirm(self, batch: Batch) -> None:
        """Forget a recorded batch, and that its ended tasks are in flight, at one instant."""
        if not batch.entry_ids:
            return
        async with self.redis.pipeline(transaction=True) as together:
            together.xack(batch.stream, GROUP, *batch.entry_ids)
            together.xdel(batch.stream, *batch.entry_ids)
            if batch.ended:
                together.hdel(self.settings.key("inflight"), *batch.ended)
            await self._execute(together, batch.stream)

    async def set_aside(self, stream: str, entry_id: bytes | str, document: bytes, reason: str) -> None:
        """Take what cannot be read or recorded out of its stream, keep it for a person to look at, say so in a line."""
        name = entry_id.decode() if isinstance(entry_id, bytes) else entry_id
        unreadable = self.settings.key("unreadable")
        async with self.redis.pipeline(transaction=True) as together:
            together.lpush(unreadable, document[:UNREADABLE_BYTES])
            together.ltrim(unreadable, 0, UNREADABLE_KEPT - 1)
            together.xack(stream, GROUP, entry_id)
            together.xdel(stream, entry_id)
            await self._execute(together, stream)
        # Cut first: what a worker wrote may have megabytes.
        logger.error("Outcome %s set aside in %s: %s.", name, unreadable, " ".join(reason[:REASON_LIMIT].split()))

    async def keep(self, document: bytes) -> None:
        """Keep what is not recorded for a person to look at."""
        async with self.redis.pipeline(transaction=True) as together:
            together.lpush(self.settings.key("unreadable"), document[:UNREADABLE_BYTES])
            together.ltrim(self.settings.key("unreadable"), 0, UNREADABLE_KEPT - 1)
            await together.execute()

    async def document(self, stream: str, entry_id: str) -> bytes:
        """An entry as it was written: what is nested too deeply to be recorded cannot be written again either."""
        found = await self.redis.xrange(stream, entry_id, entry_id)
        return next(iter(found[0][1].values()), b"") if found else b""

    async def _execute(self, together: Any, stream: str) -> None:
        """A stream that its user has spoilt meanwhile is no reason to stop reading the others."""
        try:
            await together.execute()
        except ResponseError as error:
            # What was not confirmed is read again, but only by a recorder that starts again.
            if self._users.get(stream) is None or takes_nothing_new(error):
                raise
            logger.warning("Stream %s was spoilt while it was read: %s.", stream, error)

    async def close(self) -> None:
        await self.redis.aclose()

    async def _make_group(self, stream: str) -> None:
        try:
            await self.redis.xgroup_create(stream, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):  # it exists already
                raise

    async def _read(self, stream: str, entries: list[tuple[bytes, dict[bytes, bytes]]]) -> Batch:
        received = []
        for entry_id, fields in entries:
            try:
                entry = self._parse(fields or {})
                document = fields[ENTRY_FIELD]
                deep = _may_be_deep(document)
                received.append(Received(entry_id.decode(), entry, self._users[stream], deep, len(document)))
            except UnreadableOutcome as error:
                document = next(iter((fields or {}).values()), b"")
                await self.set_aside(stream, entry_id, document, error.message)
        return Batch(stream, received, [entry_id for entry_id, _ in entries])

    def _parse(self, fields: dict[bytes, bytes]) -> Entry:
        if ENTRY_FIELD not in fields:
            raise UnreadableOutcome("it has no field named outcome")
        document = fields[ENTRY_FIELD]
        # A worker holds itself to the limit; twice of it leaves room for a worker set a little differently.
        if len(document) > 2 * self.settings.outcome_limit:
            raise UnreadableOutcome(f"it has {len(document):,} bytes")
        return decode(_json(document))


def _largest(entries: list[tuple[bytes, dict[bytes, bytes]]]) -> int:
    return max((sum(map(len, (fields or {}).values())) for _, fields in entries), default=0)


def _next_count(largest: int, count: int) -> int:
    """Twice as many, but no more than would fit if all were as large as the largest.

    Redis cannot be asked for so many bytes, and 500 outcomes of a megabyte are more than this process may take.
    """
    return max(1, min(2 * count, BATCH, BATCH_BYTES // max(largest, 1)))


def _may_be_deep(document: bytes) -> bool:
    """Cheaper than a walk through its values, which is needed only then."""
    return document.count(b"[") + document.count(b"{") >= NEST_LIMIT // 2


def _json(document: bytes) -> Any:
    try:
        return json.loads(document)
    except RecursionError:
        raise UnreadableOutcome("it is nested too deeply") from None
    except ValueError as error:  # UnicodeDecodeError is one
        raise UnreadableOutcome(f"it is not JSON ({error})") from None

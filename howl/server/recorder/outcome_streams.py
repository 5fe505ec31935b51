"""Read the outcomes streams, one per Redis user, in batches; each batch is confirmed once it is recorded.

Their content is untrusted. A script checks the size of each entry before passing it on (howl/broker/collect.lua), and
the memory that an entry would take is estimated before it is parsed.
"""

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, OutOfMemoryError, ResponseError
from redis.utils import str_if_bytes

from howl.bounded_json import WORST, parsed_size
from howl.broker.namespaces import DEFAULT_USER, Namespace, namespaces_of, user_of
from howl.broker.scripts import COLLECT, CONFIRM
from howl.config import Settings
from howl.connections.explain import takes_nothing_new
from howl.connections.redis import ANSWER_TIMEOUT, CONNECT_TIMEOUT
from howl.connections.tls import redis_options
from howl.doctor.failing_parts import RECORDER
from howl.errors import OutcomeRefused, UnreadableOutcome
from howl.outcomes import ENTRY_FIELD, Entry, Outcome, decode, encode, failure
from howl.server.storable import NEST_LIMIT

logger = logging.getLogger(__name__)

GROUP = CONSUMER = RECORDER
#: Maximum entries of one stream per read; bytes after which reading stops, of one stream and of all streams together.
BATCH, STREAM_BYTES, ALL_BYTES = 500, 1 << 20, 4 << 20
#: Bytes of memory that a batch may take once parsed, unless it is a single entry.
PARSED_BYTES = 24 << 20
#: Seconds between two polls. While there is work, what arrives in between is recorded in one transaction, which costs
#: as much as recording one row. While there is none, the pause grows up to IDLE.
PACE, IDLE = 0.03, 0.1
#: Maximum deliveries of an entry. If no process survived any of them, the entry is at fault.
ATTEMPTS = 3
#: Seconds between two polls for new users, and between two log lines about one user's stream.
NEWCOMERS, SILENCE = 2.0, 10.0
#: Maximum characters of a logged reason, which may quote what a worker wrote.
REASON_LIMIT = 200
#: Maximum log lines about entries that are set aside together.
LINES = 20
#: Unreadable entries: how many are kept, and bytes of each; and bytes that are examined of an entry that is too large.
UNREADABLE_KEPT, UNREADABLE_BYTES, BEGINNING = 1000, 65_536, 512
#: The beginning of an outcome written by howl.outcomes.encode, which names the task that ended.
ENDED = re.compile(
    rb'\{"kind": "outcome", "task_id": "([\w.:-]{1,255})", "state": "(?:SUCCESS|FAILURE|REVOKED|DEAD)", '
    rb'"at": "[\dT:.+-]{1,40}", "attempt": (\d{1,9})[,}]'
)


class Collected(NamedTuple):
    """An entry as returned by the script."""

    entry_id: bytes
    #: Bytes of all its fields. If that is more than may be read, `document` holds only the beginning.
    size: int
    #: Number of deliveries, including this one; 0: the entry no longer exists.
    times: int
    document: bytes
    #: Bytes of memory that it may take once parsed.
    needed: int


class Refused(NamedTuple):
    """An entry that is not recorded, why, and what replaces it."""

    entry_id: bytes
    document: bytes
    reason: str
    end: Outcome | None = None


@dataclass(frozen=True)
class Received:
    """An entry of the stream; its id is when Redis received it, by the server's clock."""

    entry_id: str
    entry: Entry
    #: The Redis user whose workers wrote it; None: a user with all rights.
    user: str | None = None
    #: Whether it has enough lists and objects to possibly exceed the nesting limit.
    may_be_deep: bool = False
    #: Bytes of its document.
    size: int = 0

    @cached_property
    def at(self) -> datetime:
        milliseconds = int(self.entry_id.partition("-")[0])
        # A worker may choose its entry's id, say in the year 500,000, and Redis's own ids continue from there.
        return datetime.fromtimestamp(min(milliseconds / 1000, time.time()), UTC)


@dataclass(frozen=True)
class Batch:
    """Entries in stream order, and the ids of all entries that were read, including unreadable ones."""

    stream: str
    received: list[Received]
    entry_ids: list[bytes]

    @cached_property
    def ended(self) -> set[str]:
        """Ids of tasks that ended in this batch."""
        outcomes = [item.entry for item in self.received if isinstance(item.entry, Outcome)]
        return {outcome.task_id for outcome in outcomes if outcome.is_final}


class OutcomeStream:
    """The only consumer of a consumer group on each stream: entries read but not confirmed are read again."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        # Any: redis-py types an answer as everything that any protocol version might return.
        self.redis: Any = Redis.from_url(
            settings.redis(),
            retry=Retry(NoBackoff(), 0),
            socket_timeout=ANSWER_TIMEOUT,
            socket_connect_timeout=CONNECT_TIMEOUT,
            **redis_options(settings),
        )
        #: By stream, in reading order: the entry after which to read; ">" once all unconfirmed entries are read.
        self._after: dict[str, str] = {}
        #: By stream: the last entry that this process received of those an earlier one left unconfirmed, or "all".
        self._given: dict[str, str] = {}
        self._areas: dict[str, Namespace] = {}
        self._silent_until: dict[str, float] = {}
        #: Limits in bytes. An entry: twice the workers' own limit, for a worker set slightly differently. Parsed: the
        #: most that any document within the workers' limit may take.
        self._entry_limit, self._parsed_limit = 2 * settings.outcome_limit, (WORST + 1) * settings.outcome_limit
        #: By stream: monotonic second until which it is not read.
        self._paused: dict[str, float] = {}
        #: By stream: entries already read for later batches; the stream is not read again before these are used.
        self._left: dict[str, list[Collected]] = {}
        #: Set once Redis has answered the first read.
        self.asked = asyncio.Event()

    def pause(self, stream: str, seconds: float) -> None:
        """Stop reading this stream for so many seconds: its entries wait, other streams do not."""
        self._paused[stream] = time.monotonic() + seconds

    async def batches(self) -> AsyncIterator[Batch]:
        """Yield a batch per stream in rotation: first what an earlier process left unconfirmed, then new entries.

        The smallest stream comes first: one user's outcomes may take a second to parse, and all others would wait.
        """
        self._after.clear()
        self._left.clear()
        look_again, pause = 0.0, PACE
        while True:
            if time.monotonic() >= look_again:
                await self._find_streams()
                look_again = time.monotonic() + NEWCOMERS
            was_new = all(self._after[stream] == ">" for stream in self._unpaused())
            if sum(map(_size, self._left.values())) < ALL_BYTES:
                self._left.update(await self._collect())
                self.asked.set()
            ready = sorted(self._left.keys() & {*self._unpaused()}, key=lambda stream: _size(self._left[stream]))
            for stream in ready:
                yield await self._next_batch(stream, self._left[stream])
                if not self._left[stream]:
                    del self._left[stream]
            if ready:
                pause = PACE
            if was_new and not self._left:
                await asyncio.sleep(pause)
                pause = min(1.2 * pause, IDLE)
            elif not ready:
                await asyncio.sleep(PACE)

    async def _find_streams(self) -> None:
        """Add the streams of new users."""
        for namespace in await self._all_areas():
            stream = namespace.key("outcomes")
            self._areas[stream] = namespace
            self._after.setdefault(stream, "0")

    async def _all_areas(self) -> list[Namespace]:
        try:
            users = [str_if_bytes(name) for name in await self.redis.acl_users()]
        except NoPermissionError:  # a hosted Redis, with one user for everything
            users = []
        return namespaces_of(self.settings, users)

    def _unpaused(self) -> list[str]:
        now = time.monotonic()
        self._paused = {stream: until for stream, until in self._paused.items() if until > now}
        return [stream for stream in self._after if stream not in self._paused]

    async def _collect(self) -> list[tuple[str, list[Collected]]]:
        """Return some entries of each stream that has any; streams not reached are read first next time."""
        streams = [stream for stream in self._unpaused() if stream not in self._left]
        if not streams:
            return []
        words: list[Any] = [GROUP, CONSUMER, BATCH, STREAM_BYTES, ALL_BYTES, self._entry_limit, BEGINNING]
        for stream in streams:
            given = self._given.get(stream, "-")
            words += [self._after[stream], given, "server" if self._user(stream) is None else "worker"]
        looked_at, *told = await COLLECT.run_for(self.redis, streams, words)
        collected = {stream: self._entries(stream, news) for stream, news in _named(streams, told)}
        for stream in streams[:looked_at]:
            self._move_on(stream, collected.get(stream, []))
        others = self._after.keys() - streams
        order = (*streams[looked_at:], *others, *streams[:looked_at])
        self._after = {stream: self._after[stream] for stream in order}
        return [(stream, entries) for stream, entries in collected.items() if entries]

    def _entries(self, stream: str, told: list[Any]) -> list[Collected]:
        kind, *values = told
        if kind == b"entries":
            parts = iter(values)
            return [
                Collected(entry_id, size, times, document, parsed_size(document))
                for entry_id, size, times, document in zip(parts, parts, parts, parts, strict=True)
            ]
        if time.monotonic() >= self._silent_until.get(stream, 0.0):
            self._silent_until[stream] = time.monotonic() + SILENCE
            why = str_if_bytes(values[0])[:REASON_LIMIT]
            why = f"it is of the type {why}" if kind == b"wrong" else why
            who = self._user(stream)
            end = ": removed" if kind == b"wrong" and who else ""
            logger.error("Stream %s of Redis user %s cannot be read: %s%s.", stream, who or DEFAULT_USER, why, end)
        return []

    def _move_on(self, stream: str, entries: list[Collected]) -> None:
        if self._after[stream] == ">":
            return
        self._after[stream] = entries[-1].entry_id.decode() if entries else ">"
        if self._given.get(stream) != "all":
            self._given[stream] = entries[-1].entry_id.decode() if entries else "all"

    def _user(self, stream: str) -> str | None:
        """Return the stream's Redis user; None for one with all rights."""
        user = self._areas[stream].user
        return None if user in (DEFAULT_USER, user_of(self.settings)) else user

    async def confirm(self, batch: Batch) -> None:
        """Remove a recorded batch, and the in-flight marks of its ended tasks, atomically."""
        if not batch.entry_ids:
            return
        keys = [batch.stream, self.settings.key("inflight")]
        words = [GROUP, len(batch.entry_ids), *batch.entry_ids, *batch.ended]
        await self._do(CONFIRM.run_for(self.redis, keys, words), batch.stream)

    async def set_aside(self, stream: str, entry_id: str, document: bytes, reason: str) -> None:
        """Remove an entry that cannot be recorded from its stream, keep it for inspection, and log it."""
        await self._set_aside(stream, [Refused(entry_id.encode(), document, reason)])

    async def _set_aside(self, stream: str, refused: list[Refused]) -> None:
        """Set all of these aside at once: a worker can write unreadable entries faster than they go one by one."""
        if not refused:
            return
        unreadable, entry_ids = self.settings.key("unreadable"), [each.entry_id for each in refused]
        async with self.redis.pipeline(transaction=True) as together:
            self._put_away(together, [each.document for each in refused])
            for end in filter(None, (each.end for each in refused)):
                together.xadd(stream, {ENTRY_FIELD: encode(end)})
            together.xack(stream, GROUP, *entry_ids)
            together.xdel(stream, *entry_ids)
            where = f"set aside in {unreadable}" if await self._has_room(together, stream) else "not kept"
        for each in refused[:LINES]:
            # Cut first: what a worker wrote may be megabytes long.
            why = " ".join(each.reason[:REASON_LIMIT].split())
            logger.error("Outcome %s of %s %s: %s.", each.entry_id.decode(), stream, where, why)
        if len(refused) > LINES:
            logger.error("%d more outcomes of %s %s.", len(refused) - LINES, stream, where)

    async def _has_room(self, together: Any, stream: str) -> bool:
        """Execute; return False if Redis is full, which must not stop the recorder: it frees memory."""
        try:
            await self._do(together.execute(), stream)
        except ResponseError as error:
            if not takes_nothing_new(error):
                raise
            return False
        return True

    async def keep(self, document: bytes) -> None:
        """Keep a document that is not recorded for inspection, unless Redis is full."""
        async with self.redis.pipeline(transaction=True) as together:
            self._put_away(together, [document])
            with suppress(OutOfMemoryError):  # it is logged anyway
                await together.execute()

    def _put_away(self, together: Any, documents: list[bytes]) -> None:
        unreadable = self.settings.key("unreadable")
        together.lpush(unreadable, *(document[:UNREADABLE_BYTES] for document in documents))
        together.ltrim(unreadable, 0, UNREADABLE_KEPT - 1)

    async def document(self, stream: str, entry_id: str) -> bytes:
        """Return an entry's document as written: one nested too deeply to record cannot be encoded again either."""
        found = await self.redis.xrange(stream, entry_id, entry_id)
        return next(iter(found[0][1].values()), b"") if found else b""

    async def _do(self, command: Awaitable[Any], stream: str) -> None:
        """Await the command; a stream spoilt by its user must not stop the reading of others."""
        try:
            await command
        except ResponseError as error:
            # Unconfirmed entries are read again, but only after the recorder restarts.
            if self._user(stream) is None or takes_nothing_new(error):
                raise
            logger.warning("Stream %s was spoilt while it was read: %s.", stream, error)

    async def close(self) -> None:
        await self.redis.aclose()

    async def _next_batch(self, stream: str, entries: list[Collected]) -> Batch:
        """Remove from the front of `entries` as many as fit into memory together, at least one, as a batch."""
        received: list[Received] = []
        refused: list[Refused] = []
        entry_ids: list[bytes] = []
        size, user = 0, self._user(stream)
        while entries and (not entry_ids or size + entries[0].needed <= PARSED_BYTES):
            given = entries.pop(0)
            size += given.needed
            entry_ids.append(given.entry_id)
            entry = self._read(given)
            if isinstance(entry, Refused):
                refused.append(entry)
            elif entry is not None:
                deep = _may_be_deep(given.document)
                told = (given.entry_id.decode(), entry, user, deep, len(given.document))
                received.append(Received(*told))
        await self._set_aside(stream, refused)
        return Batch(stream, received, entry_ids)

    def _read(self, given: Collected) -> Entry | Refused | None:
        """Decode an entry, if it still exists. A task whose outcome is too large to read has ended all the same."""
        if given.times == 0:
            return None
        if why := self._refusal(given):
            return Refused(given.entry_id, given.document, why, _end_of(given.document, why))
        try:
            return decode(_json(given.document))
        except UnreadableOutcome as error:
            return Refused(given.entry_id, given.document, error.message)

    def _refusal(self, given: Collected) -> str | None:
        """Return why the entry must not be parsed, or None."""
        if given.size > self._entry_limit:
            return f"it has {given.size:,} bytes, and {self._entry_limit:,} are read"
        if given.needed > self._parsed_limit:
            return f"it might take {given.needed:,} bytes of memory, and {self._parsed_limit:,} are allowed"
        if given.times > ATTEMPTS:
            return f"{ATTEMPTS} times this server ended before it was recorded"
        return None


def _size(entries: list[Collected]) -> int:
    return sum(len(entry.document) for entry in entries)


def _named(streams: list[str], told: list[Any]) -> Iterator[tuple[str, list[Any]]]:
    """Yield the script's answer for each stream, with the stream's name."""
    for index, *rest in told:
        yield streams[index - 1], rest


def _end_of(beginning: bytes, why: str) -> Outcome | None:
    """Return a failure of the task whose outcome begins like this, if it reports an end."""
    found = ENDED.match(beginning)
    if found is None:
        return None
    lost = OutcomeRefused(f"The task ended, but how is not recorded: {why}. Return less, or write a file.")
    return replace(failure(found[1].decode(), "FAILURE", lost), attempt=int(found[2]))


def _may_be_deep(document: bytes) -> bool:
    """Return whether the values must be walked for depth, which costs more."""
    return document.count(b"[") + document.count(b"{") >= NEST_LIMIT // 2


def _json(document: bytes) -> Any:
    try:
        return json.loads(document)
    except RecursionError:
        raise UnreadableOutcome("it is nested too deeply") from None
    except ValueError as error:  # UnicodeDecodeError is one
        raise UnreadableOutcome(f"it is not JSON ({error})") from None

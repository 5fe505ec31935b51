"""The outcomes streams as the recorder reads them, one a Redis user: in batches, each confirmed when it is recorded.

What is in them is a stranger's. A script looks at each entry's size before it is passed on (howl/broker/collect.lua),
and what it would take in memory is estimated before it is parsed.
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
#: Most entries of a batch; bytes of one stream after which no more of it is read, and of all after which no other is.
BATCH, STREAM_BYTES, ALL_BYTES = 500, 1 << 20, 4 << 20
#: Bytes of memory that a batch may take when it is parsed, unless it is a single entry.
PARSED_BYTES = 24 << 20
#: Seconds between two looks: while there is work, what comes meanwhile is recorded in one transaction, which costs as
#: much as one row's. Without any they become longer, up to IDLE.
PACE, IDLE = 0.03, 0.1
#: Times that an entry is given out; if no process outlived any of them, it is the entry's fault.
ATTEMPTS = 3
#: Seconds between two looks for users who came since, and between two lines about one user's stream.
NEWCOMERS, SILENCE = 2.0, 10.0
#: Characters of a reason that is logged: it may quote what a worker wrote.
REASON_LIMIT = 200
#: Most lines about what is set aside together.
LINES = 20
#: Of what could not be read: entries kept, and bytes of each; and bytes that are looked at of what is too large.
UNREADABLE_KEPT, UNREADABLE_BYTES, BEGINNING = 1000, 65_536, 512
#: How an outcome begins that howl.outcomes.encode wrote: it says which task ended.
ENDED = re.compile(
    rb'\{"kind": "outcome", "task_id": "([\w.:-]{1,255})", "state": "(?:SUCCESS|FAILURE|REVOKED|DEAD)", '
    rb'"at": "[\dT:.+-]{1,40}", "attempt": (\d{1,9})[,}]'
)


class Collected(NamedTuple):
    """An entry as the script passes it on."""

    entry_id: bytes
    #: Bytes of all its fields; `document` is but the beginning of what is larger than may be read.
    size: int
    #: Times it was given out, this one included; 0: it is not there any more.
    times: int
    document: bytes
    #: Bytes of memory that it may take when it is parsed.
    needed: int


class Refused(NamedTuple):
    """An entry that is not recorded, why, and what takes its place."""

    entry_id: bytes
    document: bytes
    reason: str
    end: Outcome | None = None


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
            socket_timeout=ANSWER_TIMEOUT,
            socket_connect_timeout=CONNECT_TIMEOUT,
            **redis_options(settings),
        )
        #: By stream, in the order in which they are read: the entry after which to read, ">" when all that was left
        #: unconfirmed is read.
        self._after: dict[str, str] = {}
        #: What this process was given of what an earlier one left: by stream the last entry, or "all".
        self._given: dict[str, str] = {}
        self._areas: dict[str, Namespace] = {}
        self._silent_until: dict[str, float] = {}
        #: Bytes: twice what workers hold themselves to leaves room for one set a little differently; parsed, what any
        #: document of theirs may take.
        self._entry_limit, self._parsed_limit = 2 * settings.outcome_limit, (WORST + 1) * settings.outcome_limit
        #: By stream: the monotonic second until which it is not read.
        self._paused: dict[str, float] = {}
        #: By stream: entries that were read for a later batch; nothing more is read of it before.
        self._left: dict[str, list[Collected]] = {}
        #: Set once Redis has answered what there is.
        self.asked = asyncio.Event()

    def pause(self, stream: str, seconds: float) -> None:
        """Read nothing of this stream for a while: what is written to it waits, and other streams do not."""
        self._paused[stream] = time.monotonic() + seconds

    async def batches(self) -> AsyncIterator[Batch]:
        """First what an earlier life read and did not confirm, then what comes; of each stream a batch, by turns.

        Whoever has least comes first: one user's outcomes may take a second to parse, and all others would wait.
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
        """Those of users who came since."""
        for namespace in await self._all_areas():
            stream = namespace.key("outcomes")
            self._areas[stream] = namespace
            self._after.setdefault(stream, "0")

    async def _all_areas(self) -> list[Namespace]:
        try:
            users = [str_if_bytes(name) for name in await self.redis.acl_users()]
        except NoPermissionError:  # a rented Redis: it has one user for everything
            users = []
        return namespaces_of(self.settings, users)

    def _unpaused(self) -> list[str]:
        now = time.monotonic()
        self._paused = {stream: until for stream, until in self._paused.items() if until > now}
        return [stream for stream in self._after if stream not in self._paused]

    async def _collect(self) -> list[tuple[str, list[Collected]]]:
        """Some entries of each stream that has any; whose turn did not come is first the next time."""
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
        """Whose workers write it; None: somebody who may do everything."""
        user = self._areas[stream].user
        return None if user in (DEFAULT_USER, user_of(self.settings)) else user

    async def confirm(self, batch: Batch) -> None:
        """Forget a recorded batch, and that its ended tasks are in flight, at one instant."""
        if not batch.entry_ids:
            return
        keys = [batch.stream, self.settings.key("inflight")]
        words = [GROUP, len(batch.entry_ids), *batch.entry_ids, *batch.ended]
        await self._do(CONFIRM.run_for(self.redis, keys, words), batch.stream)

    async def set_aside(self, stream: str, entry_id: str, document: bytes, reason: str) -> None:
        """Take what cannot be recorded out of its stream, keep it for a person to look at, say so in a line."""
        await self._set_aside(stream, [Refused(entry_id.encode(), document, reason)])

    async def _set_aside(self, stream: str, refused: list[Refused]) -> None:
        """All at once: a worker can write what cannot be read faster than it could be put away one by one."""
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
            # Cut first: what a worker wrote may have megabytes.
            why = " ".join(each.reason[:REASON_LIMIT].split())
            logger.error("Outcome %s of %s %s: %s.", each.entry_id.decode(), stream, where, why)
        if len(refused) > LINES:
            logger.error("%d more outcomes of %s %s.", len(refused) - LINES, stream, where)

    async def _has_room(self, together: Any, stream: str) -> bool:
        """A Redis that one user's flood has filled must not stop the recorder, which makes room."""
        try:
            await self._do(together.execute(), stream)
        except ResponseError as error:
            if not takes_nothing_new(error):
                raise
            return False
        return True

    async def keep(self, document: bytes) -> None:
        """Keep what is not recorded for a person to look at, unless Redis is full."""
        async with self.redis.pipeline(transaction=True) as together:
            self._put_away(together, [document])
            with suppress(OutOfMemoryError):  # a line in the log tells of it all the same
                await together.execute()

    def _put_away(self, together: Any, documents: list[bytes]) -> None:
        unreadable = self.settings.key("unreadable")
        together.lpush(unreadable, *(document[:UNREADABLE_BYTES] for document in documents))
        together.ltrim(unreadable, 0, UNREADABLE_KEPT - 1)

    async def document(self, stream: str, entry_id: str) -> bytes:
        """An entry as it was written: what is nested too deeply to be recorded cannot be written again either."""
        found = await self.redis.xrange(stream, entry_id, entry_id)
        return next(iter(found[0][1].values()), b"") if found else b""

    async def _do(self, command: Awaitable[Any], stream: str) -> None:
        """A stream that its user has spoilt meanwhile is no reason to stop reading the others."""
        try:
            await command
        except ResponseError as error:
            # What was not confirmed is read again, but only by a recorder that starts again.
            if self._user(stream) is None or takes_nothing_new(error):
                raise
            logger.warning("Stream %s was spoilt while it was read: %s.", stream, error)

    async def close(self) -> None:
        await self.redis.aclose()

    async def _next_batch(self, stream: str, entries: list[Collected]) -> Batch:
        """Of the first entries as many as fit into memory together, taken out of `entries`; at least one."""
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
        """What it tells, if it is still there. A task whose end is too large to be read has ended all the same."""
        if given.times == 0:
            return None
        if why := self._refusal(given):
            return Refused(given.entry_id, given.document, why, _end_of(given.document, why))
        try:
            return decode(_json(given.document))
        except UnreadableOutcome as error:
            return Refused(given.entry_id, given.document, error.message)

    def _refusal(self, given: Collected) -> str | None:
        """Why it is not even parsed, if it is not."""
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
    """What the script told of each stream, by the stream's name."""
    for index, *rest in told:
        yield streams[index - 1], rest


def _end_of(beginning: bytes, why: str) -> Outcome | None:
    """That the task ended whose outcome begins like this, if it tells of an end."""
    found = ENDED.match(beginning)
    if found is None:
        return None
    lost = OutcomeRefused(f"The task ended, but how is not recorded: {why}. Return less, or write a file.")
    return replace(failure(found[1].decode(), "FAILURE", lost), attempt=int(found[2]))


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

"""The outcomes stream as the recorder reads it: in batches, each confirmed when it is recorded."""

import json
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

from howl.config import Settings
from howl.errors import UnreadableOutcome
from howl.outcomes import ENTRY_FIELD, Entry, Outcome, decode

logger = logging.getLogger(__name__)

GROUP, CONSUMER = "recorder", "recorder"
#: Most entries of a batch, and milliseconds to wait for the first.
BATCH, WAIT = 500, 2000
#: Of what could not be read: entries kept, and bytes of each.
UNREADABLE_KEPT, UNREADABLE_BYTES = 1000, 65_536


@dataclass(frozen=True)
class Received:
    """An entry of the stream; its id is when Redis took it, by the server's clock."""

    entry_id: str
    entry: Entry

    @property
    def at(self) -> datetime:
        milliseconds = int(self.entry_id.partition("-")[0])
        return datetime.fromtimestamp(milliseconds / 1000, UTC)


@dataclass(frozen=True)
class Batch:
    """Entries in the stream's order, and the ids of all that were read, unreadable ones included."""

    received: list[Received]
    entry_ids: list[bytes]

    @property
    def ended(self) -> set[str]:
        """Ids of the tasks that ended in this batch."""
        outcomes = [item.entry for item in self.received if isinstance(item.entry, Outcome)]
        return {outcome.task_id for outcome in outcomes if outcome.is_final}


class OutcomeStream:
    """A consumer group of one: what was read and not confirmed is read again."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.key = settings.key("outcomes")
        # Any: redis-py types an answer as everything any protocol version might give.
        self.redis: Any = Redis.from_url(
            settings.redis(), retry=Retry(NoBackoff(), 0), socket_timeout=30, socket_connect_timeout=5
        )

    async def batches(self) -> AsyncIterator[Batch]:
        """First what an earlier life read and did not confirm, then what comes."""
        await self._make_group()
        after = "0"
        while True:
            answer = await self.redis.xreadgroup(GROUP, CONSUMER, {self.key: after}, count=BATCH, block=WAIT)
            entries = answer[0][1] if answer else []
            if not entries:
                after = ">"
                continue
            if after != ">":
                after = entries[-1][0].decode()
            yield await self._read(entries)

    async def confirm(self, batch: Batch) -> None:
        """Forget a recorded batch, and that its ended tasks are in flight, at one instant."""
        if not batch.entry_ids:
            return
        async with self.redis.pipeline(transaction=True) as together:
            together.xack(self.key, GROUP, *batch.entry_ids)
            together.xdel(self.key, *batch.entry_ids)
            if batch.ended:
                together.hdel(self.settings.key("inflight"), *batch.ended)
            await together.execute()

    async def set_aside(self, entry_id: bytes | str, document: bytes, reason: str) -> None:
        """Keep what cannot be read or recorded, for a person to look at, and say so in one line."""
        name = entry_id.decode() if isinstance(entry_id, bytes) else entry_id
        logger.error("Outcome %s set aside in %s: %s.", name, self.settings.key("unreadable"), reason)
        async with self.redis.pipeline(transaction=True) as together:
            together.lpush(self.settings.key("unreadable"), document[:UNREADABLE_BYTES])
            together.ltrim(self.settings.key("unreadable"), 0, UNREADABLE_KEPT - 1)
            await together.execute()

    async def close(self) -> None:
        await self.redis.aclose()

    async def _make_group(self) -> None:
        try:
            await self.redis.xgroup_create(self.key, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):  # it exists already
                raise

    async def _read(self, entries: list[tuple[bytes, dict[bytes, bytes]]]) -> Batch:
        received = []
        for entry_id, fields in entries:
            try:
                received.append(Received(entry_id.decode(), self._parse(fields or {})))
            except UnreadableOutcome as error:
                await self.set_aside(entry_id, next(iter((fields or {}).values()), b""), error.message)
        return Batch(received, [entry_id for entry_id, _ in entries])

    def _parse(self, fields: dict[bytes, bytes]) -> Entry:
        if ENTRY_FIELD not in fields:
            raise UnreadableOutcome("it has no field named outcome")
        document = fields[ENTRY_FIELD]
        # A worker holds itself to the limit; twice of it leaves room for a worker set a little differently.
        if len(document) > 2 * self.settings.outcome_limit:
            raise UnreadableOutcome(f"it has {len(document):,} bytes")
        return decode(_json(document))


def _json(document: bytes) -> Any:
    try:
        return json.loads(document)
    except RecursionError:
        raise UnreadableOutcome("it is nested too deeply") from None
    except ValueError as error:  # UnicodeDecodeError is one
        raise UnreadableOutcome(f"it is not JSON ({error})") from None

"""The bridge hears workers over NATS and keeps the workers table: who is there, who left, who fell silent."""

import asyncio
import json
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, DiscardPolicy, RetentionPolicy, StreamConfig
from pydantic import AwareDatetime, BaseModel, Field, ValidationError
from sqlalchemy import func, or_, text, update
from sqlalchemy.orm import Session

from howl.config import Settings
from howl.db import session
from howl.errors import EventsNotKept
from howl.models import Worker
from howl.server.storable import storable
from howl.tls import nats_options, reason

logger = logging.getLogger(__name__)

#: The stream keeps a day of events, within so many bytes.
KEPT_SECONDS, KEPT_BYTES = 86_400.0, 256 << 20
#: Most messages of a batch, and seconds to wait for the first.
BATCH, WAIT = 500, 1.0
#: Seconds within which a NATS that can be heard answers.
ANSWER_TIMEOUT = 2
#: Seconds within which a stream that keeps events says so.
KEEP_TIMEOUT = 5
#: What proves that it does: a message with no event in it.
NO_EVENTS = b"[]"
#: Characters of a reason that is logged: it may quote what a worker wrote.
REASON_LIMIT = 200


class Described(BaseModel):
    """What a worker says of itself; strict, because anybody with a worker's credential may write anything."""

    worker_id: str = Field(min_length=1, max_length=255)
    boot_id: str = Field(max_length=64)
    status: str = Field(pattern="^(active|draining|offline)$")
    manager_host: str | None = Field(None, max_length=255)
    hostname: str | None = Field(None, max_length=255)
    tags: list[str] = Field(default=[], max_length=100)
    queues: list[str] = Field(default=[], max_length=1000)
    origin: str = Field("local", max_length=64)
    concurrency: int | None = Field(None, ge=0, le=100_000)
    version: str | None = Field(None, max_length=64)
    run: dict[str, str] = Field(default={}, max_length=20)
    deadline_at: AwareDatetime | None = None


@dataclass(frozen=True)
class Sighting:
    """A worker's description and when NATS took it: the server's clock, the worker's may be wrong."""

    described: Described
    at: datetime

    def row(self) -> dict[str, Any]:
        row: dict[str, Any] = self.described.model_dump(mode="json")
        left = self.described.status == "offline"
        return row | {"last_heartbeat_at": self.at.isoformat(), "offline_at": self.at.isoformat() if left else None}


class Bridge:
    """A durable consumer of the workers' events."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        #: Monotonic second since which NATS is heard without a gap; None while it is not.
        self.hearing_since: float | None = None
        #: Monotonic second at which the stream last had or took a message.
        self.kept_at = 0.0
        #: Monotonic second of the next look for workers that fell silent.
        self.next_look = 0.0

    async def run(self) -> None:
        """Until cancelled; raises NATS's errors or DatabaseUnavailable, and misses nothing by being run again."""
        client = await self._connect()
        try:
            consumer = await self._subscribe(client.jetstream())
            await self._require_keeping(client.jetstream())
            self.hearing_since = time.monotonic()
            while True:
                messages = await _fetch(consumer)
                await asyncio.to_thread(self.record, [*self._sightings(messages)])
                for message in messages:
                    await message.ack()
                if messages:
                    self.kept_at = time.monotonic()
                if len(messages) < BATCH:  # nothing of what workers said is still unread
                    await self._look_for_the_silent(client)
        finally:
            self.hearing_since = None
            await client.close()

    def record(self, sightings: list[Sighting]) -> None:
        """Bring the table up to date in one transaction; repeating it, or an older life's word, changes nothing."""
        newest = {sighting.described.worker_id: sighting.row() for sighting in sightings}
        if newest:
            with session(self.settings.database()) as opened:
                _upsert(opened, [newest[worker_id] for worker_id in sorted(newest)])

    async def _look_for_the_silent(self, client: Client) -> None:
        """Once in a while; a NATS that does not answer is not heard, although its connection stands."""
        if time.monotonic() < self.next_look:
            return
        await client.flush(ANSWER_TIMEOUT)
        if time.monotonic() - self.kept_at > self.settings.lost_after / 2:
            await self._require_keeping(client.jetstream())
        await asyncio.to_thread(self.mark_lost)
        self.next_look = time.monotonic() + WAIT

    def mark_lost(self) -> None:
        """Silence counts only while NATS is heard; a row that never had a heartbeat stays as it was written."""
        since = self.hearing_since  # the loop may change it meanwhile
        if since is None or time.monotonic() - since < self.settings.lost_after:
            return
        silent = Worker.last_heartbeat_at < func.now() - timedelta(seconds=self.settings.lost_after)
        present = or_(Worker.status == "active", Worker.status == "draining")
        with session(self.settings.database()) as opened:
            lost = opened.scalars(
                update(Worker).where(present, silent).values(status="lost").returning(Worker.worker_id)
            ).all()
        for worker_id in lost:
            logger.warning("Worker %s has been silent for %g s: lost.", worker_id, self.settings.lost_after)

    async def _require_keeping(self, stream: JetStreamContext) -> None:
        """After a write failed, as on a full disk, NATS answers and delivers, but this stream keeps nothing until it is
        made anew, which `run` does as soon as there is room. What it still held is heartbeats and has been read.
        """
        prefix = self.settings.subject_prefix
        try:
            await stream.publish(f"{prefix}.events.server.none", NO_EVENTS, timeout=KEEP_TIMEOUT)
        except TimeoutError:
            await stream.delete_stream(f"{prefix}-events")
            raise EventsNotKept(
                "NATS keeps no events, as when its disk is full: make room there. Until then workers' silence does not "
                "count; tasks go on"
            ) from None
        self.kept_at = time.monotonic()

    async def _connect(self) -> Client:
        return await nats.connect(
            self.settings.nats(),
            name="howl bridge",
            connect_timeout=5,
            max_reconnect_attempts=-1,
            disconnected_cb=self._went_deaf,
            reconnected_cb=self._hears_again,
            error_cb=_complain,
            **nats_options(self.settings),
        )

    async def _went_deaf(self) -> None:
        if self.hearing_since is None:
            return  # our own closing
        self.hearing_since = None
        logger.warning("NATS is away: workers' silence does not count until it is back.")

    async def _hears_again(self) -> None:
        self.hearing_since = time.monotonic()

    async def _subscribe(self, stream: JetStreamContext) -> JetStreamContext.PullSubscription:
        prefix = self.settings.subject_prefix
        await stream.add_stream(
            StreamConfig(
                name=f"{prefix}-events",
                subjects=[f"{prefix}.events.>"],
                retention=RetentionPolicy.LIMITS,
                max_age=KEPT_SECONDS,
                max_bytes=KEPT_BYTES,
                discard=DiscardPolicy.OLD,
            )
        )
        return await stream.pull_subscribe(
            f"{prefix}.events.>", durable="bridge", config=ConsumerConfig(max_ack_pending=10 * BATCH)
        )

    def _sightings(self, messages: Iterable[Msg]) -> Iterable[Sighting]:
        for message in messages:
            try:
                yield from _read(message)
            except (ValueError, RecursionError) as error:  # pydantic's ValidationError and UnicodeDecodeError are ones
                # One line: a traceback of somebody else's garbage tells nothing.
                logger.error("Event on %.200s ignored: %s.", message.subject, _why(error))  # noqa: TRY400


async def _fetch(consumer: JetStreamContext.PullSubscription) -> list[Msg]:
    try:
        messages: list[Msg] = await consumer.fetch(BATCH, timeout=WAIT)
    except TimeoutError:
        return []
    return messages


def _read(message: Msg) -> Iterable[Sighting]:
    """Sightings in one message: an event or a list of them."""
    events = json.loads(message.data)
    for event in events if isinstance(events, list) else [events]:
        if not isinstance(event, dict):
            raise ValueError("an event is no JSON object")  # noqa: TRY004  # bad input, no bug
        if str(event.get("type")).startswith("worker-"):
            yield Sighting(Described.model_validate(storable(event.get("worker"))), message.metadata.timestamp)


def _why(error: Exception) -> str:
    if isinstance(error, ValidationError):
        problem = error.errors(include_url=False, include_input=False)[0]
        reason = f"{'.'.join(str(part) for part in problem['loc']) or 'worker'}: {problem['msg']}"
    else:
        reason = str(error) or type(error).__name__
    return " ".join(reason[:REASON_LIMIT].split())


async def _complain(error: Exception) -> None:
    logger.warning("NATS: %s.", reason(error))


_TYPES = {
    "worker_id": "text", "boot_id": "text", "status": "text", "manager_host": "text", "hostname": "text",
    "tags": "text[]", "queues": "text[]", "origin": "text", "concurrency": "int", "version": "text", "run": "jsonb",
    "deadline_at": "timestamptz", "last_heartbeat_at": "timestamptz", "offline_at": "timestamptz",
}  # fmt: skip

_UPSERT = f"""
INSERT INTO workers AS w ({", ".join(_TYPES)}, registered_at)
SELECT {", ".join(_TYPES)}, last_heartbeat_at
FROM json_to_recordset(CAST(:rows AS json)) AS given({", ".join(f"{name} {kind}" for name, kind in _TYPES.items())})
ON CONFLICT (worker_id) DO UPDATE SET
{", ".join(f"{name} = excluded.{name}" for name in _TYPES if name != "worker_id")},
registered_at = CASE WHEN w.boot_id IS DISTINCT FROM excluded.boot_id
                     THEN excluded.registered_at ELSE w.registered_at END
WHERE coalesce(w.last_heartbeat_at, '-infinity') <= excluded.last_heartbeat_at
  AND NOT (w.status = 'offline' AND w.boot_id IS NOT DISTINCT FROM excluded.boot_id)
"""  # noqa: S608  # built from the names above alone


def _upsert(opened: Session, rows: list[dict[str, Any]]) -> None:
    opened.execute(text(_UPSERT), {"rows": json.dumps(rows)})

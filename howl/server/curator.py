"""The curator looks after the files that tasks left: makes room for them, sees that they are there, lets them go."""

import asyncio
import logging
import random
import re
import time
from datetime import UTC, datetime
from functools import partial
from typing import Any

from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, ObjectInfo, RetentionPolicy, StreamConfig
from nats.js.errors import BadRequestError, NotFoundError

from howl import objects
from howl.config import Settings
from howl.db import session
from howl.messaging import Connection
from howl.models import Artifact
from howl.server import artifacts
from howl.tls import reason

logger = logging.getLogger(__name__)

#: Seconds between two rounds, about, and most files looked at in one round of one duty.
ROUND, AT_ONCE = 1.0, 200
#: Seconds between two looks for objects that no row speaks of. The first is as long after the curator began: until
#: then, what workers told while PostgreSQL was away is recorded.
SWEEP = 600.0
#: Seconds after its last piece that such an object remains: its upload may be under way, its row on its way.
STRAY_AGE = 3600.0
#: Seconds for which JetStream keeps an object longer than its row, if nobody deletes it.
SLACK = 86_400.0
#: JetStream's number for "there is a stream of that name, made differently".
MADE_DIFFERENTLY = 10058
ARTIFACT_ID = re.compile(r"[0-9a-f]{32}")


class Curator:
    """Runs its duties in rounds; each may be repeated at any time without harm."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.bucket = objects.bucket(settings.subject_prefix)

    async def run(self) -> None:
        """Until cancelled; raises NATS's errors or DatabaseUnavailable, and loses nothing by being run again."""
        client = await Connection().open(self.settings, "howl curator", lasting=True, error_cb=_complain)
        try:
            stream = client.jetstream()
            await self.make_bucket(stream)
            next_sweep = time.monotonic() + SWEEP
            while True:
                await self.look_for_arrivals(stream)
                await self.let_go(stream)
                if time.monotonic() >= next_sweep:
                    await self.sweep(stream)
                    next_sweep = time.monotonic() + SWEEP
                await asyncio.sleep(ROUND * random.uniform(0.8, 1.2))  # noqa: S311  # jitter, no secret
        finally:
            await client.close()

    async def make_bucket(self, stream: JetStreamContext) -> None:
        """Have the bucket, with this server's limits.

        Roll-ups, by which other clients replace an object, are off: one word with such a header deletes all others.
        When the bucket is full, what is new is refused, and what is there stays.
        """
        config = StreamConfig(
            name=objects.stream_name(self.bucket),
            subjects=[objects.pieces_subject(self.bucket, ">"), f"$O.{self.bucket}.M.>"],
            retention=RetentionPolicy.LIMITS,
            discard=DiscardPolicy.NEW,
            max_bytes=self.settings.artifact_room,
            max_age=self.settings.artifact_retention + SLACK,
            allow_rollup_hdrs=False,
            allow_direct=True,
        )
        try:
            await stream.add_stream(config)
        except BadRequestError as error:
            if error.err_code != MADE_DIFFERENTLY:
                raise
            await stream.update_stream(config)

    async def look_for_arrivals(self, stream: JetStreamContext) -> None:
        """See whether JetStream has all of what workers told of."""
        for row in await asyncio.to_thread(self._ask, partial(artifacts.arriving, limit=AT_ONCE)):
            found = await self._is_there(stream, row)
            status = "kept" if found else "missing"
            await asyncio.to_thread(self._ask, partial(artifacts.note, artifact_id=row.artifact_id, status=status))
            if not found:
                logger.error("File %r of task %s is not there as its worker said.", row.name, row.task_id)

    async def _is_there(self, stream: JetStreamContext, row: Artifact) -> bool:
        info = await objects.describe(stream, self.bucket, row.artifact_id)
        if info is None or info.size != row.size or info.digest != objects.digest_of(bytes.fromhex(row.sha256)):
            return False
        return await self._pieces(stream, info) == info.chunks

    async def _pieces(self, stream: JetStreamContext, info: ObjectInfo) -> int:
        subject = objects.pieces_subject(self.bucket, info.nuid)
        return sum((await self._subjects(stream, subject)).values())

    async def _subjects(self, stream: JetStreamContext, subject: str) -> dict[str, int]:
        """How many messages there are, by subject; JetStream names 100,000 subjects at most."""
        return (await stream.stream_info(objects.stream_name(self.bucket), subject)).state.subjects or {}

    async def let_go(self, stream: JetStreamContext) -> None:
        """Delete files whose time is over: first their rows, so that what is listed can be had."""
        for artifact_id in await asyncio.to_thread(self._ask, partial(artifacts.take_expired, limit=AT_ONCE)):
            await objects.remove(stream, self.bucket, artifact_id)

    async def sweep(self, stream: JetStreamContext, age: float = STRAY_AGE) -> None:
        """Delete what no row speaks of: interrupted uploads, replaced files, those of tasks that were forgotten."""
        by_name: dict[str, str] = {}
        for subject in await self._subjects(stream, f"$O.{self.bucket}.>"):
            if (name := _name_in(subject, self.bucket)) is not None:
                by_name[name] = subject
        strays = await asyncio.to_thread(self._ask, partial(artifacts.unknown, names=sorted(by_name)))
        for name in strays[:AT_ONCE]:
            if await self._age(stream, by_name[name]) > age:
                await objects.remove(stream, self.bucket, name)

    async def _age(self, stream: JetStreamContext, subject: str) -> float:
        """Seconds since something was last written there; none for what is gone."""
        try:
            last = await stream.get_last_msg(objects.stream_name(self.bucket), subject)
        except NotFoundError:
            return 0.0
        return (datetime.now(UTC) - last.time).total_seconds() if last.time else 0.0

    def _ask(self, question: Any) -> Any:
        with session(self.settings.database()) as opened:
            return question(opened)


def _name_in(subject: str, bucket: str) -> str | None:
    """The artifact that something under this subject belongs to."""
    kind, *rest = subject.removeprefix(f"$O.{bucket}.").split(".")
    name = objects.name_in_meta(rest[-1]) if kind == "M" and rest else rest[-1] if rest else ""
    return name if ARTIFACT_ID.fullmatch(name) else None


async def _complain(error: Exception) -> None:
    logger.warning("NATS: %s.", reason(error))

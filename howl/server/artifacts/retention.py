"""The curator manages the files that tasks left: it makes their bucket, checks that they are there, deletes them."""

import asyncio
import logging
import random
import re
import time
from collections import Counter, deque
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, ObjectInfo, RetentionPolicy, StreamConfig
from nats.js.errors import BadRequestError, NotFoundError

from howl.artifacts import store
from howl.config import Settings
from howl.connections.explain import reason
from howl.connections.nats import Connection
from howl.connections.postgres import session
from howl.models import Artifact
from howl.server.artifacts import artifact_rows
from howl.server.artifacts.quota import LATEST, Held, Room
from howl.server.artifacts.uploads import Uploads
from howl.server.requests import REPETITION, Questions
from howl.server_requests import pieces_of

logger = logging.getLogger(__name__)

#: Approximate seconds between two rounds, and maximum files that a duty handles in one round.
ROUND, AT_ONCE = 1.0, 200
#: Seconds between two sweeps for objects without a row. The first comes as long after the curator started: by then,
#: what workers reported while PostgreSQL was away is recorded.
SWEEP = 600.0
#: Seconds for which such an object stays after its last piece, since its row may be on its way; and for which one stays
#: that is not whole: by then no piece may be added to it.
STRAY_AGE, ABANDONED = 3600.0, 2 * LATEST
#: Maximum pages of subjects that are read.
PAGES = 20
#: Seconds by which JetStream keeps an object longer than its row, if nobody deletes it.
SLACK = 86_400.0
#: JetStream's error code for a stream that exists with another configuration.
MADE_DIFFERENTLY = 10058
ARTIFACT_ID = re.compile(r"[0-9a-f]{32}")


class Curator:
    """Runs its duties in rounds; each duty may be repeated at any time without harm."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.bucket = store.bucket(settings.subject_prefix)
        self.room = Room(settings)
        #: The identity of bucket and table when they were last compared, and the rows that did not agree.
        self.compared: tuple[Any, ...] | None = None
        self.doubtful: deque[artifact_rows.Doubt] = deque()

    async def run(self) -> None:
        """Run until cancelled. Raises NATS's errors or DatabaseUnavailable; running it again loses nothing."""
        client = await Connection().open(self.settings, "howl curator", lasting=True, error_cb=_complain)
        try:
            stream = client.jetstream()
            await self.make_bucket(stream)
            await self.have_all(stream)
            uploads = Uploads(client, self.settings, self.room)
            questions = Questions(client, self.settings, "upload", uploads.answer)
            await questions.begin()
            next_sweep = time.monotonic() + SWEEP
            while True:
                await questions.be_there()
                await self.have_all(stream)
                await self.look_for_arrivals(stream)
                await self.let_go(stream)
                if time.monotonic() >= next_sweep:
                    is_all = await self.sweep(stream)
                    next_sweep = time.monotonic() + (SWEEP if is_all else 0)
                await asyncio.sleep(ROUND * random.uniform(0.8, 1.2))  # noqa: S311  # jitter, no secret
        finally:
            await client.close()

    async def make_bucket(self, stream: JetStreamContext) -> None:
        """Create the bucket, or give it this server's limits.

        Roll-ups, by which other clients replace an object, are off: one message with such a header deletes all others.
        When the bucket is full, new content is refused, and existing content stays.
        """
        config = StreamConfig(
            name=store.stream_name(self.bucket),
            subjects=[store.pieces_subject(self.bucket, ">"), f"$O.{self.bucket}.M.>"],
            retention=RetentionPolicy.LIMITS,
            discard=DiscardPolicy.NEW,
            max_bytes=self.settings.artifact_room,
            max_age=self.settings.artifact_retention + SLACK,
            allow_rollup_hdrs=False,
            allow_direct=True,
            duplicate_window=REPETITION,
        )
        try:
            await stream.add_stream(config)
        except BadRequestError as error:
            if error.err_code != MADE_DIFFERENTLY:
                raise
            await stream.update_stream(config)

    async def have_all(self, stream: JetStreamContext) -> None:
        """Ensure that the bucket exists and that all files shown as kept are in it, after any server's data loss."""
        found = await self._which(stream)
        if found != self.compared:
            await self.count(stream)
            self.compared = found
        await self.look_at_the_doubtful(stream)

    async def _which(self, stream: JetStreamContext) -> tuple[Any, ...]:
        """Return values that change once the bucket or the table is another, or the bucket is empty.

        A missing bucket is made. This runs every second; a sweep finds other losses.
        """
        name = store.stream_name(self.bucket)
        try:
            info = await stream.stream_info(name)
        except NotFoundError:
            logger.warning("NATS has lost the bucket of files: made anew, and what was in it is shown as missing.")
            await self.make_bucket(stream)
            info = await stream.stream_info(name)
        return info.created, info.state.messages == 0, *await asyncio.to_thread(self._ask, artifact_rows.which)

    async def look_at_the_doubtful(self, stream: JetStreamContext) -> None:
        """Correct rows, some at a time, that are wrong about their files."""
        changed: Counter[str] = Counter()
        for _ in range(min(AT_ONCE, len(self.doubtful))):
            row = self.doubtful.popleft()
            status = "kept" if await self._is_there(stream, row) else "missing"
            if status != row.status:
                await asyncio.to_thread(
                    self._ask, partial(artifact_rows.note, artifact_id=row.artifact_id, status=status)
                )
                changed[status] += 1
        for status, number in changed.items():
            logger.warning("%d files that were shown otherwise are %s.", number, status)

    async def look_for_arrivals(self, stream: JetStreamContext) -> None:
        """Check whether JetStream has all of each newly reported file."""
        for row in await asyncio.to_thread(self._ask, partial(artifact_rows.arriving, limit=AT_ONCE)):
            found = await self._is_there(stream, row)
            status = "kept" if found else "missing"
            await asyncio.to_thread(self._ask, partial(artifact_rows.note, artifact_id=row.artifact_id, status=status))
            if not found:
                logger.error("File %r of task %s is not there as its worker said.", row.name, row.task_id)

    async def _is_there(self, stream: JetStreamContext, row: Artifact | artifact_rows.Doubt) -> bool:
        info = await store.describe(stream, self.bucket, row.artifact_id)
        if info is None or info.size != row.size or info.digest != store.digest_of(bytes.fromhex(row.sha256)):
            return False
        return await self._pieces(stream, info) == info.chunks

    async def _pieces(self, stream: JetStreamContext, info: ObjectInfo) -> int:
        subject = store.pieces_subject(self.bucket, info.nuid)
        return sum((await self._subjects(stream, subject)).values())

    async def _subjects(self, stream: JetStreamContext, subject: str) -> dict[str, int]:
        """Return the number of messages by subject, read in pages of JetStream's limit."""
        found: dict[str, int] = {}
        for _ in range(PAGES):
            page = await store.subjects(stream, self.bucket, subject, len(found))
            found |= page
            if len(page) < store.PAGE:
                break
        return found

    async def let_go(self, stream: JetStreamContext) -> None:
        """Delete expired files, rows first, so that every listed file can be fetched."""
        for artifact_id in await asyncio.to_thread(self._ask, partial(artifact_rows.take_expired, limit=AT_ONCE)):
            await self._remove(stream, artifact_id)

    async def count(self, stream: JetStreamContext) -> dict[str, list[str]]:
        """Count what each credential has in the bucket, and find the rows that do not agree with it.

        Returns subjects without a row, by file, or by subject if they belong to none.
        """
        found = await self._subjects(stream, f"$O.{self.bucket}.>")
        parts = {subject: _part(subject, self.bucket) for subject in found}
        names = sorted({part.name for part in parts.values() if part})
        sizes = await asyncio.to_thread(self._ask, partial(artifact_rows.sizes, names=names))
        whole = {part.name for part in parts.values() if part and part.is_description}
        held = {
            (part.user, part.name): Held(_size(sizes.get(part.name), found[subject]), is_whole=part.name in whole)
            for subject, part in parts.items() if part and not part.is_description
        }  # fmt: skip
        self.room.load(held)
        pieces = Counter(dict.fromkeys(whole, 0))
        for subject, part in parts.items():
            if part and part.name in whole and not part.is_description:
                pieces[part.name] += found[subject]
        self.doubtful = deque(await asyncio.to_thread(self._ask, partial(artifact_rows.doubtful, whole=pieces)))
        strays: dict[str, list[str]] = {}
        for subject, part in parts.items():
            name = part.name if part else ""
            if name not in sizes:
                strays.setdefault(name or subject, []).append(subject)
        return strays

    async def sweep(self, stream: JetStreamContext, age: float = STRAY_AGE) -> bool:
        """Delete objects without a row: interrupted uploads, replaced files, files of deleted tasks.

        Returns whether that was all there is to delete now.
        """
        strays, deleted = await self.count(stream), 0
        for name, subjects in strays.items():
            is_whole = any(_is_description(subject, self.bucket) for subject in subjects)
            if await self._age(stream, subjects[0]) <= (age if is_whole else min(age, ABANDONED)):
                continue
            if deleted == AT_ONCE:
                return False
            deleted += 1
            if name in subjects:  # left by some other tool
                await stream.purge_stream(store.stream_name(self.bucket), subject=name)
            else:
                await self._remove(stream, name)
        return True

    async def _remove(self, stream: JetStreamContext, artifact_id: str) -> None:
        await store.remove(stream, self.bucket, artifact_id)
        self.room.remove(artifact_id)

    async def _age(self, stream: JetStreamContext, subject: str) -> float:
        """Return the seconds since the subject was last written to; 0 if it is gone."""
        try:
            last = await stream.get_last_msg(store.stream_name(self.bucket), subject)
        except NotFoundError:
            return 0.0
        return (datetime.now(UTC) - last.time).total_seconds() if last.time else 0.0

    def _ask(self, question: Any) -> Any:
        with session(self.settings.database()) as opened:
            return question(opened)


class Part(NamedTuple):
    """The content of a subject of the bucket: a file's description, or its pieces and their user."""

    name: str
    user: str
    is_description: bool


def _part(subject: str, bucket: str) -> Part | None:
    """Return None for what is no part of a file that HOWL stores."""
    kind, *rest = subject.removeprefix(f"$O.{bucket}.").split(".")
    is_description = kind == "M" and len(rest) == 1
    if not is_description and not (kind == "C" and 1 <= len(rest) <= 2):
        return None
    name = store.name_in_meta(rest[0]) if is_description else rest[-1]
    user = rest[0] if len(rest) == 2 else ""
    return Part(name, user, is_description) if ARTIFACT_ID.fullmatch(name) else None


def _is_description(subject: str, bucket: str) -> bool:
    part = _part(subject, bucket)
    return part is not None and part.is_description


def _size(recorded: int | None, pieces: int) -> int:
    """Return the bytes to count: those recorded, unless there are too many pieces."""
    if recorded is not None and pieces <= pieces_of(recorded):
        return recorded
    return pieces * store.PIECE


async def _complain(error: Exception) -> None:
    logger.warning("NATS: %s.", reason(error))

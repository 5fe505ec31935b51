"""Record outcomes as rows: each once, never backwards, in whatever order and however often they arrive."""

import asyncio
import logging
import time
from dataclasses import dataclass, field, replace

from celery import Celery
from sqlalchemy.exc import DataError, IntegrityError, OperationalError
from sqlalchemy.orm import Session

from howl.config import Settings
from howl.connections.explain import reason
from howl.connections.postgres import session
from howl.outcomes import ArtifactKept, ChordCreated, ChordPiece, Outcome, PartsAdded
from howl.server.artifacts import artifact_rows
from howl.server.chords import chords
from howl.server.chords import pieces as chord_pieces
from howl.server.recorder import task_rows
from howl.server.recorder.outcome_streams import PACE, REASON_LIMIT, Batch, OutcomeStream, Received
from howl.server.recorder.quota import Budget
from howl.server.recorder.task_access import Reach

logger = logging.getLogger(__name__)

#: Maximum entries kept of those in a batch that a user may not report, and seconds between two log lines per user.
REFUSED_KEPT, LINE_EVERY = 10, 60.0
#: Errors with which a working PostgreSQL refuses an entry. An OperationalError that gets here is a limit: see
#: howl.connections.postgres.session.
REFUSED = (DataError, IntegrityError, OperationalError, RecursionError)


@dataclass(frozen=True)
class Recorded:
    """The result of recording entries."""

    #: Whether any chord's body is not yet submitted.
    chords_wait: bool
    #: Bytes of HOWL_RECORD_LIMIT that their user has used; None: the user has no limit.
    level: float | None = None
    #: Entries that the user may not report: reasons by entry id.
    refused: dict[str, str] = field(default_factory=dict)


class Recorder:
    """Moves outcomes from Redis streams into PostgreSQL, one batch per transaction."""

    def __init__(self, settings: Settings, app: Celery) -> None:
        self.settings = settings
        self.app = app
        self.outcomes = OutcomeStream(settings)
        self.reach = Reach(app.backend.redis, settings)
        self.budget = Budget(settings)
        #: Set when a chord may be due.
        self.chords_due = asyncio.Event()
        #: By Redis user: monotonic second of the next log line about what it may not report.
        self._next_line: dict[str, float] = {}

    async def run(self) -> None:
        """Run until cancelled. Raises DatabaseUnavailable or Redis's errors; running it again loses nothing."""
        submitting = asyncio.create_task(self._submit_bodies())
        try:
            async for batch in self.outcomes.batches():
                done = await self._record_or_set_aside(batch)
                user = batch.received[0].user if batch.received else None
                kept = await self._without(batch, user, done.refused) if done.refused else batch
                await self.outcomes.confirm(kept)
                if user is not None and done.level is not None:
                    self.outcomes.pause(batch.stream, self.budget.seconds_after(user, done.level))
                if done.chords_wait:
                    await asyncio.to_thread(chords.wake, self.settings, kept.ended)
                    self.chords_due.set()
                del batch, kept  # before the next one is parsed: memory may not suffice for two
        finally:
            submitting.cancel()
            await asyncio.gather(submitting, return_exceptions=True)
            await self.outcomes.close()

    async def _submit_bodies(self) -> None:
        """Submit chord bodies beside the recording: no outcome waits for a body made of a hundred thousand values."""
        while True:
            await self.chords_due.wait()
            self.chords_due.clear()
            try:
                more = await asyncio.to_thread(chords.submit_due, self.settings, self.app)
            except Exception as error:  # noqa: BLE001  # recording continues whatever it is
                logger.warning("Chords' bodies wait for the keeper: %s.", reason(error))
                more = False
            if more:
                self.chords_due.set()
            await asyncio.sleep(PACE)

    async def _record_or_set_aside(self, batch: Batch) -> Recorded:
        """Record the batch, or its entries one by one: one that PostgreSQL refuses must not hold up others."""
        try:
            return await asyncio.to_thread(self.record, batch.received)
        except REFUSED:
            done = Recorded(chords_wait=True)
            for item in batch.received:
                try:
                    one = await asyncio.to_thread(self.record, [item])
                    done = replace(done, level=one.level, refused=done.refused | one.refused)
                except REFUSED as error:
                    await self._set_aside(
                        batch.stream, item, str(getattr(error, "orig", error)).splitlines()[0][:REASON_LIMIT]
                    )
            return done

    async def _set_aside(self, stream: str, item: Received, reason: str) -> None:
        """Set an entry aside but record its task's end: callers must know, and maintenance must not push it again."""
        if isinstance(item.entry, Outcome) and item.entry.is_final:
            try:
                await asyncio.to_thread(self.record, [replace(item, entry=_without_its_values(item.entry, reason))])
            except REFUSED:
                logger.error("The end of task %s cannot be recorded at all.", item.entry.task_id)  # noqa: TRY400
        document = await self.outcomes.document(stream, item.entry_id)
        await self.outcomes.set_aside(stream, item.entry_id, document, f"PostgreSQL refuses it: {reason}")

    async def _without(self, batch: Batch, user: str | None, refused: dict[str, str]) -> Batch:
        """Return the batch without entries that its user may not report; a few of these are kept for inspection."""
        for entry_id in [*refused][:REFUSED_KEPT]:
            await self.outcomes.keep(await self.outcomes.document(batch.stream, entry_id))
        if time.monotonic() >= self._next_line.get(str(user), 0.0):
            self._next_line[str(user)] = time.monotonic() + LINE_EVERY
            logger.error(
                "%d outcomes of Redis user %s set aside, which it may not tell: %s.",
                len(refused), user, next(iter(refused.values())),
            )  # fmt: skip
        return replace(batch, received=[item for item in batch.received if item.entry_id not in refused])

    def record(self, received: list[Received]) -> Recorded:
        """Write one user's entries in one transaction; repeating it changes only the budget."""
        with session(self.settings.database()) as opened:
            refused = self._refused(opened, received)
            self._write(opened, [item for item in received if item.entry_id not in refused])
            level, user = None, received[0].user if received else None
            if user is not None:
                sizes = [item.size for item in received]
                level = self.budget.charge(opened, user, sizes, len(refused))
            return Recorded(chords.any_wait(opened), level, refused)

    def _refused(self, opened: Session, received: list[Received]) -> dict[str, str]:
        """Return by id, with reasons, entries that their user may not report."""
        user = received[0].user if received else None
        if user is None:
            return {}
        told = [(item, item.entry.task_id) for item in received if isinstance(item.entry, Outcome | ArtifactKept)]
        queues = self.reach.foreign(opened, user, [task_id for _, task_id in told])
        refused = {
            item.entry_id: f"task {task_id} is of queue {queues[task_id]}, which it does not reach"
            for item, task_id in told
            if task_id in queues
        }
        created = {item.entry_id: item.entry for item in received if isinstance(item.entry, ChordCreated)}
        refused |= {
            item.entry_id: f"parts of chord {item.entry.group_id}, which may be another's"
            for item in received
            if isinstance(item.entry, PartsAdded)
        }
        many = chords.too_many(opened, user, [*created.values()]) if created else []
        return refused | {
            entry_id: f"too many chords or parts wait for chord {chord.group_id} to wait as well"
            for entry_id, chord in created.items()
            if any(chord is one for one in many)
        }

    def _write(self, opened: Session, received: list[Received]) -> None:
        created = [(item.entry, item.user) for item in received if isinstance(item.entry, ChordCreated)]
        pieces = [(item.entry, item.user) for item in received if isinstance(item.entry, ChordPiece)]
        created += chord_pieces.put_together(opened, pieces)
        left = [(item.entry, item.at) for item in received if isinstance(item.entry, ArtifactKept)]
        chords.record(opened, created)
        chords.add(opened, [item.entry for item in received if isinstance(item.entry, PartsAdded)])
        task_rows.write(opened, received)
        artifact_rows.record(opened, left, self.settings)


def _without_its_values(outcome: Outcome, reason: str) -> Outcome:
    message = f"The task ended as {outcome.status}, but what it left cannot be stored: {reason}."
    error = {"exc_type": "OutcomeRefused", "exc_module": "howl.errors", "exc_message": [message]}
    state = outcome.state if outcome.state == "REVOKED" else "FAILURE"
    return replace(outcome, state=state, result=error, traceback=None, args=None, kwargs=None, children=None)

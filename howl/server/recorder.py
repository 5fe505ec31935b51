"""Outcomes become rows: each once, never back, whatever order and however often they arrive."""

import asyncio
import json
import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

from celery import Celery
from sqlalchemy import text
from sqlalchemy.exc import DataError, IntegrityError, OperationalError
from sqlalchemy.orm import Session

from howl.config import Settings
from howl.db import session
from howl.outcomes import ArtifactKept, ChordCreated, Outcome, error_of
from howl.server import artifacts, chords
from howl.server.storable import as_json, storable
from howl.server.stream import REASON_LIMIT, Batch, OutcomeStream, Received

logger = logging.getLogger(__name__)

#: Seconds between two batches: what comes meanwhile is recorded in one transaction, which costs as much as one row's.
PACE = 0.03
#: Seconds that a run can be believed to have taken.
LONGEST = 30 * 86_400
#: PostgreSQL, being well, does not take an entry. An OperationalError that gets here is a limit: see howl.db.session.
REFUSED = (DataError, IntegrityError, OperationalError, RecursionError)


class Recorder:
    """Moves outcomes from Redis's stream into PostgreSQL, a batch a transaction."""

    def __init__(self, settings: Settings, app: Celery) -> None:
        self.settings = settings
        self.app = app
        self.outcomes = OutcomeStream(settings)

    async def run(self) -> None:
        """Until cancelled; raises DatabaseUnavailable or Redis's errors, and loses nothing by being run again."""
        try:
            async for batch in self.outcomes.batches():
                chords_wait = await self._record_or_set_aside(batch)
                await self.outcomes.confirm(batch)
                if chords_wait:
                    await asyncio.to_thread(chords.submit_due, self.settings, self.app, batch.ended)
                await asyncio.sleep(PACE)
        finally:
            await self.outcomes.close()

    async def _record_or_set_aside(self, batch: Batch) -> bool:
        """One entry that PostgreSQL refuses must not hold up its neighbours. Whether chords may wait for these."""
        try:
            return await asyncio.to_thread(self.record, batch.received)
        except REFUSED:
            for item in batch.received:
                try:
                    await asyncio.to_thread(self.record, [item])
                except REFUSED as error:
                    await self._set_aside(
                        batch.stream, item, str(getattr(error, "orig", error)).splitlines()[0][:REASON_LIMIT]
                    )
            return True

    async def _set_aside(self, stream: str, item: Received, reason: str) -> None:
        """Its task has ended all the same: whoever waits for it is told, and the keeper must not push it again."""
        if isinstance(item.entry, Outcome) and item.entry.is_final:
            try:
                await asyncio.to_thread(self.record, [replace(item, entry=_without_its_values(item.entry, reason))])
            except REFUSED:
                logger.error("The end of task %s cannot be recorded at all.", item.entry.task_id)  # noqa: TRY400
        document = await self.outcomes.document(stream, item.entry_id)
        await self.outcomes.set_aside(stream, item.entry_id, document, f"PostgreSQL refuses it: {reason}")

    def record(self, received: list[Received]) -> bool:
        """Write entries in one transaction; repeating it changes nothing. Whether any chord waits for its parts."""
        outcomes = [(item, item.entry) for item in received if isinstance(item.entry, Outcome)]
        created = [(item.entry, item.user) for item in received if isinstance(item.entry, ChordCreated)]
        left = [(item, item.entry) for item in received if isinstance(item.entry, ArtifactKept)]
        with session(self.settings.database()) as opened:
            chords.record(opened, created)
            walk = any(item.may_be_deep for item in received)
            _write(opened, UPSERT_TASKS, _task_rows(outcomes), walk)
            _write(opened, APPEND_EVENTS, [*_event_rows(received)], walk)
            artifacts.record(opened, [(artifact, item.at) for item, artifact in left], self.settings)
            return chords.any_wait(opened)


def _without_its_values(outcome: Outcome, reason: str) -> Outcome:
    message = f"The task ended as {outcome.status}, but what it left cannot be stored: {reason}."
    error = {"exc_type": "OutcomeRefused", "exc_module": "howl.errors", "exc_message": [message]}
    state = outcome.state if outcome.state == "REVOKED" else "FAILURE"
    return replace(outcome, state=state, result=error, traceback=None, args=None, kwargs=None, children=None)


def _write(opened: Session, statement: str, rows: list[dict[str, Any]], walk: bool) -> None:
    """Rows travel as one JSON document: one statement however many they are, and no temporary table."""
    if rows:
        opened.execute(text(statement), {"rows": json.dumps(storable(rows)) if walk else as_json(rows)})


def _task_rows(outcomes: list[tuple[Received, Outcome]]) -> list[dict[str, Any]]:
    """One row a task: an upsert may touch a row but once."""
    rows: dict[str, dict[str, Any]] = {}
    for item, outcome in outcomes:
        if outcome.status is not None:
            rows[outcome.task_id] = _merge(rows.get(outcome.task_id), _task_row(item, outcome))
    return [rows[task_id] for task_id in sorted(rows)]  # one order for all, so that no two transactions deadlock


def _merge(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """What is newer says how it stands; what only the older one knew remains."""
    if old is None:
        return new
    first, last = (old, new) if _supersedes(new, old) else (new, old)
    known = {name: value for name, value in last.items() if value is not None}
    begun = min(filter(None, (old["started_at"], new["started_at"])), default=None)
    queued = min(old["queued_at"], new["queued_at"])
    ending = {name: last[name] for name in _OF_THE_END}
    return {**first, **known, **ending, "started_at": begun, "queued_at": queued}


#: Columns that speak of how a run ended: nothing of an earlier attempt may shine through.
_OF_THE_END = ("result", "error", "error_type", "error_message", "traceback", "finished_at", "runtime", "children")


def _supersedes(new: dict[str, Any], old: dict[str, Any]) -> bool:
    """The rule of the upsert below, for two outcomes of one batch."""
    new_place, old_place = (new["attempts"], new["rank"]), (old["attempts"], old["rank"])
    return new_place > old_place or (new_place == old_place and new["rank"] < 3)


def _task_row(item: Received, outcome: Outcome) -> dict[str, Any]:
    kind, message = error_of(outcome) or (None, None)
    at = item.at.isoformat()
    return {
        "task_id": outcome.task_id,
        "name": outcome.name,
        "args": outcome.args,
        "kwargs": outcome.kwargs,
        "queue": outcome.queue,
        "status": outcome.status,
        "rank": outcome.rank,
        "attempts": outcome.attempt,
        "worker_id": outcome.worker_id,
        "parent_id": outcome.parent_id,
        "root_id": outcome.root_id,
        "group_id": outcome.group_id,
        "queued_at": at,
        "started_at": _began(item, outcome),
        "finished_at": at if outcome.is_final else None,
        "runtime": outcome.runtime if outcome.is_final else None,
        "result": outcome.result if outcome.state == "SUCCESS" else None,
        "error": outcome.result if kind else None,
        "error_type": kind,
        "error_message": message,
        "traceback": outcome.traceback,
        "children": outcome.children,
    }


def _began(item: Received, outcome: Outcome) -> str | None:
    """A short run is told by its end alone: it began its runtime before."""
    if outcome.state == "STARTED":
        return item.at.isoformat()
    if outcome.runtime is None or not math.isfinite(outcome.runtime):
        return None
    return (item.at - timedelta(seconds=min(max(outcome.runtime, 0), LONGEST))).isoformat()


def _event_rows(received: list[Received]) -> Iterator[dict[str, Any]]:
    """In the order in which it happened."""
    for item in received:
        if isinstance(item.entry, Outcome):
            yield _event_row(item, item.entry)
        elif isinstance(item.entry, ArtifactKept):
            yield _artifact_event(item, item.entry)


def _event_row(item: Received, outcome: Outcome) -> dict[str, Any]:
    data: dict[str, Any] = {"attempt": outcome.attempt}
    if outcome.status is None:
        data |= {"state": outcome.state, "result": outcome.result}
    elif failure := error_of(outcome):
        data |= {"error_type": failure[0], "error_message": failure[1]}
    if outcome.pid is not None:
        data["pid"] = outcome.pid
    return {
        "task_id": outcome.task_id,
        "worker_id": outcome.worker_id,
        "kind": "ended" if outcome.state == "ENDED" else outcome.status or "progress",
        "at": item.at.isoformat(),
        "data": data,
        "source": _source(item),
    }


def _artifact_event(item: Received, artifact: ArtifactKept) -> dict[str, Any]:
    return {
        "task_id": artifact.task_id,
        "worker_id": artifact.worker_id,
        "kind": "artifact",
        "at": item.at.isoformat(),
        "data": {"attempt": artifact.attempt, "name": artifact.name, "size": artifact.size},
        "source": _source(item),
    }


def _source(item: Received) -> str:
    return f"outcome:{item.entry_id}" if item.user is None else f"outcome:{item.user}:{item.entry_id}"


def _columns(definition: Iterable[str]) -> str:
    return ", ".join(definition)


_TASK_TYPES = {
    "task_id": "text", "name": "text", "args": "jsonb", "kwargs": "jsonb", "queue": "text", "status": "text",
    "rank": "int", "attempts": "int", "worker_id": "text", "parent_id": "text", "root_id": "text",
    "group_id": "text", "queued_at": "timestamptz", "started_at": "timestamptz", "finished_at": "timestamptz",
    "runtime": "double precision", "result": "jsonb", "error": "jsonb", "error_type": "text",
    "error_message": "text", "traceback": "text", "children": "jsonb",
}  # fmt: skip

#: What says how the task stands, taken from the outcome if it is newer than the row, otherwise left.
_STANDING = ("status", "rank", "attempts", *_OF_THE_END)
#: What is told once and remains: the submitter's word comes first.
_TOLD = ("name", "args", "kwargs", "queue", "parent_id", "root_id", "group_id")

_NEWER = "(excluded.attempts, excluded.rank) > (t.attempts, t.rank) OR \
((excluded.attempts, excluded.rank) = (t.attempts, t.rank) AND t.rank < 3)"

UPSERT_TASKS = f"""
INSERT INTO tasks AS t ({_columns(_TASK_TYPES)})
SELECT {_columns(_TASK_TYPES)}
FROM json_to_recordset(CAST(:rows AS json)) AS given({_columns(f"{name} {kind}" for name, kind in _TASK_TYPES.items())})
ON CONFLICT (task_id) DO UPDATE SET
{_columns(f"{name} = CASE WHEN {_NEWER} THEN excluded.{name} ELSE t.{name} END" for name in _STANDING)},
{_columns(f"{name} = coalesce(t.{name}, excluded.{name})" for name in _TOLD)},
worker_id = CASE WHEN {_NEWER} THEN coalesce(excluded.worker_id, t.worker_id) ELSE t.worker_id END,
started_at = least(t.started_at, excluded.started_at)
"""  # noqa: S608  # built from the names above alone

APPEND_EVENTS = """
INSERT INTO task_events (task_id, worker_id, kind, at, data, source)
SELECT task_id, worker_id, kind, at, data, source
FROM json_to_recordset(CAST(:rows AS json))
AS given(task_id text, worker_id text, kind text, at timestamptz, data jsonb, source text)
ON CONFLICT (source) DO NOTHING
"""

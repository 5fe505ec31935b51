"""Write outcomes as rows of tasks and task events; the result does not depend on their order of arrival."""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from howl.models import Task
from howl.outcomes import FINAL_RANK, LATEST_ATTEMPT, REQUEUED, ArtifactKept, Outcome, error_of
from howl.server.recorder.outcome_streams import Received
from howl.server.storable import as_json, exact, storable

#: Maximum plausible runtime, in seconds.
LONGEST = 30 * 86_400
#: Event kinds that are named differently from the status they report.
KINDS = {"ENDED": "ended", REQUEUED: "requeued"}


def write(opened: Session, received: list[Received]) -> None:
    """Update tasks and append their events; repeating it changes nothing."""
    walk = any(item.may_be_deep for item in received)
    received = _with_attempts(opened, received)
    outcomes = [(item, item.entry) for item in received if isinstance(item.entry, Outcome)]
    _execute(opened, UPSERT_TASKS, _task_rows(outcomes), walk)
    _execute(opened, LET_GO, _let_go_rows(outcomes), walk)
    _execute(opened, APPEND_EVENTS, [*_event_rows(received)], walk)


def _with_attempts(opened: Session, received: list[Received]) -> list[Received]:
    """Give the ends whose attempt nobody knew the number of the last one on record, or else of the first.

    Whoever reports them holds the message: no run of the task is newer.
    """
    entries = [item.entry for item in received if isinstance(item.entry, Outcome)]
    unknown = {entry.task_id for entry in entries if entry.attempt == LATEST_ATTEMPT}
    if not unknown:
        return received
    found = opened.execute(select(Task.task_id, Task.attempts).where(Task.task_id.in_(unknown)))
    latest = dict.fromkeys(unknown, 1) | {task_id: max(1, attempts) for task_id, attempts in found}
    resolved = []
    for item in received:
        entry = item.entry
        if isinstance(entry, Outcome) and entry.task_id in unknown:
            latest[entry.task_id] = max(latest[entry.task_id], entry.attempt)
            if entry.attempt == LATEST_ATTEMPT:
                item = replace(item, entry=replace(entry, attempt=latest[entry.task_id]))
        resolved.append(item)
    return resolved


def _execute(opened: Session, statement: str, rows: list[dict[str, Any]], walk: bool) -> None:
    """Execute the statement with all rows as one JSON document: one statement, and no temporary table."""
    if rows:
        opened.execute(text(statement), {"rows": json.dumps(storable(rows)) if walk else as_json(rows)})


def _task_rows(outcomes: list[tuple[Received, Outcome]]) -> list[dict[str, Any]]:
    """Build one row per task: an upsert may touch a row only once."""
    rows: dict[str, dict[str, Any]] = {}
    for item, outcome in outcomes:
        if outcome.status is not None:
            rows[outcome.task_id] = _merge(rows.get(outcome.task_id), _task_row(item, outcome))
    return [rows[task_id] for task_id in sorted(rows)]  # in one global order, so that no two transactions deadlock


def _let_go_rows(outcomes: list[tuple[Received, Outcome]]) -> list[dict[str, Any]]:
    """List tasks whose last run here was broken off, and their workers."""
    rows: dict[str, dict[str, Any]] = {}
    for _, outcome in outcomes:
        if outcome.state == REQUEUED:
            rows[outcome.task_id] = {"task_id": outcome.task_id, "worker_id": outcome.worker_id}
        elif outcome.state == "STARTED":
            rows.pop(outcome.task_id, None)
    return [rows[task_id] for task_id in sorted(rows)]


def _merge(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """Merge two rows: the newer gives the state, what only the older knew remains."""
    if old is None:
        return new
    first, last = (old, new) if _supersedes(new, old) else (new, old)
    known = {name: value for name, value in last.items() if value is not None}
    begun = min(filter(None, (old["started_at"], new["started_at"])), default=None)
    queued = min(old["queued_at"], new["queued_at"])
    ending = {name: last[name] for name in _OF_THE_END}
    return {**first, **known, **ending, "started_at": begun, "queued_at": queued}


#: Columns that describe how a run ended; nothing of an earlier attempt may remain in them.
_OF_THE_END = (
    "result",
    "error",
    "exact",
    "error_type",
    "error_message",
    "traceback",
    "finished_at",
    "runtime",
    "children",
)


def _supersedes(new: dict[str, Any], old: dict[str, Any]) -> bool:
    """Apply the rule of the upsert below to two outcomes of one batch."""
    if old["status"] == "succeeded":
        return bool(new["status"] == "succeeded" and new["finished_at"] < old["finished_at"])
    if new["status"] == "succeeded":
        return True
    if new["rank"] == old["rank"] == FINAL_RANK:
        return bool((new["finished_at"], new["attempts"]) > (old["finished_at"], old["attempts"]))
    new_place, old_place = (new["attempts"], new["rank"]), (old["attempts"], old["rank"])
    return new_place > old_place or (new_place == old_place and new["rank"] < 3)


def _task_row(item: Received, outcome: Outcome) -> dict[str, Any]:
    kind, message = error_of(outcome) or (None, None)
    at = item.at.isoformat()
    values = {
        "args": outcome.args,
        "kwargs": outcome.kwargs,
        "result": outcome.result if outcome.state == "SUCCESS" else None,
        "error": outcome.result if kind else None,
    }
    return {
        **values,
        "exact": exact(values),
        "task_id": outcome.task_id,
        "name": outcome.name,
        "queue": outcome.queue,
        "redis_user": item.user,
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
        "error_type": kind,
        "error_message": message,
        "traceback": outcome.traceback,
        "children": outcome.children,
    }


def _began(item: Received, outcome: Outcome) -> str | None:
    """Return the start: if only a short run's end is reported, that less its runtime."""
    if outcome.state == "STARTED":
        return item.at.isoformat()
    if outcome.runtime is None or not math.isfinite(outcome.runtime):
        return None
    return (item.at - timedelta(seconds=min(max(outcome.runtime, 0), LONGEST))).isoformat()


def _event_rows(received: list[Received]) -> Iterator[dict[str, Any]]:
    """Yield event rows in order of occurrence."""
    for item in received:
        if isinstance(item.entry, Outcome):
            yield _event_row(item, item.entry)
        elif isinstance(item.entry, ArtifactKept):
            yield _artifact_event(item, item.entry)


def _event_row(item: Received, outcome: Outcome) -> dict[str, Any]:
    data: dict[str, Any] = {"attempt": outcome.attempt}
    if outcome.status is None and outcome.state != REQUEUED:
        data |= {"state": outcome.state, "result": outcome.result}
    elif failure := error_of(outcome):
        data |= {"error_type": failure[0], "error_message": failure[1]}
    if outcome.pid is not None:
        data["pid"] = outcome.pid
    if outcome.children_left_out:
        data["children_left_out"] = outcome.children_left_out
    return {
        "task_id": outcome.task_id,
        "worker_id": outcome.worker_id,
        "kind": KINDS.get(outcome.state) or outcome.status or "progress",
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
    "task_id": "text", "name": "text", "args": "jsonb", "kwargs": "jsonb", "queue": "text", "redis_user": "text",
    "status": "text",
    "rank": "int", "attempts": "int", "worker_id": "text", "parent_id": "text", "root_id": "text",
    "group_id": "text", "queued_at": "timestamptz", "started_at": "timestamptz", "finished_at": "timestamptz",
    "runtime": "double precision", "result": "jsonb", "error": "jsonb", "exact": "text", "error_type": "text",
    "error_message": "text", "traceback": "text", "children": "jsonb",
}  # fmt: skip

#: Columns of the task's state: taken from the outcome if it is newer than the row, otherwise left unchanged.
_STANDING = ("status", "rank", "attempts", *_OF_THE_END)
#: Columns that are reported once and then stay; the submitter's values take precedence.
_TOLD = ("name", "args", "kwargs", "parent_id", "root_id", "group_id")

# As with Celery's own backends, a success is final, whatever is reported later. Any other end holds until the next one:
# the task may have been sent again under its id, or have reported a failure and continued.
_NEWER = """CASE
WHEN t.status = 'succeeded' THEN excluded.status = 'succeeded' AND excluded.finished_at < t.finished_at
WHEN excluded.status = 'succeeded' THEN true
WHEN t.rank = 3 AND excluded.rank = 3 THEN (excluded.finished_at, excluded.attempts) > (t.finished_at, t.attempts)
ELSE (excluded.attempts, excluded.rank) > (t.attempts, t.rank)
    OR ((excluded.attempts, excluded.rank) = (t.attempts, t.rank) AND t.rank < 3) END"""

# For a task that nobody submitted, whoever reports its state also reports its queue: an earlier report from another
# user's workers may have been forged to make the task look like theirs.
_ANOTHERS = f"t.redis_user IS NOT NULL AND excluded.redis_user IS DISTINCT FROM t.redis_user AND ({_NEWER})"

UPSERT_TASKS = f"""
INSERT INTO tasks AS t ({_columns(_TASK_TYPES)})
SELECT {_columns(_TASK_TYPES)}
FROM json_to_recordset(CAST(:rows AS json)) AS given({_columns(f"{name} {kind}" for name, kind in _TASK_TYPES.items())})
ON CONFLICT (task_id) DO UPDATE SET
{_columns(f"{name} = CASE WHEN {_NEWER} THEN excluded.{name} ELSE t.{name} END" for name in _STANDING)},
{
    _columns(
        f"{name} = CASE WHEN {_ANOTHERS} THEN coalesce(excluded.{name}, t.{name}) "
        f"ELSE coalesce(t.{name}, excluded.{name}) END"
        for name in _TOLD
    )
},
queue = CASE WHEN {_ANOTHERS} THEN excluded.queue
             WHEN t.redis_user IS NOT NULL AND ({_NEWER}) THEN coalesce(excluded.queue, t.queue)
             WHEN t.redis_user IS NULL AND excluded.redis_user IS NOT NULL THEN t.queue
             ELSE coalesce(t.queue, excluded.queue) END,
redis_user = CASE WHEN {_ANOTHERS} THEN excluded.redis_user ELSE t.redis_user END,
worker_id = CASE WHEN {_NEWER} THEN coalesce(excluded.worker_id, t.worker_id) ELSE t.worker_id END,
started_at = least(t.started_at, excluded.started_at)
"""  # noqa: S608  # built from the names above alone

# The status stays: see howl.outcomes.STATUSES. Another worker may have begun it since, and its report come first.
LET_GO = """
UPDATE tasks AS t SET worker_id = NULL
FROM json_to_recordset(CAST(:rows AS json)) AS given(task_id text, worker_id text)
WHERE t.task_id = given.task_id AND t.worker_id = given.worker_id AND t.status = 'started'
"""

APPEND_EVENTS = """
INSERT INTO task_events (task_id, worker_id, kind, at, data, source)
SELECT task_id, worker_id, kind, at, data, source
FROM json_to_recordset(CAST(:rows AS json))
AS given(task_id text, worker_id text, kind text, at timestamptz, data jsonb, source text)
ON CONFLICT (source) DO NOTHING
"""

"""Chords: the parts are counted in the record, and the body is submitted when the last of them has ended."""

import json
import logging
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

from celery import Celery, group
from celery.canvas import maybe_signature
from celery.exceptions import ChordError
from celery.result import result_from_tuple
from kombu.exceptions import EncodeError, OperationalError
from redis.exceptions import DataError, RedisError
from sqlalchemy import Cast, Select, Text, any_, bindparam, cast, exists, func, select, text, update
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.exc import InterfaceError
from sqlalchemy.exc import OperationalError as DatabaseError
from sqlalchemy.orm import Session

from howl.backend import leaves
from howl.broker.transport import publishing_for, publishing_once
from howl.celery import worker_queue
from howl.config import Settings
from howl.db import session
from howl.models import Chord, Task
from howl.outcomes import FINAL_RANK, JOIN_ALL, PART_STATUS, ChordCreated

logger = logging.getLogger(__name__)

#: Most bodies submitted in one go.
AT_ONCE = 100
#: Text, because SQLAlchemy takes longer to put a statement together than PostgreSQL to answer this one.
ANY_WAIT = text("SELECT EXISTS (SELECT FROM chords WHERE body_submitted_at IS NULL)")
#: Characters of a reason that is logged: it may quote what a worker wrote.
REASON_LIMIT = 200


def record(opened: Session, created: Iterable[tuple[ChordCreated, str | None]]) -> None:
    """Write chords and the Redis users who told of them down before any of their parts; one told twice is one."""
    rows = [
        {
            "group_id": chord.group_id,
            "parts": chord.parts,
            "header": json.dumps(chord.header),
            "body": json.dumps(chord.body),
            "redis_user": user,
        }
        for chord, user in created
    ]
    if rows:
        opened.execute(insert(Chord).values(rows).on_conflict_do_nothing())


def any_wait(opened: Session) -> bool:
    """Whether there is a chord whose body is not submitted: mostly there is none, and a look is cheap."""
    return bool(opened.scalar(ANY_WAIT))


def submit_due(settings: Settings, app: Celery, ended: set[str] | None = None) -> None:
    """Submit the bodies whose parts have all ended: of chords that `ended` tasks are part of, or of any.

    Raises DatabaseUnavailable, and kombu's OperationalError when Redis is away; the keeper's next round tries again.
    """
    if ended is not None and not ended:
        return
    with session(settings.database()) as opened:
        for chord in opened.scalars(_due(ended)).all():
            if _take(chord, opened):
                _submit_or_drop(chord, opened, app)
                done = update(Chord).where(Chord.group_id == chord.group_id)
                opened.execute(done.values(body_submitted_at=func.now()))
            opened.commit()


def _take(chord: Chord, opened: Session) -> bool:
    """Whether it is ours to submit: the recorder and the keeper may have found it due at the same moment."""
    still_due = select(Chord.group_id).where(Chord.group_id == chord.group_id, Chord.body_submitted_at.is_(None))
    return opened.scalar(still_due.with_for_update(skip_locked=True)) is not None


def _submit_or_drop(chord: Chord, opened: Session, app: Celery) -> None:
    """Its documents come from a worker, who may have written anything: what cannot be submitted is dropped."""
    try:
        # What a worker wrote is published with no more rights than its own.
        with opened.begin_nested(), publishing_for(chord.redis_user):
            _submit_body(chord, opened, app)
    except Exception as error:
        if _passes(error):
            raise
        reason = " ".join(repr(error)[:REASON_LIMIT].split())
        # One line: a traceback of somebody else's garbage tells nothing.
        logger.error("Chord %s has no body that could be submitted: %s.", chord.group_id, reason)  # noqa: TRY400


def _passes(error: Exception) -> bool:
    """Whether Redis or PostgreSQL is at fault, not the chord, whose body may name a queue that is none."""
    away = isinstance(error, OperationalError | RedisError | DatabaseError | InterfaceError)
    unfit = isinstance(error.__cause__ or error, DataError)  # kombu wraps what redis-py refuses to send
    return away and not unfit and "WRONGTYPE" not in str(error)


def _due(ended: set[str] | None) -> Select[Any]:
    part = func.unnest(Chord.parts).table_valued("task_id").render_derived()
    open_parts = (
        select(part.c.task_id)
        .select_from(part.outerjoin(Task, Task.task_id == part.c.task_id))
        .where(Task.rank.is_distinct_from(FINAL_RANK))
        .correlate(Chord)
    )
    due = select(Chord).where(Chord.body_submitted_at.is_(None), ~exists(open_parts)).limit(AT_ONCE)
    if ended is None:
        return due
    return due.where(Chord.parts.overlap(_texts(ended)))


def _texts(ids: Iterable[str]) -> Cast[Any]:
    """One parameter, however many they are: PostgreSQL takes 65,535."""
    return cast(bindparam(None, sorted(set(ids)), unique=True), ARRAY(Text))


def _submit_body(chord: Chord, opened: Session, app: Celery) -> None:
    document = json.loads(chord.body)
    body = maybe_signature(document, app=app)
    header = result_from_tuple(json.loads(chord.header), app=app)
    tasks = {
        task.task_id: task for task in opened.scalars(select(Task).where(Task.task_id == any_(_texts(leaves(header)))))
    }
    row = opened.get(Task, body.id) if body.id else None
    replaces = row is not None and _replaces(document, row, tasks.values())
    if row is not None and (row.rank == FINAL_RANK or not replaces):
        return  # submitted by an earlier life of this server, which ended before it could say so; or cancelled
    failed = next((task for task in tasks.values() if task.status != "succeeded"), None)
    if failed is not None and not _joins_all(document):
        _fail(document, f"Dependency {failed.task_id} raised {failed.error_type}: {failed.error_message}", app)
        return
    try:
        # The mark of a task in flight stays with its replacement, which would not be pushed for it.
        with nullcontext() if replaces else publishing_once():
            body.apply_async((_values(header, tasks),), **_own_queue(body))
    except (EncodeError, TypeError, ValueError) as error:
        _fail(document, f"Callback error: {error!r}", app)


def _own_queue(body: Any) -> dict[str, Any]:
    """A name alone would be given an exchange, whose binding outlives the worker."""
    kind, _, worker_id = str(body.options.get("queue")).partition(".")
    return {"queue": worker_queue(worker_id)} if kind == "worker" and worker_id else {}


def _replaces(document: dict[str, Any], row: Task, parts: Iterable[Task]) -> bool:
    """Whether what is on record is the task that this chord replaces, whose id its body has, and not the body's run."""
    name = str(document.get("task"))
    is_named_otherwise = row.name != name and not name.startswith("celery.")  # a chain is recorded as its last task
    return is_named_otherwise or any(part.parent_id == row.task_id for part in parts)


def _joins_all(document: dict[str, Any]) -> bool:
    headers = document.get("options", {}).get("headers") or {}
    return all(headers.get(name) == value for name, value in JOIN_ALL.items())


def _values(header: Any, tasks: dict[str, Task]) -> Any:
    """The parts' values in the header's shape: a list for a group, lists within for groups within."""
    members = getattr(header, "results", None)
    return _value(tasks[header.id]) if members is None else [_values(member, tasks) for member in members]


def _value(part: Task) -> Any:
    if part.status == "succeeded":
        return part.result
    names = ("worker_id", "error_type", "error_message")
    return {PART_STATUS: part.status} | {name: getattr(part, name) for name in names}


def _fail(document: dict[str, Any], reason: str, app: Celery) -> None:
    """Celery would run some error callbacks here and now; a worker wrote them, and this process knows the database."""
    body = maybe_signature(_without_errbacks(document), app=app)
    logger.warning("Chord body %s fails: %s.", body.id, reason)
    try:
        raise ChordError(reason)  # noqa: TRY301  # Celery takes the traceback from the stack
    except ChordError as error:
        app.backend.chord_error_from_stack(body, exc=error)
    errbacks = [maybe_signature(given, app=app) for given in document.get("options", {}).get("link_error") or []]
    if errbacks:
        group(errbacks, app=app).apply_async((body.id,), parent_id=body.id, root_id=body.id)


def _without_errbacks(document: Any) -> Any:
    if isinstance(document, dict):
        return {name: _without_errbacks(value) for name, value in document.items() if name != "link_error"}
    return [_without_errbacks(value) for value in document] if isinstance(document, list) else document

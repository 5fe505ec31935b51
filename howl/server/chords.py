"""Chords: the parts are counted in the record, and the body is submitted when the last of them has ended."""

import json
import logging
from collections.abc import Iterable
from typing import Any

from celery import Celery
from celery.canvas import maybe_signature
from celery.exceptions import ChordError
from celery.result import result_from_tuple
from kombu.exceptions import EncodeError
from sqlalchemy import Select, Text, bindparam, cast, exists, func, select, update
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.orm import Session

from howl.backend import leaves
from howl.broker.transport import publishing_once
from howl.config import Settings
from howl.db import session
from howl.models import Chord, Task
from howl.outcomes import FINAL_RANK, ChordCreated

logger = logging.getLogger(__name__)

#: Most bodies submitted in one go.
AT_ONCE = 100


def record(opened: Session, created: Iterable[ChordCreated]) -> None:
    """Write chords down before any of their parts; a chord told twice is one."""
    rows = [
        {
            "group_id": chord.group_id,
            "parts": chord.parts,
            "header": json.dumps(chord.header),
            "body": json.dumps(chord.body),
        }
        for chord in created
    ]
    if rows:
        opened.execute(insert(Chord).values(rows).on_conflict_do_nothing())


def submit_due(settings: Settings, app: Celery, ended: set[str] | None = None) -> None:
    """Submit the bodies whose parts have all ended: of chords that `ended` tasks are part of, or of any.

    Raises DatabaseUnavailable, and kombu's OperationalError when Redis is away; the keeper's next round tries again.
    """
    if ended is not None and not ended:
        return
    with session(settings.database()) as opened:
        for chord in opened.scalars(_due(ended)).all():
            try:
                _submit_body(chord, opened, app)
            except (TypeError, ValueError, LookupError, AttributeError) as error:
                # Its documents come from a worker, who may have written anything.
                logger.error("Chord %s has no body that could be submitted: %r.", chord.group_id, error)  # noqa: TRY400
            opened.execute(update(Chord).where(Chord.group_id == chord.group_id).values(body_submitted_at=func.now()))
            opened.commit()


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
    return due.where(Chord.parts.overlap(cast(bindparam("ended", sorted(ended)), ARRAY(Text))))


def _submit_body(chord: Chord, opened: Session, app: Celery) -> None:
    body = maybe_signature(json.loads(chord.body), app=app)
    header = result_from_tuple(json.loads(chord.header), app=app)
    if body.id and opened.get(Task, body.id) is not None:
        return  # submitted by an earlier life of this server, which ended before it could say so
    tasks = {task.task_id: task for task in opened.scalars(select(Task).where(Task.task_id.in_(leaves(header))))}
    failed = next((task for task in tasks.values() if task.status != "succeeded"), None)
    if failed is not None:
        _fail(body, f"Dependency {failed.task_id} raised {failed.error_type}: {failed.error_message}", app)
        return
    try:
        with publishing_once():
            body.apply_async((_values(header, tasks),))
    except (EncodeError, TypeError, ValueError) as error:
        _fail(body, f"Callback error: {error!r}", app)


def _values(header: Any, tasks: dict[str, Task]) -> Any:
    """The parts' values in the header's shape: a list for a group, lists within for groups within."""
    members = getattr(header, "results", None)
    return tasks[header.id].result if members is None else [_values(member, tasks) for member in members]


def _fail(body: Any, reason: str, app: Celery) -> None:
    logger.warning("Chord body %s fails: %s.", body.id, reason)
    try:
        raise ChordError(reason)  # noqa: TRY301  # Celery takes the traceback from the stack
    except ChordError as error:
        app.backend.chord_error_from_stack(body, exc=error)

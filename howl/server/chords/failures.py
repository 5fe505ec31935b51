"""Fail a chord's body: report its end, and have a worker call its error callbacks (howl.error_callbacks)."""

import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from celery import Celery
from celery import chord as celery_chord
from celery.canvas import maybe_signature
from celery.exceptions import ChordError
from celery.utils.functional import maybe_list
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError
from sqlalchemy import ColumnElement, Text, and_, any_, case, cast, func, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session

from howl.broker import set_aside
from howl.broker.transport import publishing_once
from howl.celery import worker_queue
from howl.error_callbacks import NAME, OF_THE_SIGNATURE, Call, ToldError, noting
from howl.errors import NotGranted
from howl.models import Chord, Task
from howl.outcomes import UUID, Outcome

logger = logging.getLogger(__name__)

#: Maximum characters of a part's error with which the body fails.
ERROR_LIMIT = 20_000
#: Maximum queues tried for an error callback, failed parts checked for callbacks already called, and characters of one
#: part's children.
QUEUES, ASKED, CHILDREN_LIMIT = 10, 100, 20_000


@dataclass(frozen=True)
class Failure:
    """The reason why there are no values for a body."""

    reason: str
    #: The error of the part that failed, as reported by its worker.
    cause: dict[str, Any] | None = None


def is_part_of(chord: Chord) -> ColumnElement[bool]:
    """Match tasks that are parts of the chord."""
    return Task.task_id.in_(select(func.unnest(Chord.parts)).where(Chord.chord_id == chord.chord_id))


def own_queue(name: Any) -> dict[str, Any]:
    """Return options for one worker's queue: given by name only, it would get an exchange and outlive the worker."""
    kind, _, worker_id = str(name).partition(".")
    return {"queue": worker_queue(worker_id)} if kind == "worker" and worker_id else {}


def because_of(task_id: str, opened: Session) -> Failure:
    """Return the failure of a body whose part `task_id` has failed, in Celery's words."""

    def short(column: Any) -> Any:
        return case((func.length(cast(column, Text)) <= ERROR_LIMIT, column), else_=None)

    message = func.left(Task.error_message, ERROR_LIMIT)
    told = select(Task.error_type, message, short(Task.error), short(Task.exact)).where(Task.task_id == task_id)
    kind, message, error, exact = opened.execute(told).one()
    module, _, name = str(kind).rpartition(".")
    in_short = {"exc_type": name, "exc_module": module or "builtins", "exc_message": [message]}
    cause = (json.loads(exact).get("error") if exact else None) or error or in_short
    return Failure(f"Dependency {task_id} raised {ToldError(cause)!r}", cause)


def fail(chord: Chord, document: dict[str, Any], failure: Failure, opened: Session, app: Celery) -> None:
    """Fail the body, and have its error callbacks called once, however often this is tried.

    Raises redis's and kombu's errors, with nothing reported yet, and whatever forged documents cause.
    """
    with noting() as noted:
        try:
            cause = ToldError(failure.cause) if failure.cause else None
            raise ChordError(failure.reason) from cause  # noqa: TRY301  # Celery takes the traceback from the stack
        except ChordError as error:
            app.backend.chord_error_from_stack(_last(maybe_signature(document, app=app), app), exc=error)
    within = _called_within(chord, opened) if noted.calls else {}
    due = [call for call in noted.calls if call.task_id[:OF_THE_SIGNATURE] not in within]
    # Before the end is reported: once it is recorded, nobody retries the callbacks.
    _publish(due, chord, document, opened, app)
    called = defaultdict(list)
    for call in noted.calls:
        called[call.failed].append([[within.get(call.task_id[:OF_THE_SIGNATURE], call.task_id), None], None])
    for entry in noted.entries:
        if isinstance(entry, Outcome):
            app.backend.append(replace(entry, children=called.get(entry.task_id)))


def _last(body: Any, app: Celery) -> Any:
    """Return what a body ends as: a chord as its own body, which Celery leaves pending, its callbacks uncalled."""
    while isinstance(body, celery_chord):
        inner = maybe_signature(body.body, app=app)
        for name in ("link_error", "chain"):
            for given in maybe_list(body.options.get(name)) or []:
                inner.append_to_list_option(name, given)
        body = inner
    return body


def _called_within(chord: Chord, opened: Session) -> dict[str, str]:
    """Return ids of calls made when chords among the parts failed, by the signature of what was called.

    `chord.on_error` links a callback to those as well, and it is called once: with Celery, the outer one never ends.
    """
    children = cast(Task.children, Text)
    failed = and_(Task.status == "failed", Task.started_at.is_(None), func.length(children) < CHILDREN_LIMIT)
    found = opened.scalars(select(children).where(is_part_of(chord), failed).limit(ASKED))
    # A worker may have reported anything there.
    ids = [match[0] for told in found for match in re.finditer(UUID, told)]
    return {task_id[:OF_THE_SIGNATURE]: task_id for task_id in ids}


def _publish(calls: list[Call], chord: Chord, document: dict[str, Any], opened: Session, app: Celery) -> None:
    if not calls:
        return
    sought = cast([call.task_id for call in calls], ARRAY(Text))  # a single parameter, however many ids there are
    done = set(opened.scalars(select(Task.task_id).where(Task.task_id == any_(sought))))
    queues = [*_queues(chord, document, opened)]
    for call in calls:
        if call.task_id not in done:
            _publish_one(call, queues, app)


def _publish_one(call: Call, queues: list[dict[str, Any]], app: Celery) -> None:
    why: Exception | None = None
    for options in queues:
        try:
            with publishing_once():
                app.send_task(
                    NAME,
                    (call.signature, call.request, call.error, call.cause),
                    task_id=call.task_id,
                    parent_id=call.failed,
                    root_id=call.request.get("root_id") or call.failed,
                    ignore_result=True,
                    **options,
                )
        except NotGranted as error:
            why = error
        except (OperationalError, RedisError):
            raise
        except Exception as error:  # noqa: BLE001  # a worker's documents may fail in any way
            why = error
            break
        else:
            return
    logger.warning("An error callback of %s is not called: %s.", call.failed, set_aside.in_short(repr(why)))


def _queues(chord: Chord, document: dict[str, Any], opened: Session) -> Iterator[dict[str, Any]]:
    """Yield queues whose workers may know the callbacks: as with Celery, those of parts, failed parts first.

    The queue of a single worker, which may have left, comes after queues that several share.
    """
    of_one = Task.queue.startswith("worker.", autoescape=True)
    likeliest = select(Task.queue).where(is_part_of(chord), Task.queue.is_not(None)).group_by(Task.queue)
    order = (of_one, func.bool_and(Task.status == "succeeded"), Task.queue)
    for name in opened.scalars(likeliest.order_by(*order).limit(QUEUES)).all():
        yield own_queue(name) or {"queue": name}
    if name := (document.get("options") or {}).get("queue"):
        yield own_queue(name) or {"queue": name}
    yield {}

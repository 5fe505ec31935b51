"""A chord's body fails: its end is told, and a worker is to call its error callbacks (howl.error_callbacks)."""

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

#: Characters of a part's error that its body fails with.
ERROR_LIMIT = 20_000
#: Queues that may be tried for an error callback, parts that are asked which they had called, and characters of one's
#: children.
QUEUES, ASKED, CHILDREN_LIMIT = 10, 100, 20_000


@dataclass(frozen=True)
class Failure:
    """Why there is nothing for a body to run on."""

    reason: str
    #: The error of the part that failed, as its worker told it.
    cause: dict[str, Any] | None = None


def is_part_of(chord: Chord) -> ColumnElement[bool]:
    """Whether a task is a part of the chord."""
    return Task.task_id.in_(select(func.unnest(Chord.parts)).where(Chord.chord_id == chord.chord_id))


def own_queue(name: Any) -> dict[str, Any]:
    """Options of what goes to one worker's queue: a name alone would be given an exchange, and outlive the worker."""
    kind, _, worker_id = str(name).partition(".")
    return {"queue": worker_queue(worker_id)} if kind == "worker" and worker_id else {}


def because_of(task_id: str, opened: Session) -> Failure:
    """The failure of a body of which this part has failed, in Celery's words."""

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
    """Have the body fail, and its error callbacks be called once, however often this is tried.

    Raises redis's and kombu's errors, with nothing told yet, and whatever forged documents cause.
    """
    with noting() as noted:
        try:
            cause = ToldError(failure.cause) if failure.cause else None
            raise ChordError(failure.reason) from cause  # noqa: TRY301  # Celery takes the traceback from the stack
        except ChordError as error:
            app.backend.chord_error_from_stack(_last(maybe_signature(document, app=app), app), exc=error)
    within = _called_within(chord, opened) if noted.calls else {}
    due = [call for call in noted.calls if call.task_id[:OF_THE_SIGNATURE] not in within]
    # First: once the end is on record, nobody comes back for them.
    _publish(due, chord, document, opened, app)
    called = defaultdict(list)
    for call in noted.calls:
        called[call.failed].append([[within.get(call.task_id[:OF_THE_SIGNATURE], call.task_id), None], None])
    for entry in noted.entries:
        if isinstance(entry, Outcome):
            app.backend.append(replace(entry, children=called.get(entry.task_id)))


def _last(body: Any, app: Celery) -> Any:
    """What a body ends as: a chord as its own body does, which Celery would leave pending, its callbacks uncalled."""
    while isinstance(body, celery_chord):
        inner = maybe_signature(body.body, app=app)
        for name in ("link_error", "chain"):
            for given in maybe_list(body.options.get(name)) or []:
                inner.append_to_list_option(name, given)
        body = inner
    return body


def _called_within(chord: Chord, opened: Session) -> dict[str, str]:
    """Calls that were made when chords among the parts failed, by the signature of what was called.

    `chord.on_error` links a callback to those as well, and it is called once: with Celery, the outer one never ends.
    """
    children = cast(Task.children, Text)
    failed = and_(Task.status == "failed", Task.started_at.is_(None), func.length(children) < CHILDREN_LIMIT)
    found = opened.scalars(select(children).where(is_part_of(chord), failed).limit(ASKED))
    # A worker may have told anything there.
    ids = [match[0] for told in found for match in re.finditer(UUID, told)]
    return {task_id[:OF_THE_SIGNATURE]: task_id for task_id in ids}


def _publish(calls: list[Call], chord: Chord, document: dict[str, Any], opened: Session, app: Celery) -> None:
    if not calls:
        return
    sought = cast([call.task_id for call in calls], ARRAY(Text))  # one parameter, however many they are
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
        except Exception as error:  # noqa: BLE001  # a worker's documents fail in any way there is
            why = error
            break
        else:
            return
    logger.warning("An error callback of %s is not called: %s.", call.failed, set_aside.in_short(repr(why)))


def _queues(chord: Chord, document: dict[str, Any], opened: Session) -> Iterator[dict[str, Any]]:
    """Where a worker may be that knows the callbacks: as with Celery, one that took a part, best one that failed.

    The queue of a single worker, which may have left, comes after those of all.
    """
    of_one = Task.queue.startswith("worker.", autoescape=True)
    likeliest = select(Task.queue).where(is_part_of(chord), Task.queue.is_not(None)).group_by(Task.queue)
    order = (of_one, func.bool_and(Task.status == "succeeded"), Task.queue)
    for name in opened.scalars(likeliest.order_by(*order).limit(QUEUES)).all():
        yield own_queue(name) or {"queue": name}
    if name := (document.get("options") or {}).get("queue"):
        yield own_queue(name) or {"queue": name}
    yield {}

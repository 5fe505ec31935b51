"""Submit a chord's body with its parts' values, or fail it with the reason why there are none.

A worker wrote the body. So it is published, and reported, with that worker's rights only, and made of nothing that the
worker may not see: a part that ran in a queue out of its reach is another's, and knowing its id proves nothing.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from celery import Celery
from celery.canvas import maybe_signature
from kombu.exceptions import EncodeError
from sqlalchemy import Row, Text, cast, func, select
from sqlalchemy.orm import Session

from howl.backend import telling_in
from howl.broker.namespaces import Namespace
from howl.broker.transport import publishing_for, publishing_once
from howl.config import Settings
from howl.errors import ChordExpired, ChordRefused
from howl.models import Chord, Task
from howl.outcomes import FINAL_RANK, JOIN_ALL, PART_STATUS
from howl.server.chords import failures as failing
from howl.server.chords.failures import Failure, is_part_of, own_queue
from howl.server.recorder.task_access import Reach

logger = logging.getLogger(__name__)

#: Approximate bytes that a chord's values may take in this process's memory, and bytes of an empty list among them.
VALUES_LIMIT, CONTAINER = 64 << 20, 64
#: Names that are no tasks themselves: a row for one of them is that of a task in it.
COMPOSED = ("celery.chain", "celery.group", "celery.chord")


def submit(
    chord_id: int, opened: Session, settings: Settings, app: Celery, expired: ChordExpired | None = None
) -> None:
    """Publish the body of a chord whose parts have all ended, or fail it; raises whatever a forged one causes."""
    chord = _chord(chord_id, opened)
    with _as_told_by(chord.redis_user, settings, app):
        _submit(chord, opened, app, Reach(app.backend.redis, settings), expired)


def fail(chord_id: int, opened: Session, settings: Settings, app: Celery, reason: str) -> None:
    """Fail the body of a chord that cannot be submitted; raises whatever a forged one causes."""
    chord = _chord(chord_id, opened)
    with _as_told_by(chord.redis_user, settings, app):
        failing.fail(chord, json.loads(chord.body), Failure(reason), opened, app)


def _chord(chord_id: int, opened: Session) -> Chord:
    return opened.execute(select(Chord).where(Chord.chord_id == chord_id)).scalar_one()


@contextmanager
def _as_told_by(user: str | None, settings: Settings, app: Celery) -> Iterator[None]:
    """Publish and report with the user's rights within this context, and leave nothing behind."""
    # Signatures within the body have no application: Celery asks this thread for one, and would otherwise make one
    # with its default broker.
    app.set_current()
    if user is None:
        yield
        return
    known = set(app.amqp.queues)
    with ExitStack() as stack:
        stack.enter_context(publishing_for(user))
        stack.enter_context(telling_in(Namespace(settings.key_prefix, user).key("outcomes")))
        try:
            yield
        finally:
            # Celery remembers every queue name it meets, and there is no end of workers' names.
            for name in set(app.amqp.queues) - known:
                del app.amqp.queues[name]


def _submit(chord: Chord, opened: Session, app: Celery, reach: Reach, expired: ChordExpired | None) -> None:
    document = json.loads(chord.body)
    body, shape = maybe_signature(document, app=app), _shape(json.loads(chord.header))
    if strangers := set(_leaves(shape)).difference(chord.parts):
        raise ChordRefused(f"Task {min(strangers)} is in its header and none of its parts")
    # Of a chain only the first task is published here: only that one can be the replacement of another.
    first = maybe_signature(body.tasks[0], app=app) if body.task == "celery.chain" and body.tasks else body
    last, row = (opened.get(Task, each.id) if each.id else None for each in (body, first))
    for known in (last, row):
        if known is not None and not reach.sees(chord.redis_user, known):
            raise ChordRefused(f"its body is task {known.task_id}, which is another's")
    replaces = row is not None and _replaces(str(first.task), row, chord, opened)
    if (last is not None and last.rank == FINAL_RANK) or (row is not None and not replaces):
        return  # submitted by an earlier server process that ended before it could note it; or cancelled
    failure = Failure(str(expired)) if expired else _why_not(chord, document, opened, reach)
    if failure is None:
        values = _values(_with_added(shape, chord), _values_of(chord, opened))
        failure = _publish(body, values, replaces=replaces)
    if failure is not None:
        logger.warning("Chord body %s fails: %s.", body.id, " ".join(failure.reason[: failing.ERROR_LIMIT].split()))
        failing.fail(chord, document, failure, opened, app)


def _publish(body: Any, values: Any, *, replaces: bool) -> Failure | None:
    """Publish the body, or return why that failed."""
    try:
        # A replacement inherits the task's in-flight mark, because of which it would not be pushed.
        with nullcontext() if replaces else publishing_once():
            body.apply_async((values,), **own_queue(body.options.get("queue")))
    except (EncodeError, TypeError, ValueError) as error:
        return Failure(f"Callback error: {error!r}")
    return None


def _why_not(chord: Chord, document: dict[str, Any], opened: Session, reach: Reach) -> Failure | None:
    """Return why the body gets no values, or None."""
    # One pass that returns no rows of parts: there may be a hundred thousand.
    failures = func.min(Task.task_id).filter(Task.status != "succeeded")
    whose = select(Task.redis_user, Task.queue, func.min(Task.task_id), failures, func.sum(_size()))
    found = opened.execute(whose.where(is_part_of(chord)).group_by(Task.redis_user, Task.queue)).all()
    for owner in found:
        if not reach.sees(chord.redis_user, owner):
            return Failure(f"Task {owner[2]} ran where Redis user {chord.redis_user} may not see its result")
    failed = min((owner[3] for owner in found if owner[3] is not None), default=None)
    if failed is not None and not _joins_all(document):
        return failing.because_of(failed, opened)
    size = int(sum(owner[4] for owner in found))
    if size > VALUES_LIMIT:
        return Failure(f"The values of its parts take {size >> 20:,} MB together, and {VALUES_LIMIT >> 20} are allowed")
    return None


def _size() -> Any:
    """Estimate the bytes of a part's value in memory: if it is mostly empty lists, much more than in JSON."""
    written = func.coalesce(cast(Task.result, Text), "")
    containers = func.length(written) - func.length(func.translate(written, "[{,", ""))
    besides = func.length(func.coalesce(Task.exact, "")) + func.length(func.coalesce(Task.error_message, ""))
    return func.length(written) + CONTAINER * containers + besides


def _replaces(name: str, row: Task, chord: Chord, opened: Session) -> bool:
    """Return whether the row is the task that this chord replaces, whose id the body has, and not the body's run."""
    if row.rank == FINAL_RANK:
        return False
    is_named_otherwise = row.name != name and name not in COMPOSED
    children = select(Task.task_id).where(is_part_of(chord), Task.parent_id == row.task_id)
    return is_named_otherwise or opened.scalar(children.limit(1)) is not None


def _joins_all(document: dict[str, Any]) -> bool:
    headers = document.get("options", {}).get("headers") or {}
    return all(headers.get(name) == value for name, value in JOIN_ALL.items())


def _shape(result: Any) -> Any:
    """Return Celery's tuple of a header's result as lists of ids: Celery's own objects take kilobytes each."""
    task, members = result
    if members is not None:
        return [_shape(member) for member in members]
    return task[0] if isinstance(task, list) else task


def _leaves(shape: Any) -> Iterator[str]:
    if isinstance(shape, list):
        for member in shape:
            yield from _leaves(member)
    else:
        yield shape


def _with_added(shape: Any, chord: Chord) -> Any:
    """Return the shape with added parts behind those that added them; as with Celery, not if it contains groups."""
    if any(isinstance(member, list) for member in shape) or len(shape) >= len(chord.parts):
        return shape
    return chord.parts


def _values(shape: Any, values: dict[str, Any]) -> Any:
    """Return the parts' values in the header's shape: a list for a group, nested lists for nested groups."""
    return [_values(member, values) for member in shape] if isinstance(shape, list) else values[shape]


def _values_of(chord: Chord, opened: Session) -> dict[str, Any]:
    columns = (
        Task.task_id, Task.status, Task.result, Task.exact, Task.worker_id, Task.error_type, Task.error_message,
    )  # fmt: skip
    return {part.task_id: _value(part) for part in opened.execute(select(*columns).where(is_part_of(chord)))}


def _value(part: Row[Any]) -> Any:
    if part.status == "succeeded":
        # A value that JSONB would change is also stored exactly as reported.
        return json.loads(part.exact).get("result", part.result) if part.exact else part.result
    names = ("worker_id", "error_type", "error_message")
    return {PART_STATUS: part.status} | {name: getattr(part, name) for name in names}

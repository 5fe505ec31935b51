"""Submitting tasks: the CLI, the MCP shim and the scheduler all use this module."""

import difflib
import inspect
import json
import uuid
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from celery import Celery
from celery.exceptions import TaskRevokedError
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError
from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from howl import error_callbacks
from howl.bounded_json import parse
from howl.broker.message import NO_TASK, PARSED_BYTES, task_headers
from howl.broker.namespaces import all_namespaces
from howl.broker.transport import publishing_once
from howl.celery import settings_of, worker_queue
from howl.connections.explain import reason
from howl.connections.postgres import explained
from howl.errors import InvalidRequest, QueueUnavailable, UnknownTask, UnknownWorker
from howl.idempotency import require_same
from howl.models import Chord, Task, Worker
from howl.outcomes import FINAL_RANK, NAME_LIMIT, UNSTORABLE, failure
from howl.queue_names import fault_of, require_queue
from howl.server.recorder.task_access import Reach
from howl.submit_hints import hint, problem, signature_of

#: Most bytes of a task's arguments as JSON.
ARGUMENTS_LIMIT = 1 << 20
#: Most nested levels of lists and objects: pydantic, which checks them, stops at about 200.
NEST_LIMIT = 100
#: Most characters of a description or an idempotency key.
TEXT_LIMIT = 20_000
#: Suffixes of kombu's lists of one queue, by priority; messages of each that are searched for one to remove; and
#: messages, of a megabyte each at worst, that are fetched at once.
PRIORITY_SUFFIXES = ("", "\x06\x163", "\x06\x166", "\x06\x169")
SEARCHED, FETCHED = 10_000, 50
#: Most names of workers in an error.
NAMES_TOLD = 50
#: Statuses of tasks that may be retried, and the values that their rows then get.
RETRIABLE = ("failed", "dead", "expired")
AS_NEW: dict[str, Any] = {
    "status": "queued", "rank": 0, "attempts": 0, "worker_id": None, "pushed_at": None, "started_at": None,
    "finished_at": None, "runtime": None, "result": None, "error": None, "exact": None, "error_type": None,
    "error_message": None, "traceback": None, "children": None, "expires_at": None, "target_worker_id": None,
    "redis_user": None,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TaskRequest:
    """A task to be submitted; `worker_id` names the one worker that is to run it."""

    name: str
    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)
    description: str | None = None
    queue: str | None = None
    worker_id: str | None = None
    #: 0 (first) to 9.
    priority: int | None = None
    #: Seconds a run may take before it is killed.
    time_limit: float | None = None
    #: Seconds from now after which it must no longer start.
    expires_in: float | None = None
    idempotency_key: str | None = None
    submitted_by: str | None = None


def submit(request: TaskRequest, session: Session, app: Celery) -> str:
    """Record a task, then push it, and return its id; for a known idempotency key, the id of the first such task.

    Raises UnknownTask, InvalidRequest (also for a known key with another request) or UnknownWorker; then nothing is
    recorded. Raises QueueUnavailable if the row is recorded without `pushed_at`; the server pushes it when Redis is
    back.
    """
    check(request, app)
    with nullcontext() if request.worker_id is None else session.begin_nested():
        task, created = _record(request, session, app)
        if created and request.worker_id is not None:  # a known request is answered even if its worker has left since
            _require_active(request.worker_id, session)
    with explained(f"Look with `howl tasks show {task.task_id}` whether it is recorded before you submit it again:"):
        session.commit()
    if created:
        with explained(f"Task {task.task_id} is recorded and will run, do not submit it again. But"):
            _push_and_note(task, session, app)
    return task.task_id


def _push_and_note(task: Task, session: Session, app: Celery) -> None:
    push(task, app)
    session.execute(update(Task).where(Task.task_id == task.task_id).values(pushed_at=func.now()))
    session.commit()


def push(task: Task, app: Celery) -> None:
    """Push a recorded task to its queue unless it is in flight already; raises QueueUnavailable."""
    queue = worker_queue(task.target_worker_id) if task.target_worker_id else task.queue
    # The server need not know every task that its clients and workers know.
    known = app.tasks.get(task.name)
    publish = known.apply_async if known else partial(app.send_task, task.name)
    try:
        with publishing_once():
            publish(
                task.args, task.kwargs, task_id=task.task_id, priority=task.priority, time_limit=task.time_limit,
                queue=queue, expires=task.expires_at, retry=False,
            )  # fmt: skip
    except (OperationalError, RedisError) as error:
        raise QueueUnavailable(
            f"Task {task.task_id} is recorded, but Redis cannot take it now ({reason(error)}): `howl server` pushes it "
            "as soon as Redis is back. It will run: do not submit it again."
        ) from error


def cancel(task_id: str, session: Session, app: Celery) -> str:
    """Cancel a task that waits, or stop it where it runs, with the parts that it waits for; return the status it had.

    Raises UnknownTask, or QueueUnavailable when Redis is away: then nothing is cancelled.
    """
    task = _recorded(task_id, session)
    if task.rank == FINAL_RANK:
        return task.status
    try:
        if waits := _waits(task):
            app.control.revoke_for_good(task_id)  # first, so that nobody starts it meanwhile
        if waits and take_off_queue(task, app):
            app.backend.append(failure(task.task_id, "REVOKED", TaskRevokedError("cancelled")))
        else:
            app.control.revoke(task_id, terminate=True, signal="SIGTERM")
            _cancel_parts(task_id, session, app)
    except (OperationalError, RedisError) as error:
        raise QueueUnavailable(
            f"Task {task_id} is not cancelled: Redis does not answer ({reason(error)}). Try again."
        ) from error
    return "queued" if _waits(task) else task.status


def _waits(task: Task) -> bool:
    """Return whether no worker has it: see howl.queries.overview.IS_REQUEUED."""
    return task.rank == 0 or (task.status == "started" and task.worker_id is None)


def _cancel_parts(task_id: str, session: Session, app: Celery) -> None:
    """Cancel the parts of a task that a chord has replaced: no worker holds it, so its end is reported here."""
    waiting = select(Chord).where(Chord.body_submitted_at.is_(None), Chord.body.contains(task_id, autoescape=True))
    reach = Reach(app.backend.redis, settings_of(app))
    for chord in session.scalars(waiting):
        # A worker wrote it, and may have named tasks that are not its own.
        named = [task_id, *chord.parts]
        if _id_of_body(chord) == task_id and not reach.foreign(session, chord.redis_user, named):
            app.backend.append(failure(task_id, "REVOKED", TaskRevokedError("cancelled")))
            app.control.revoke(chord.parts, terminate=True, signal="SIGTERM")


def _id_of_body(chord: Chord) -> Any:
    try:
        return json.loads(chord.body)["options"]["task_id"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None  # a worker wrote it


def _recorded(task_id: str, session: Session) -> Task:
    task = None if UNSTORABLE.search(task_id) else session.get(Task, task_id, populate_existing=True)
    if task is None:
        raise UnknownTask(f"No task {task_id!r} is recorded; `howl tasks list` shows the newest.")
    return task


def retry(task_id: str, session: Session, app: Celery) -> None:
    """Queue again a task that failed, died or expired, as the same task, from its first attempt.

    Raises UnknownTask, InvalidRequest when its status is none of these or it cannot be submitted here, or
    QueueUnavailable.
    """
    task = _recorded(task_id, session)
    if task.status not in RETRIABLE:
        raise InvalidRequest(
            f"Task {task_id} is {task.status}: only one that is {', '.join(RETRIABLE)} can be retried."
        )
    request = TaskRequest(name=task.name or "", args=task.args or [], kwargs=task.kwargs or {})
    check(request, app)
    queue = task.queue or _queue_name(request, app)
    require_queue(queue)  # a worker may have named it
    try:
        _forget_the_past(task_id, app)
    except RedisError as error:
        raise QueueUnavailable(
            f"Task {task_id} is not retried: Redis does not answer ({reason(error)}). Try again."
        ) from error
    session.execute(update(Task).where(Task.task_id == task_id).values(queue=queue, **AS_NEW))
    session.commit()
    _push_and_note(session.get_one(Task, task_id, populate_existing=True), session, app)


def _forget_the_past(task_id: str, app: Celery) -> None:
    settings = settings_of(app)
    client: Any = app.backend.redis
    namespaces = all_namespaces(client, settings)
    with client.pipeline(transaction=True) as together:
        for namespace in namespaces:
            together.hdel(namespace.key("dead"), task_id)
            together.hdel(namespace.key("deaths"), task_id, f"back:{task_id}")
        together.hdel(settings.key("inflight"), task_id)
        together.execute()


def take_off_queue(task: Task, app: Celery) -> bool:
    """Remove a waiting task's message; return False if a worker has it, or if it is far down a long queue."""
    settings = settings_of(app)
    client: Any = app.backend.redis
    if fault_of(task.queue or ""):
        return False
    sought = task.task_id.encode()
    for suffix in PRIORITY_SUFFIXES:
        key = settings.key(f"{task.queue}{suffix}")
        for message in _waiting(client, key):
            # Parsing each of 10,000 messages takes a second.
            if sought in message and _id_in(message) == task.task_id and client.lrem(key, -1, message):
                return True
    return False


def _waiting(client: Any, key: str) -> Iterable[bytes]:
    """Yield a queue's messages, the next ones first."""
    for passed in range(0, SEARCHED, FETCHED):
        messages = client.lrange(key, -passed - FETCHED, -passed - 1)
        yield from reversed(messages)
        if len(messages) < FETCHED:
            return


def _id_in(message: bytes) -> Any:
    try:
        return task_headers(parse(message, PARSED_BYTES)).get("id")
    except NO_TASK:
        return None  # not a message of Celery's


# --- what a request must be --------------------------------------------------------------------------------------


def check(request: TaskRequest, app: Celery) -> None:
    """Raise UnknownTask or InvalidRequest, saying what to correct, unless the request can be queued as it is."""
    _check_texts(request)
    _check_numbers(request)
    _check_storable(request)
    _check_arguments(_known_task(request.name, app), request)


def known_tasks(app: Celery) -> dict[str, Any]:
    """Return the tasks that may be submitted, by name: those of the task modules, without Celery's and HOWL's own."""
    app.loader.import_default_modules()
    return {
        name: task
        for name, task in sorted(app.tasks.items())
        if not name.startswith("celery.") and name != error_callbacks.NAME
    }


def _known_task(name: str, app: Celery) -> Any:
    tasks = known_tasks(app)
    if name in tasks:
        return tasks[name]
    close = difflib.get_close_matches(name[:NAME_LIMIT], tasks, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known are: {', '.join(tasks)}."
    raise UnknownTask(f"No task {name[:NAME_LIMIT]!r} is registered; {hint}")


def _check_texts(request: TaskRequest) -> None:
    limits = {"name": NAME_LIMIT, "queue": NAME_LIMIT, "worker_id": NAME_LIMIT, "submitted_by": NAME_LIMIT,
              "description": TEXT_LIMIT, "idempotency_key": NAME_LIMIT}  # fmt: skip
    for name, limit in limits.items():
        value = getattr(request, name)
        if value is None:
            continue
        if not isinstance(value, str) or not value.strip():
            raise InvalidRequest(f"{name} must be a text that is not empty.")
        if len(value) > limit or UNSTORABLE.search(value):
            raise InvalidRequest(f"{name} may have {limit:,} characters, and no NUL or half of one among them.")
    if request.queue is not None:
        require_queue(request.queue)
        if request.worker_id is not None and request.queue != worker_queue(request.worker_id).name:
            raise InvalidRequest(
                "A task goes to one worker or to one queue, from which any takes it: name one of both."
            )


def _check_numbers(request: TaskRequest) -> None:
    priority = request.priority
    if priority is not None and not (isinstance(priority, int) and 0 <= priority <= 9):
        raise InvalidRequest("priority must be a whole number from 0 (first) to 9.")
    for name in ("time_limit", "expires_in"):
        seconds = getattr(request, name)
        if seconds is not None and not (isinstance(seconds, int | float) and 0 < seconds < 10**8):
            raise InvalidRequest(f"{name} must be a number of seconds above 0.")


def _check_storable(request: TaskRequest) -> None:
    if not isinstance(request.args, list) or not isinstance(request.kwargs, dict):
        raise InvalidRequest("args must be a list and kwargs an object with names.")
    try:
        written = json.dumps([request.args, request.kwargs], allow_nan=False, ensure_ascii=False)
        size = len(written.encode())
    except RecursionError:
        raise InvalidRequest(f"The arguments are nested more than {NEST_LIMIT} levels deep.") from None
    except (TypeError, ValueError) as error:  # UnicodeEncodeError, a lone surrogate, is a ValueError
        raise InvalidRequest(f"The arguments are not JSON: {error}.") from None
    if size > ARGUMENTS_LIMIT:
        raise InvalidRequest(
            f"The arguments have {size:,} bytes and {ARGUMENTS_LIMIT:,} are allowed: pass a reference."
        )
    _check_values([request.args, request.kwargs], NEST_LIMIT)


def _check_values(value: Any, levels: int) -> None:
    if levels == 0:
        raise InvalidRequest(f"The arguments are nested more than {NEST_LIMIT} levels deep.")
    if isinstance(value, str) and "\x00" in value:
        raise InvalidRequest("The arguments contain a NUL character, which PostgreSQL cannot store.")
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        for item in value:
            _check_values(item, levels - 1)


def _check_arguments(task: Any, request: TaskRequest) -> None:
    signature = signature_of(task.run)
    try:
        bound = signature.bind(*request.args, **request.kwargs)
        for name, value in bound.arguments.items():
            _check_type(request.name, signature.parameters[name], value)
    except TypeError as error:
        meant = hint(signature, request.args)
        raise InvalidRequest(f"{request.name} cannot be called so: {error}. It takes {signature}.{meant}") from None
    except InvalidRequest as error:
        raise InvalidRequest(f"{error.message}{hint(signature, request.args)}") from None


def _check_type(task_name: str, parameter: inspect.Parameter, value: Any) -> None:
    variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    if parameter.annotation is parameter.empty or isinstance(parameter.annotation, str) or variadic:
        return
    if why := problem(parameter.annotation, value):
        raise InvalidRequest(f"{task_name}: {parameter.name} does not fit: {why}.")


# --- recording ---------------------------------------------------------------------------------------------------


def _require_active(worker_id: str, session: Session) -> None:
    active = session.scalars(select(Worker.worker_id).where(Worker.status == "active").order_by(Worker.worker_id)).all()
    if worker_id not in active:
        names = ", ".join(map(repr, active[:NAMES_TOLD])) or "none"
        raise UnknownWorker(f"Worker {worker_id!r} is not active; active are: {names}.")


def _record(request: TaskRequest, session: Session, app: Celery) -> tuple[Task, bool]:
    """Return the task's row, and whether it is new."""
    row = {
        "task_id": str(uuid.uuid4()),
        "name": request.name,
        "description": request.description,
        "args": request.args,
        "kwargs": request.kwargs,
        "queue": _queue_name(request, app),
        "priority": request.priority,
        "target_worker_id": request.worker_id,
        "time_limit": request.time_limit,
        "expires_at": _moment(request.expires_in, session),
        "submitted_by": request.submitted_by,
        "idempotency_key": request.idempotency_key,
    }
    made = insert(Task).values(row).on_conflict_do_nothing(index_elements=["idempotency_key"]).returning(Task)
    task = session.scalars(made).one_or_none()
    if task is not None:
        return task, True
    first = session.scalars(select(Task).where(Task.idempotency_key == request.idempotency_key)).one()
    require_same(first, row)
    return first, False


def _queue_name(request: TaskRequest, app: Celery) -> str:
    name = str(worker_queue(request.worker_id).name) if request.worker_id is not None else _routed(request, app)
    require_queue(name)
    return name


def _routed(request: TaskRequest, app: Celery) -> str:
    options = {"queue": request.queue} if request.queue else {}
    route = app.amqp.router.route(options, request.name, request.args, request.kwargs)
    return str(getattr(route["queue"], "name", route["queue"]))


def _moment(seconds: float | None, session: Session) -> datetime | None:
    """Return the time that many seconds from now, by PostgreSQL's clock; None for None."""
    return None if seconds is None else session.scalars(select(func.now())).one() + timedelta(seconds=seconds)

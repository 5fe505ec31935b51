"""Read-only questions about what is recorded: the CLI and the MCP shim ask them here.

Answers are plain dicts and lists; times are aware datetimes, lengths of time are seconds.
"""

import json
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Float, Select, and_, case, func, or_, select
from sqlalchemy.orm import Session

from howl import live
from howl.artifacts import list_artifacts
from howl.burst import fate
from howl.connections.postgres import SERVER_PATIENCE, patient
from howl.durations import parse_duration
from howl.errors import HowlError, InvalidRequest, UnknownTask, UnknownWorker
from howl.models import TASK_STATUSES, WORKER_STATUSES, Burst, Task, TaskEvent, Worker
from howl.outcomes import FINAL_RANK, NAME_LIMIT
from howl.server.storable import storable

Row = dict[str, Any]
Question = Select[*tuple[Any, ...]]

#: Most rows a list may have.
LIMIT = 1000
#: Fewest characters of a task's id that may stand for all of it.
PREFIX_LENGTH = 6
#: How many of a task's events are shown, the newest, of its log's lines, and of its files, by name.
EVENTS_SHOWN, LINES_SHOWN, ARTIFACTS_SHOWN = 50, 20, 200
#: What is told of a file beside its task.
ARTIFACT_FACTS = ("name", "media_type", "size", "sha256", "status", "created_at", "expires_at")
DEFAULT_TIME_RANGE = "24h"

#: What a list says of each task: not its arguments and result, which may be large.
TASK_SUMMARY = (
    Task.task_id, Task.name, Task.description, live.status_now, Task.queue, Task.priority, Task.worker_id,
    Task.target_worker_id, Task.submitted_by, Task.attempts, Task.queued_at, Task.started_at, Task.finished_at,
    Task.runtime, Task.error_type, Task.error_message,
)  # fmt: skip
TASK_DETAILS = (
    *TASK_SUMMARY, Task.args, Task.kwargs, Task.result, Task.traceback, Task.time_limit, Task.expires_at,
    Task.pushed_at, Task.idempotency_key, Task.parent_id, Task.root_id, Task.group_id, Task.exact,
)  # fmt: skip
WORKER_SUMMARY = (
    Worker.worker_id, Worker.status, Worker.origin, Worker.hostname, Worker.manager_host, Worker.concurrency,
    Worker.tags, Worker.queues, Worker.version, Worker.run, Worker.registered_at, Worker.last_heartbeat_at,
    Worker.deadline_at, Worker.offline_at,
)  # fmt: skip
BURST_SUMMARY = (
    Burst.burst_id, Burst.origin, Burst.requested_by, Burst.num_workers, Burst.runtime_minutes, Burst.minutes_planned,
    Burst.minutes_used, Burst.request, Burst.run, Burst.started_at, Burst.ended_at,
)  # fmt: skip


# --- tasks and workers -------------------------------------------------------------------------------------------


def list_tasks(
    session: Session,
    *,
    status: str | None = None,
    name: str | None = None,
    worker_id: str | None = None,
    queue: str | None = None,
    limit: int = 50,
    since: str | None = None,
    after: str | None = None,
) -> list[Row]:
    """Tasks, newest first; `since` is a length of time like `24h`, `worker_id` who ran it or was assigned it.

    `after` is the id of a task: those that come after it in this order, whether or not it is among them. Raises
    InvalidRequest, or UnknownTask.
    """
    if not 1 <= limit <= LIMIT:
        raise InvalidRequest(f"limit must be a whole number from 1 to {LIMIT}.")
    question = select(*TASK_SUMMARY).order_by(Task.queued_at.desc(), Task.task_id).limit(limit)
    if status is not None:
        question = question.where(live.status_now == _one_of("status", status, TASK_STATUSES))
    if name is not None:
        question = question.where(Task.name == _text("name", name))
    if worker_id is not None:
        question = question.where(func.coalesce(Task.worker_id, Task.target_worker_id) == _text("worker_id", worker_id))
    if queue is not None:
        question = question.where(Task.queue == _text("queue", queue))
    if since is not None:
        question = question.where(Task.queued_at >= _moment_before_now(since))
    if after is not None:
        question = question.where(_follows(find_task_id(session, after)))
    return _rows(session, question)


def _follows(task_id: str) -> ColumnElement[bool]:
    """Whether a task comes after that one, the newest first."""
    moment = select(Task.queued_at).where(Task.task_id == task_id).scalar_subquery()
    same = and_(Task.queued_at == moment, Task.task_id > task_id)
    return and_(Task.queued_at <= moment, or_(Task.queued_at < moment, same))


def show_task(session: Session, task_id: str) -> Row:
    """Everything recorded of a task, `events` being its newest; the first characters of an id will do.

    `progress` is how far it is, or was when it did not succeed (`done`, `total`, `note`, `at`); `log` the last lines it
    wrote; `artifacts` the files it left; `lost_with` says of each worker that went away while it ran the task what
    became of that worker.

    Raises UnknownTask when no task, or more than one, has such an id.
    """
    found = find_task_id(session, task_id)
    (task,) = _rows(session, select(*TASK_DETAILS).where(Task.task_id == found))
    left = list_artifacts(session, task_id=found, limit=ARTIFACTS_SHOWN)
    return (
        task
        | _in_order(task.pop("exact"))
        | {
            "progress": live.newest_progress(session, found) if task["status"] != "succeeded" else None,
            "log": live.log_lines(live.newest_events(session, found, LINES_SHOWN, ["log"]))[-LINES_SHOWN:],
            "lost_with": fate.lost_with(session, found),
            "artifacts": [{name: row[name] for name in ARTIFACT_FACTS} for row in left],
            "events": _events(session, found),
        }
    )


def _in_order(exact: str | None) -> Row:
    """The result with its keys as they were told, which JSONB sorts; nothing where it has not changed them."""
    told = json.loads(exact) if exact else {}
    return {"result": storable(told["result"])} if "result" in told else {}


def find_task_id(session: Session, task_id: str) -> str:
    """The one recorded id that begins with `task_id` (at least 6 characters of it); raises UnknownTask."""
    given = _text("task_id", task_id)
    if session.scalar(select(Task.task_id).where(Task.task_id == given)):
        return given
    if len(given) < PREFIX_LENGTH:
        raise UnknownTask(f"No task {given!r} is recorded; give {PREFIX_LENGTH} characters of its id or more.")
    begin_so = select(Task.task_id).where(Task.task_id.startswith(given, autoescape=True)).limit(2)
    found = session.scalars(begin_so).all()
    if len(found) > 1:
        raise UnknownTask(f"More than one task's id begins with {given!r}: give more of it.")
    if not found:
        raise UnknownTask(f"No task {given!r} is recorded; `howl tasks list` shows the newest.")
    return found[0]


def list_workers(session: Session, *, status: str | Collection[str] | None = None) -> list[Row]:
    """Workers of one status, of some, or of any; `running` counts their begun tasks.

    First those that are there, by their ids, then others, those heard of last first: so that nobody who reads page by
    page misses any while they are heard of. Raises InvalidRequest.
    """
    heard = func.coalesce(Worker.last_heartbeat_at, Worker.registered_at)
    gone = case((~live.IS_PRESENT, heard))
    question = _workers().order_by(gone.desc().nulls_first())
    if status is not None:
        wanted = [status] if isinstance(status, str) else status
        question = question.where(Worker.status.in_([_one_of("status", one, WORKER_STATUSES) for one in wanted]))
    return _rows(session, question.order_by(Worker.worker_id))


def show_worker(session: Session, worker_id: str) -> Row:
    """Everything recorded of a worker, `tasks` being its counts by status; raises UnknownWorker."""
    given = _text("worker_id", worker_id)
    found = _rows(session, _workers().where(Worker.worker_id == given))
    if not found:
        raise UnknownWorker(f"No worker {given!r} is recorded; `howl workers list --all` shows those that are.")
    return found[0] | _ask_one(session, select(*_counts()).where(Task.worker_id == given))


def _workers() -> Question:
    running = select(func.count()).where(Task.worker_id == Worker.worker_id, live.RUNS)
    return select(*WORKER_SUMMARY, running.scalar_subquery().label("running"))


def _events(session: Session, task_id: str) -> list[Row]:
    """Without progress and log, of which there may be many."""
    columns = (TaskEvent.at, TaskEvent.kind, TaskEvent.worker_id, TaskEvent.data)
    turns = select(*columns).where(TaskEvent.task_id == task_id, TaskEvent.kind.not_in(("progress", "log")))
    return _rows(session, turns.order_by(TaskEvent.event_id.desc()).limit(EVENTS_SHOWN))[::-1]


# --- analytics ---------------------------------------------------------------------------------------------------


def analytics(session: Session, entity_type: str, entity_id: str | None = None, time_range: str | None = None) -> Row:
    """How `overview`, each `worker`, `task` (by name), `queue` or `burst` fared; `entity_id` picks one of them.

    `time_range` is a length of time up to now, 24h when not given; unless a column says otherwise, the tasks counted
    are those queued in it. Raises InvalidRequest, UnknownTask or UnknownWorker.
    """
    question = QUESTIONS[_one_of("entity_type", entity_type, QUESTIONS)]
    given = None if entity_id is None else _text("entity_id", entity_id)
    span = time_range or DEFAULT_TIME_RANGE
    since = _moment_before_now(span)
    session.connection()  # which finds out, within the usual time, whether anybody answers
    with patient(SERVER_PATIENCE):
        rows = question(session, since, given)
    if given is not None and not rows:
        raise _nothing_of(entity_type, given, span)
    return {"entity_type": entity_type, "entity_id": given, "time_range": span, "since": since, "rows": rows}


def _nothing_of(entity_type: str, entity_id: str, span: str) -> HowlError:
    errors: dict[str, type[HowlError]] = {"worker": UnknownWorker, "task": UnknownTask}
    kind = errors.get(entity_type, InvalidRequest)
    return kind(
        f"Nothing is recorded of {entity_type} {entity_id!r} in the last {span}: check the name, or look back further."
    )


def _overview(session: Session, since: datetime, entity_id: str | None) -> list[Row]:
    """One row about everything."""
    if entity_id is not None:
        raise InvalidRequest("overview is about everything and takes no id.")
    tasks = _ask_one(session, select(*_counts(), *_speed()).where(Task.queued_at >= since))
    return [
        tasks
        | {
            "workers": _numbers(session, Worker.status),
            "workers_by_origin": _numbers(session, Worker.origin),
            "throughput": _throughput(session, since),
        }
    ]


def _throughput(session: Session, since: datetime) -> list[Row]:
    """Tasks that ended, hour by hour, in hours that saw any."""
    hour = func.date_trunc("hour", Task.finished_at).label("hour")
    question = select(hour, func.count().label("ended")).where(Task.rank == FINAL_RANK, Task.finished_at >= since)
    return _rows(session, question.group_by(hour).order_by(hour))


def _numbers(session: Session, column: Any) -> dict[str, int]:
    counted = session.execute(select(column, func.count()).group_by(column).order_by(column))
    return {row[0]: row[1] for row in counted}


def _by_worker(session: Session, since: datetime, entity_id: str | None) -> list[Row]:
    """Workers heard of in the time range, and whoever else ran tasks in it."""
    ran = (
        select(Task.worker_id, *_counts(), *_speed(), func.sum(Task.runtime).label("busy_seconds"))
        .where(Task.queued_at >= since, Task.worker_id.is_not(None))
        .group_by(Task.worker_id)
        .subquery()
    )
    name = func.coalesce(Worker.worker_id, ran.c.worker_id)
    seen = (Worker.registered_at.label("first_seen"), Worker.last_heartbeat_at.label("last_seen"))
    facts = (column for column in ran.c if column.name != "worker_id")
    question = select(name.label("worker_id"), Worker.status, Worker.origin, *facts, *seen)
    question = question.select_from(Worker).join(ran, ran.c.worker_id == Worker.worker_id, full=True)
    heard_of = or_(Worker.last_heartbeat_at >= since, Worker.registered_at >= since, ran.c.worker_id.is_not(None))
    return _ask(session, question.where(name == entity_id if entity_id else heard_of).order_by(name))


def _by_task(session: Session, since: datetime, entity_id: str | None) -> list[Row]:
    """What each task, by name, took and how it ended."""
    question = select(Task.name, *_counts(), *_speed(), _median(_wait()).label("wait_median"))
    question = question.where(Task.queued_at >= since).group_by(Task.name).order_by(func.count().desc(), Task.name)
    return _ask(session, question.where(Task.name == entity_id) if entity_id else question)


def _by_queue(session: Session, since: datetime, entity_id: str | None) -> list[Row]:
    """What waits and runs now, whenever it was queued, and what was queued in the time range."""
    queued = live.status_now == "queued"
    age = func.extract("epoch", func.now() - func.min(Task.queued_at).filter(queued)).cast(Float)
    question = select(
        Task.queue,
        func.count().filter(queued).label("waiting"),
        age.label("oldest_waiting"),
        func.count().filter(live.status_now == "started").label("running"),
        *_counts(Task.queued_at >= since),
        _median(_wait()).label("wait_median"),
    )
    question = question.where(or_(Task.queued_at >= since, Task.rank < FINAL_RANK)).group_by(Task.queue)
    return _ask(session, (question.where(Task.queue == entity_id) if entity_id else question).order_by(Task.queue))


def _by_burst(session: Session, since: datetime, entity_id: str | None) -> list[Row]:
    """Bursts begun in the time range or not yet ended."""
    question = select(*BURST_SUMMARY).order_by(Burst.started_at.desc())
    recent = or_(Burst.started_at >= since, Burst.ended_at.is_(None))
    return _rows(session, question.where(Burst.burst_id == entity_id if entity_id else recent))


QUESTIONS: dict[str, Callable[[Session, datetime, str | None], list[Row]]] = {
    "overview": _overview,
    "worker": _by_worker,
    "task": _by_task,
    "queue": _by_queue,
    "burst": _by_burst,
}


# --- columns -----------------------------------------------------------------------------------------------------


def _counts(condition: ColumnElement[bool] | None = None) -> list[ColumnElement[int]]:
    """A column a status; `_folded` makes one `tasks` of them."""
    extra = [] if condition is None else [condition]
    return [func.count().filter(live.status_now == status, *extra).label(f"tasks_{status}") for status in TASK_STATUSES]


def _speed() -> list[ColumnElement[Any]]:
    return [
        _median(Task.runtime).label("runtime_median"),
        func.percentile_cont(0.95).within_group(Task.runtime).label("runtime_p95"),
        func.max(Task.runtime).label("runtime_max"),
    ]


def _median(column: Any) -> ColumnElement[Any]:
    return func.percentile_cont(0.5).within_group(column)


def _wait() -> ColumnElement[Any]:
    """Seconds from queued, by the server's clock, to started, by the worker's, which may be behind."""
    seconds = func.extract("epoch", Task.started_at - Task.queued_at).cast(Float)
    return case((Task.started_at > Task.queued_at, seconds), (Task.started_at.is_not(None), 0.0))


# --- asking ------------------------------------------------------------------------------------------------------


def _ask(session: Session, question: Question) -> list[Row]:
    return [_folded(row) for row in _rows(session, question)]


def _ask_one(session: Session, question: Question) -> Row:
    (row,) = _ask(session, question)
    return row


def _rows(session: Session, question: Question) -> list[Row]:
    return [dict(row) for row in session.execute(question).mappings()]


def _folded(row: Row) -> Row:
    """The columns of `_counts` as one `tasks` by status, their `total`, and `success_rate` of those that ran to an end.

    None where none did; a cancelled or expired task is neither a success nor a failure.
    """
    tasks = {status: row.get(f"tasks_{status}") or 0 for status in TASK_STATUSES}
    others = {name: value for name, value in row.items() if not name.startswith("tasks_")}
    ended = tasks["succeeded"] + tasks["failed"] + tasks["dead"]
    return others | {
        "tasks": {status: number for status, number in tasks.items() if number},
        "total": sum(tasks.values()),
        "success_rate": tasks["succeeded"] / ended if ended else None,
    }


def _one_of(what: str, value: str, allowed: Collection[str]) -> str:
    if value not in allowed:
        raise InvalidRequest(f"{what} must be one of {', '.join(allowed)}.")
    return value


def _text(what: str, value: str) -> str:
    """What PostgreSQL can compare with and an error can show; raises InvalidRequest."""
    if not 0 < len(value) <= NAME_LIMIT or not value.isprintable():
        raise InvalidRequest(f"{what} must have 1 to {NAME_LIMIT} characters, all of them printable.")
    return value


def _moment_before_now(span: str) -> datetime:
    try:
        return datetime.now(UTC) - timedelta(seconds=parse_duration(span))
    except ValueError as error:
        raise InvalidRequest(f"{error}.") from None


def longest_waits(session: Session) -> dict[str, float]:
    """Seconds that the oldest queued task of each queue has waited."""
    waited = func.extract("epoch", func.now() - func.min(Task.queued_at))
    found = session.execute(select(Task.queue, waited).where(Task.rank == 0).group_by(Task.queue))
    return {queue: float(seconds) for queue, seconds in found if queue is not None}

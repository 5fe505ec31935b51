"""Tasks and workers as they are recorded: lists, and the details of one.

Results are plain dicts and lists; times are aware datetimes, lengths of time are seconds.
"""

import json
from collections.abc import Collection

from sqlalchemy import ColumnElement, and_, case, func, or_, select
from sqlalchemy.orm import Session

from howl.artifacts.download import list_artifacts
from howl.errors import InvalidRequest, UnknownTask, UnknownWorker
from howl.models import TASK_STATUSES, WORKER_STATUSES, Task, TaskEvent, Worker
from howl.queries import lost_workers, overview, task_events
from howl.queries.asking import Question, Row, moment_before_now, one_of, rows, text
from howl.queries.counts import ask_one, counts
from howl.run_progress import log_lines
from howl.server.storable import storable

#: Most rows of a list.
LIMIT = 1000
#: Fewest characters that are accepted as the beginning of a task's id.
PREFIX_LENGTH = 6
#: Most events of a task that are shown, the newest; most lines of its log; and most of its files, by name.
EVENTS_SHOWN, LINES_SHOWN, ARTIFACTS_SHOWN = 50, 20, 200
#: Columns of an artifact that are shown with its task.
ARTIFACT_FACTS = ("name", "media_type", "size", "sha256", "status", "created_at", "expires_at")

#: Columns of a task in a list: without its arguments and result, which may be large.
TASK_SUMMARY = (
    Task.task_id, Task.name, Task.description, overview.status_now, Task.queue, Task.priority, Task.worker_id,
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
    """List tasks, newest first; `since` is a length of time like `24h`, `worker_id` who ran it or was assigned it.

    `after` is the id of a task: only tasks after it in this order are listed, whether or not it matches itself. Raises
    InvalidRequest or UnknownTask.
    """
    if not 1 <= limit <= LIMIT:
        raise InvalidRequest(f"limit must be a whole number from 1 to {LIMIT}.")
    question = select(*TASK_SUMMARY).order_by(Task.queued_at.desc(), Task.task_id).limit(limit)
    if status is not None:
        question = question.where(overview.status_now == one_of("status", status, TASK_STATUSES))
    if name is not None:
        question = question.where(Task.name == text("name", name))
    if worker_id is not None:
        question = question.where(func.coalesce(Task.worker_id, Task.target_worker_id) == text("worker_id", worker_id))
    if queue is not None:
        question = question.where(Task.queue == text("queue", queue))
    if since is not None:
        question = question.where(Task.queued_at >= moment_before_now(since))
    if after is not None:
        question = question.where(_follows(find_task_id(session, after)))
    return rows(session, question)


def _follows(task_id: str) -> ColumnElement[bool]:
    """Return the condition that a task comes after this one, newest first."""
    moment = select(Task.queued_at).where(Task.task_id == task_id).scalar_subquery()
    same = and_(Task.queued_at == moment, Task.task_id > task_id)
    return and_(Task.queued_at <= moment, or_(Task.queued_at < moment, same))


def show_task(session: Session, task_id: str) -> Row:
    """Return everything recorded about a task, with its newest `events`; the beginning of an id is enough.

    `progress` is the newest known (`done`, `total`, `note`, `at`), unless the task succeeded; `log` holds the last
    lines it wrote, `artifacts` the files it left, and `lost_with` the fate of each worker that went away while it ran
    the task.

    Raises UnknownTask if no task, or more than one, matches.
    """
    found = find_task_id(session, task_id)
    (task,) = rows(session, select(*TASK_DETAILS).where(Task.task_id == found))
    left = list_artifacts(session, task_id=found, limit=ARTIFACTS_SHOWN)
    return (
        task
        | _in_order(task.pop("exact"))
        | {
            "progress": task_events.newest_progress(session, found) if task["status"] != "succeeded" else None,
            "log": log_lines(task_events.newest_events(session, found, LINES_SHOWN, ["log"]))[-LINES_SHOWN:],
            "lost_with": lost_workers.lost_with(session, found),
            "artifacts": [{name: row[name] for name in ARTIFACT_FACTS} for row in left],
            "events": _events(session, found),
        }
    )


def _in_order(exact: str | None) -> Row:
    """Return the result with its keys in the reported order, which JSONB sorts; nothing if JSONB kept it as it was."""
    told = json.loads(exact) if exact else {}
    return {"result": storable(told["result"])} if "result" in told else {}


def find_task_id(session: Session, task_id: str) -> str:
    """Return the one recorded id that begins with `task_id` (at least 6 characters); raises UnknownTask."""
    given = text("task_id", task_id)
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
    """List workers of one status, of several, or of any; `running` counts the tasks they have started.

    Present workers come first, by id; then the others, the last heard from first. This keeps a reader who goes page by
    page from missing workers as their heartbeats arrive. Raises InvalidRequest.
    """
    heard = func.coalesce(Worker.last_heartbeat_at, Worker.registered_at)
    gone = case((~overview.IS_PRESENT, heard))
    question = _workers().order_by(gone.desc().nulls_first())
    if status is not None:
        wanted = [status] if isinstance(status, str) else status
        question = question.where(Worker.status.in_([one_of("status", one, WORKER_STATUSES) for one in wanted]))
    return rows(session, question.order_by(Worker.worker_id))


def show_worker(session: Session, worker_id: str) -> Row:
    """Return everything recorded about a worker, with its `tasks` counted by status; raises UnknownWorker."""
    given = text("worker_id", worker_id)
    found = rows(session, _workers().where(Worker.worker_id == given))
    if not found:
        raise UnknownWorker(f"No worker {given!r} is recorded; `howl workers list --all` shows those that are.")
    return found[0] | ask_one(session, select(*counts()).where(Task.worker_id == given))


def _workers() -> Question:
    running = select(func.count()).where(Task.worker_id == Worker.worker_id, overview.RUNS)
    return select(*WORKER_SUMMARY, running.scalar_subquery().label("running"))


def _events(session: Session, task_id: str) -> list[Row]:
    """Return the newest events, oldest first, without progress and log, of which there may be many."""
    columns = (TaskEvent.at, TaskEvent.kind, TaskEvent.worker_id, TaskEvent.data)
    turns = select(*columns).where(TaskEvent.task_id == task_id, TaskEvent.kind.not_in(("progress", "log")))
    return rows(session, turns.order_by(TaskEvent.event_id.desc()).limit(EVENTS_SHOWN))[::-1]

"""Events and standings of tasks, queried several times a second by whoever watches them.

Results are plain dicts and lists; times are aware datetimes, lengths of time are seconds.
"""

from collections.abc import Collection

from sqlalchemy import select
from sqlalchemy.orm import Session

from howl.models import Task, TaskEvent
from howl.queries.asking import Row, rows
from howl.queries.overview import status_now
from howl.run_progress import BEGINNINGS, Course

#: Most events of one result.
EVENTS = 1000
#: Newest events, of progress and of the kinds that begin a run, that are read to find a task's progress.
NEEDED = 20

STANDING = (
    Task.task_id, Task.name, status_now, Task.worker_id, Task.target_worker_id, Task.attempts, Task.queued_at,
    Task.started_at, Task.finished_at, Task.runtime, Task.error_type, Task.error_message,
)  # fmt: skip
EVENT = (TaskEvent.event_id, TaskEvent.task_id, TaskEvent.at, TaskEvent.kind, TaskEvent.worker_id, TaskEvent.data)


def standings(session: Session, task_ids: Collection[str]) -> list[Row]:
    """Return the current standing of these tasks."""
    return rows(session, select(*STANDING).where(Task.task_id.in_(task_ids)))


def events_after(session: Session, task_ids: Collection[str], event_id: int) -> list[Row]:
    """Return the events of these tasks after `event_id`, in order, EVENTS at most."""
    question = select(*EVENT).where(TaskEvent.task_id.in_(task_ids), TaskEvent.event_id > event_id)
    return rows(session, question.order_by(TaskEvent.event_id).limit(EVENTS))


def newest_events(session: Session, task_id: str, limit: int = EVENTS, kinds: Collection[str] = ()) -> list[Row]:
    """Return the newest events of this task, of these kinds or of any, in order."""
    newest = select(*EVENT).where(TaskEvent.task_id == task_id).order_by(TaskEvent.event_id.desc()).limit(limit)
    return rows(session, newest.where(TaskEvent.kind.in_(kinds)) if kinds else newest)[::-1]


def newest_progress(session: Session, task_id: str) -> Row | None:
    """Return the progress of the last run: `done`, `total`, `note` (each may be None) and `at`; None if not known."""
    course = Course()
    for event in newest_events(session, task_id, NEEDED, ["progress", *BEGINNINGS]):
        course.notice(event)
    return course.progress

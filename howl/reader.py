"""Reading results for Celery's clients, out of PostgreSQL: what `AsyncResult` asks."""

from typing import Any

from kombu.utils import json
from sqlalchemy import delete, select

from howl.db import session
from howl.models import Artifact, Task, TaskEvent
from howl.outcomes import STATES


class Reader:
    """Answers for the database at one address."""

    def __init__(self, url: str) -> None:
        self.url = url

    def task_meta(self, task_id: str) -> dict[str, Any]:
        """A task as Celery's result backends describe it; PENDING when nothing is recorded under that id."""
        with session(self.url) as opened:
            task = opened.get(Task, task_id)
            if task is None:
                return {"task_id": task_id, "status": "PENDING", "result": None}
            progress = None if task.rank == 0 or task.finished_at else _latest_progress(opened, task_id)
        return _meta(task) | (progress or {})

    def forget(self, task_id: str) -> None:
        """Drop the task's row, events and files, whose content the curator deletes."""
        with session(self.url) as opened:
            opened.execute(delete(Artifact).where(Artifact.task_id == task_id))
            opened.execute(delete(TaskEvent).where(TaskEvent.task_id == task_id))
            opened.execute(delete(Task).where(Task.task_id == task_id))


def _latest_progress(opened: Any, task_id: str) -> dict[str, Any] | None:
    """The custom state a running task last reported with `update_state`; HOWL's own progress has none."""
    newest = select(TaskEvent.data).where(TaskEvent.task_id == task_id).order_by(TaskEvent.event_id.desc()).limit(1)
    data = opened.scalar(newest.where(TaskEvent.kind == "progress", TaskEvent.data.has_key("state")))
    return {"status": data["state"], "result": _values(data.get("result"))} if data else None


def _meta(task: Task) -> dict[str, Any]:
    failed = task.error is not None
    return {
        "task_id": task.task_id,
        "status": STATES[task.status],
        "result": task.error if failed else _values(task.result),
        "traceback": task.traceback,
        "children": task.children,
        "date_done": task.finished_at,
        "group_id": task.group_id,
        "parent_id": task.parent_id,
        "name": task.name,
        "args": task.args,
        "kwargs": task.kwargs,
        "worker": task.worker_id,
        "retries": max(task.attempts - 1, 0),
        "queue": task.queue,
    }


def _values(stored: Any) -> Any:
    """Dates, UUIDs and decimals, which Celery's JSON writes as marked objects, become themselves again."""
    return json.loads(json.dumps(stored))

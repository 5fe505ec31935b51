"""Results for Celery's clients, read from PostgreSQL: the queries behind `AsyncResult`."""

import json
from typing import Any

from sqlalchemy import delete, select

from howl.connections.postgres import session
from howl.models import Artifact, Task, TaskEvent
from howl.node_names import node_name_of
from howl.outcomes import STATES, unmarked


class Reader:
    """A reader of results from the database at one URL."""

    def __init__(self, url: str) -> None:
        self.url = url

    def task_meta(self, task_id: str) -> dict[str, Any]:
        """Describe a task as Celery's result backends do; PENDING if nothing is recorded under that id."""
        with session(self.url) as opened:
            task = opened.get(Task, task_id)
            if task is None:
                return {"task_id": task_id, "status": "PENDING", "result": None}
            progress = None if task.rank == 0 or task.finished_at else _latest_progress(opened, task_id)
        return _meta(task) | (progress or {})

    def forget(self, task_id: str) -> None:
        """Delete the rows of the task, its events and its artifacts; artifact retention deletes their content."""
        with session(self.url) as opened:
            opened.execute(delete(Artifact).where(Artifact.task_id == task_id))
            opened.execute(delete(TaskEvent).where(TaskEvent.task_id == task_id))
            opened.execute(delete(Task).where(Task.task_id == task_id))


def _latest_progress(opened: Any, task_id: str) -> dict[str, Any] | None:
    """Return the custom state a running task last reported with `update_state`; HOWL's own progress has none."""
    newest = select(TaskEvent.data).where(TaskEvent.task_id == task_id).order_by(TaskEvent.event_id.desc()).limit(1)
    data = opened.scalar(newest.where(TaskEvent.kind == "progress", TaskEvent.data.has_key("state")))
    return {"status": data["state"], "result": unmarked(data.get("result"))} if data else None


def _meta(task: Task) -> dict[str, Any]:
    told = _told(task)
    return {
        "task_id": task.task_id,
        "status": STATES[task.status],
        "result": unmarked(told["result"]) if task.error is None else _error(told["error"]),
        "traceback": task.traceback,
        "children": unmarked(task.children),
        "date_done": task.finished_at,
        "group_id": task.group_id,
        "parent_id": task.parent_id,
        "name": task.name,
        "args": unmarked(told["args"]),
        "kwargs": unmarked(told["kwargs"]),
        "worker": task.worker_id and node_name_of(task.worker_id),
        "retries": max(task.attempts - 1, 0),
        "queue": task.queue,
    }


def _told(task: Task) -> dict[str, Any]:
    """Return the task's values exactly as reported, but never let a worker's report replace a submitter's arguments."""
    exact = json.loads(task.exact) if task.exact else {}
    known = {name: getattr(task, name) for name in ("result", "error", "args", "kwargs")}
    of_the_submitter = ("args", "kwargs") if task.pushed_at else ()
    return known | {name: value for name, value in exact.items() if name not in of_the_submitter}


def _error(error: dict[str, Any]) -> dict[str, Any]:
    return error | {"exc_message": unmarked(error.get("exc_message", ""))}

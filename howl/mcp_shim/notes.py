"""Notes that tell a model what to do next, without any text from tasks, workers or clients."""

from typing import Any

from sqlalchemy.orm import Session

from howl.mcp_shim.bounds import SHORT_TEXT, cut
from howl.models import Worker
from howl.outcomes import FINAL_STATUSES, in_command
from howl.queries import overview
from howl.run_progress import in_words

#: How a model goes on waiting for a task.
WAIT = "call get_task with wait_seconds to wait for its end"


def next_step(task: dict[str, Any], session: Session) -> str:
    """Return the next step for a task as `records.show_task` returns it."""
    if task["status"] == "queued":
        return _while_it_waits(task, overview.served_queues(session))
    if task["status"] == "retrying":
        return f"An attempt of it failed, and the next one comes later: {WAIT}."
    if task["status"] in FINAL_STATUSES:
        return f"It has ended; `howl tasks show {in_command(task['task_id'])} --json` prints it uncut."
    worker = session.get(Worker, task["worker_id"]) if task["worker_id"] else None
    if worker is not None and worker.status in ("lost", "offline"):
        return f"Its worker is gone: it goes back on its queue within half a minute or so; {WAIT}."
    return f"It is being worked on: {WAIT}."


def _while_it_waits(task: dict[str, Any], served: set[str]) -> str:
    if task["queue"] is None or task["queue"] in served:
        return f"It waits for a free worker: {WAIT}."
    if task["target_worker_id"]:
        return "It waits for the one worker it was assigned to, which takes no tasks now: cancel_task takes it back."
    if not served:
        return "It waits, and no worker is active: spawn_workers starts some (with `queues`, if it has one of its own)."
    return "It waits, and no active worker takes tasks from its queue: spawn_workers with `queues` starts some that do."


def after_submitting(task_id: str, error: str) -> str:
    """Return the note on a task that was recorded but could then not be read because of `error`."""
    return f"Task {task_id} is recorded and will run: do not submit it again; get_task shows it. Only now: {error}"


def after_cancelling(status: str) -> str:
    """Return the note on a cancellation; `status` is the task's status before it."""
    if status in FINAL_STATUSES:
        return "It had ended already, and stays as it is."
    return "Cancellation is on its way to the workers: get_task with wait_seconds confirms it."


def so_far(progress: Any) -> str:
    """Return progress as `: 34/100, fetching`, or an empty text if the task has reported none."""
    told = cut(in_words(progress), SHORT_TEXT) if isinstance(progress, dict) else ""
    return f": {told}" if told else ""

"""What the database holds of a burst: its row, its workers, their tasks."""

from typing import Any

from sqlalchemy import func, select, update

from howl import db
from howl.models import Burst, Task, Worker

#: Numbers of tasks by worker and status.
TaskCounts = dict[str, dict[str, int]]


def begin(database_url: str, **values: Any) -> None:
    """Write a burst's row, with values by column name; raises DatabaseUnavailable."""
    with db.session(database_url) as session:
        session.add(Burst(**values))


def end(database_url: str, burst_id: str, minutes_used: float) -> None:
    """Note that a burst is over; raises DatabaseUnavailable."""
    with db.session(database_url) as session:
        row = update(Burst).where(Burst.burst_id == burst_id)
        session.execute(row.values(ended_at=func.now(), minutes_used=minutes_used))


def count(database_url: str, worker_ids: list[str]) -> tuple[int, TaskCounts]:
    """How many of these workers have registered, and the tasks they began; raises DatabaseUnavailable."""
    tasks: TaskCounts = {name: {} for name in worker_ids}
    with db.session(database_url) as session:
        registered = session.scalar(select(func.count()).where(Worker.worker_id.in_(worker_ids)))
        question = select(Task.worker_id, Task.status, func.count()).where(Task.worker_id.in_(worker_ids))
        for name, status, number in session.execute(question.group_by(Task.worker_id, Task.status)):
            tasks[str(name)][status] = number
    return registered or 0, tasks

"""Present workers, running tasks and recent ends, in bounded queries that are made several times a second.

Results are plain dicts and lists; times are aware datetimes, lengths of time are seconds.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import and_, case, func, literal, select
from sqlalchemy.orm import Session

from howl.models import PRESENT, Task, TaskEvent, Worker
from howl.outcomes import FINAL_RANK, FINAL_STATUSES
from howl.queries.asking import Row, rows

#: Most names of queues in one result.
QUEUES = 1000
#: Most rows of each list of the overview; its totals count all.
SHOWN = 200
#: Newest events, of all tasks, that are read for recent ends and their rate; and most seconds the rate is taken over.
NEWEST, SPAN = 5000, 10
#: Most recent ends that are shown.
ENDS = 50

IS_PRESENT = Worker.status.in_(PRESENT)
# A literal in the statement: with a bound parameter, PostgreSQL cannot tell that the partial index applies.
RUNS = Task.status == literal("started", literal_execute=True)
#: A run that was broken off and whose message is back on its queue: no worker holds it.
IS_REQUEUED = and_(RUNS, Task.worker_id.is_(None), Task.started_at.is_not(None))
#: The status of a task as shown. The row of a requeued task stays `started`, because maintenance pushes queued tasks,
#: and a worker's report alone must not cause that.
status_now = case((IS_REQUEUED, "queued"), else_=Task.status).label("status")


def house(session: Session) -> Row:
    """Return present workers, running tasks, recent ends, and the number of ends per second.

    The lists have at most SHOWN rows; `workers_total` and `running_total` count all. `concurrency_total` is how many
    tasks all present workers can run at once. `running_on_gone` counts running tasks whose workers are no longer
    present: their end, or their return to the queue, is not known yet.
    """
    numbers = _running_by_worker(session)
    workers = [worker | {"running": numbers.get(worker["worker_id"], 0)} for worker in _present(session)]
    crew = session.execute(select(Worker.worker_id, Worker.concurrency).where(IS_PRESENT))
    present: dict[str | None, int | None] = {row[0]: row[1] for row in crew}
    return {
        "at": session.scalar(select(func.now())),
        "workers": workers,
        "workers_total": len(present),
        "concurrency_total": sum(number or 0 for number in present.values()),
        "running": _running(session),
        "running_total": sum(numbers.values()),
        "running_on_gone": sum(number for worker_id, number in numbers.items() if worker_id not in present),
        "ended": _just_ended(session),
        "ended_per_second": _speed(session),
    }


def _present(session: Session) -> list[Row]:
    columns = (Worker.worker_id, Worker.status, Worker.origin, Worker.concurrency, Worker.deadline_at, Worker.tags)
    there = select(*columns, Worker.last_heartbeat_at).where(IS_PRESENT)
    return rows(session, there.order_by(Worker.worker_id).limit(SHOWN))


def _running_by_worker(session: Session) -> dict[str | None, int]:
    counted = session.execute(select(Task.worker_id, func.count()).where(RUNS, ~IS_REQUEUED).group_by(Task.worker_id))
    return {row[0]: row[1] for row in counted}


def _running(session: Session) -> list[Row]:
    columns = (Task.task_id, Task.name, Task.worker_id, Task.attempts, Task.started_at)
    runs = select(*columns).where(RUNS, ~IS_REQUEUED)
    return rows(session, runs.order_by(Task.started_at.desc(), Task.task_id).limit(SHOWN))


def _just_ended(session: Session) -> list[Row]:
    """Return recent ends, newest first; there may be fewer than ENDS where other events are many."""
    newest = _newest()
    ends = (
        select(newest.c.event_id, newest.c.task_id)
        .where(newest.c.kind.in_(FINAL_STATUSES))
        .order_by(newest.c.event_id.desc())
        .limit(ENDS)
        .subquery()
    )
    columns = (Task.task_id, Task.name, Task.status, Task.worker_id, Task.finished_at, Task.runtime, Task.error_type)
    question = select(*columns).join(ends, ends.c.task_id == Task.task_id)
    return rows(session, question.order_by(ends.c.event_id.desc()))


def _speed(session: Session) -> float:
    """Return ends per second over the last SPAN seconds, or over the part of them that the newest events cover."""
    newest = _newest()
    recent = newest.c.at > func.now() - func.make_interval(0, 0, 0, 0, 0, 0, SPAN)
    ends = func.count().filter(newest.c.kind.in_(FINAL_STATUSES), recent)
    age: Any = func.extract("epoch", func.now() - func.min(newest.c.at))
    number, known, total = session.execute(select(ends, age, func.count())).one()
    seconds = SPAN if total < NEWEST else min(SPAN, max(float(known), 0.5))
    return number / seconds


# --- queues ------------------------------------------------------------------------------------------------------


def served_queues(session: Session) -> set[str]:
    """Return the names of the queues from which active workers take tasks, each worker's own included."""
    active = session.execute(select(Worker.worker_id, Worker.queues).where(Worker.status == "active"))
    return {queue for worker_id, queues in active for queue in (*queues, f"worker.{worker_id}")}


def queues_with_waiting_tasks(session: Session) -> set[str]:
    """Return the names of the queues in which submitted tasks wait, QUEUES at most."""
    waits = Task.rank < FINAL_RANK, status_now == "queued", Task.queue.is_not(None)
    return {str(queue) for queue in session.scalars(select(Task.queue).where(*waits).distinct().limit(QUEUES))}


# --- asking ------------------------------------------------------------------------------------------------------


def _newest() -> Any:
    columns = (TaskEvent.event_id, TaskEvent.task_id, TaskEvent.kind, TaskEvent.at)
    return select(*columns).order_by(TaskEvent.event_id.desc()).limit(NEWEST).subquery()


def age(moment: datetime | None, now: datetime) -> float | None:
    """Return the seconds from `moment` to `now`, never below 0, because the clocks of two machines differ."""
    return None if moment is None else max(0.0, (now - moment).total_seconds())


def longest_waits(session: Session) -> dict[str, float]:
    """Return the seconds that the oldest queued task of each queue has waited."""
    waited = func.extract("epoch", func.now() - func.min(Task.queued_at))
    found = session.execute(select(Task.queue, waited).where(Task.rank == 0).group_by(Task.queue))
    return {queue: float(seconds) for queue, seconds in found if queue is not None}

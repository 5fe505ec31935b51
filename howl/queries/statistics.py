"""Statistics of tasks, workers, queues and bursts over a length of time.

Results are plain dicts and lists; times are aware datetimes, lengths of time are seconds.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Float, case, func, or_, select
from sqlalchemy.orm import Session

from howl.connections.postgres import SERVER_PATIENCE, patient
from howl.errors import HowlError, InvalidRequest, UnknownTask, UnknownWorker
from howl.models import Burst, Task, Worker
from howl.outcomes import FINAL_RANK
from howl.queries.asking import Row, moment_before_now, one_of, rows, text
from howl.queries.counts import ask, ask_one, counts
from howl.queries.overview import status_now

DEFAULT_TIME_RANGE = "24h"

BURST_SUMMARY = (
    Burst.burst_id, Burst.origin, Burst.requested_by, Burst.num_workers, Burst.runtime_minutes, Burst.minutes_planned,
    Burst.minutes_used, Burst.request, Burst.run, Burst.started_at, Burst.ended_at,
)  # fmt: skip


def analytics(session: Session, entity_type: str, entity_id: str | None = None, time_range: str | None = None) -> Row:
    """Return statistics of the `overview`, or by `worker`, `task` (name), `queue` or `burst`; `entity_id` picks one.

    `time_range` is a length of time up to now, by default 24h. Unless a column says otherwise, the tasks queued in it
    are counted. Raises InvalidRequest, UnknownTask or UnknownWorker.
    """
    question = QUESTIONS[one_of("entity_type", entity_type, QUESTIONS)]
    given = None if entity_id is None else text("entity_id", entity_id)
    span = time_range or DEFAULT_TIME_RANGE
    since = moment_before_now(span)
    session.connection()  # finds out, within the usual timeout, whether the database answers
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
    """Return one row about everything."""
    if entity_id is not None:
        raise InvalidRequest("overview is about everything and takes no id.")
    tasks = ask_one(session, select(*counts(), *_speed()).where(Task.queued_at >= since))
    return [
        tasks
        | {
            "workers": _numbers(session, Worker.status),
            "workers_by_origin": _numbers(session, Worker.origin),
            "throughput": _throughput(session, since),
        }
    ]


def _throughput(session: Session, since: datetime) -> list[Row]:
    """Count the tasks that ended, by hour; hours without any are left out."""
    hour = func.date_trunc("hour", Task.finished_at).label("hour")
    question = select(hour, func.count().label("ended")).where(Task.rank == FINAL_RANK, Task.finished_at >= since)
    return rows(session, question.group_by(hour).order_by(hour))


def _numbers(session: Session, column: Any) -> dict[str, int]:
    counted = session.execute(select(column, func.count()).group_by(column).order_by(column))
    return {row[0]: row[1] for row in counted}


def _by_worker(session: Session, since: datetime, entity_id: str | None) -> list[Row]:
    """Return the workers heard from in the time range, and all others that ran tasks queued in it."""
    ran = (
        select(Task.worker_id, *counts(), *_speed(), func.sum(Task.runtime).label("busy_seconds"))
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
    return ask(session, question.where(name == entity_id if entity_id else heard_of).order_by(name))


def _by_task(session: Session, since: datetime, entity_id: str | None) -> list[Row]:
    """Return the durations and endings of tasks, by name."""
    question = select(Task.name, *counts(), *_speed(), _median(_wait()).label("wait_median"))
    question = question.where(Task.queued_at >= since).group_by(Task.name).order_by(func.count().desc(), Task.name)
    return ask(session, question.where(Task.name == entity_id) if entity_id else question)


def _by_queue(session: Session, since: datetime, entity_id: str | None) -> list[Row]:
    """Return what waits and runs now, whenever it was queued, and what was queued in the time range."""
    queued = status_now == "queued"
    age = func.extract("epoch", func.now() - func.min(Task.queued_at).filter(queued)).cast(Float)
    question = select(
        Task.queue,
        func.count().filter(queued).label("waiting"),
        age.label("oldest_waiting"),
        func.count().filter(status_now == "started").label("running"),
        *counts(Task.queued_at >= since),
        _median(_wait()).label("wait_median"),
    )
    question = question.where(or_(Task.queued_at >= since, Task.rank < FINAL_RANK)).group_by(Task.queue)
    return ask(session, (question.where(Task.queue == entity_id) if entity_id else question).order_by(Task.queue))


def _by_burst(session: Session, since: datetime, entity_id: str | None) -> list[Row]:
    """Return bursts that began in the time range or have not ended."""
    question = select(*BURST_SUMMARY).order_by(Burst.started_at.desc())
    recent = or_(Burst.started_at >= since, Burst.ended_at.is_(None))
    return rows(session, question.where(Burst.burst_id == entity_id if entity_id else recent))


QUESTIONS: dict[str, Callable[[Session, datetime, str | None], list[Row]]] = {
    "overview": _overview,
    "worker": _by_worker,
    "task": _by_task,
    "queue": _by_queue,
    "burst": _by_burst,
}


def _speed() -> list[ColumnElement[Any]]:
    return [
        _median(Task.runtime).label("runtime_median"),
        func.percentile_cont(0.95).within_group(Task.runtime).label("runtime_p95"),
        func.max(Task.runtime).label("runtime_max"),
    ]


def _median(column: Any) -> ColumnElement[Any]:
    return func.percentile_cont(0.5).within_group(column)


def _wait() -> ColumnElement[Any]:
    """Return the seconds from queued, by the server's clock, to started, by the worker's clock, which may be behind."""
    seconds = func.extract("epoch", Task.started_at - Task.queued_at).cast(Float)
    return case((Task.started_at > Task.queued_at, seconds), (Task.started_at.is_not(None), 0.0))

"""Read-only questions that are asked several times a second: each goes by an index, and its answer is bounded.

Answers are plain dicts and lists; times are aware datetimes, lengths of time are seconds.
"""

import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, and_, case, func, literal, select
from sqlalchemy.orm import Session

from howl.models import PRESENT, Task, TaskEvent, Worker
from howl.outcomes import FINAL_RANK, FINAL_STATUSES

Row = dict[str, Any]

#: Most events of one answer.
EVENTS = 1000
#: Rows of each list of a house; its totals count all.
SHOWN = 200
#: How many of the newest events, whoever's, tell what just ended and how fast; and how many seconds of them.
NEWEST, SPAN = 5000, 10
#: Ends that are shown.
ENDS = 50
#: Events at which a run may begin anew, and how many of the newest, with progress among them, tell how far it is.
BEGINNINGS, NEEDED = ("received", "started", "retrying", "requeued"), 20

IS_PRESENT = Worker.status.in_(PRESENT)
# Written out in the statement, or PostgreSQL could not tell that the partial index serves.
RUNS = Task.status == literal("started", literal_execute=True)
#: A run that was broken off, and whose message is back on its queue: no worker has it.
IS_REQUEUED = and_(RUNS, Task.worker_id.is_(None), Task.started_at.is_not(None))
#: How a task stands, to whoever asks. The record says `started` of what is on its queue again, for the keeper pushes
#: what is queued, and a worker's word alone must not bring it to that.
status_now = case((IS_REQUEUED, "queued"), else_=Task.status).label("status")

STANDING = (
    Task.task_id, Task.name, status_now, Task.worker_id, Task.target_worker_id, Task.attempts, Task.queued_at,
    Task.started_at, Task.finished_at, Task.runtime, Task.error_type, Task.error_message,
)  # fmt: skip
EVENT = (TaskEvent.event_id, TaskEvent.task_id, TaskEvent.at, TaskEvent.kind, TaskEvent.worker_id, TaskEvent.data)


# --- tasks -------------------------------------------------------------------------------------------------------


def standings(session: Session, task_ids: Collection[str]) -> list[Row]:
    """How these tasks stand."""
    return _rows(session, select(*STANDING).where(Task.task_id.in_(task_ids)))


def events_after(session: Session, task_ids: Collection[str], event_id: int) -> list[Row]:
    """What happened to these tasks after that event, in order, EVENTS at most."""
    question = select(*EVENT).where(TaskEvent.task_id.in_(task_ids), TaskEvent.event_id > event_id)
    return _rows(session, question.order_by(TaskEvent.event_id).limit(EVENTS))


def newest_events(session: Session, task_id: str, limit: int = EVENTS, kinds: Collection[str] = ()) -> list[Row]:
    """What happened to this task last, of these kinds or of any, in order."""
    newest = select(*EVENT).where(TaskEvent.task_id == task_id).order_by(TaskEvent.event_id.desc()).limit(limit)
    return _rows(session, newest.where(TaskEvent.kind.in_(kinds)) if kinds else newest)[::-1]


def newest_progress(session: Session, task_id: str) -> Row | None:
    """How far the task's last run is: `done`, `total`, `note` (each may be None) and `at`; None if nobody knows."""
    course = Course()
    for event in newest_events(session, task_id, NEEDED, ["progress", *BEGINNINGS]):
        course.notice(event)
    return course.progress


@dataclass
class Course:
    """How far the run is that a task's events, in the order in which they were recorded, end with.

    Of a run two ways bring news, and either may be the quicker: over NATS come `received` and what HOWL's `progress()`
    says; with the outcomes `started`, `retrying` and what Celery's `update_state` says. So not all that begins a run
    is newer than the progress known.
    """

    progress: Row | None = None
    #: The event that told it.
    _told: Row | None = None
    #: Celery's retries plus one, of the run that was last received.
    _attempt: int = 1

    def notice(self, event: Row) -> None:
        """Take in what happened next."""
        if event["kind"] == "progress":
            self.progress, self._told = {"at": event["at"], **progress(event["data"])}, event
        elif self._told is not None and event["kind"] in BEGINNINGS and self._ends(event, self._told):
            self.progress = self._told = None
        if event["kind"] == "received":
            self._attempt = _attempt(event)

    def _ends(self, event: Row, told: Row) -> bool:
        """Whether that progress was a run's before the one that this begins, or whose end it is."""
        by_outcome, kind = "state" in told["data"], event["kind"]
        attempt = _attempt(told) if by_outcome else self._attempt
        if kind == "requeued":
            return True
        if kind == "retrying":
            return _attempt(event) >= attempt
        if not by_outcome:
            return bool(kind == "received")
        return (
            event["worker_id"] != told["worker_id"]
            or _attempt(event) > attempt
            or (kind == "started" and event["data"].get("pid") != told["data"].get("pid"))
        )


def _attempt(event: Row) -> int:
    name, before = ("retries", 1) if event["kind"] == "received" else ("attempt", 0)
    number = _number(event["data"].get(name))
    return before + int(number) if number is not None else 1


def progress(data: Mapping[str, Any]) -> Row:
    """What a task said of its progress, also by Celery's own `update_state`, in whose words `current` is `done`."""
    if "state" not in data:
        return {"done": _number(data.get("done")), "total": _number(data.get("total")), "note": data.get("note")}
    told = data.get("result")
    if not isinstance(told, dict):
        return {"done": None, "total": None, "note": f"{data['state']} {_inline(told)}".rstrip()}
    done = _number(told.get("done", told.get("current")))
    note = data["state"] if done is not None else f"{data['state']} {_inline(told)}"
    return {"done": done, "total": _number(told.get("total")), "note": note}


def in_words(told: Mapping[str, Any]) -> str:
    """`34/100, fetching`: what is known of it, as it was said."""
    done, total = (_written(told.get(name)) for name in ("done", "total"))
    count = f"{done}/{total}" if done and total else done
    return ", ".join(str(part) for part in (count, told.get("note")) if part)


def log_lines(events: Iterable[Row]) -> list[str]:
    """The lines that these events' tasks wrote; where some were left out, a line says how many."""
    lines: list[str] = []
    for event in events:
        if event["kind"] == "log":
            lines += lines_of(event["data"])
    return lines


def lines_of(data: Mapping[str, Any]) -> list[str]:
    """The lines of one `log` event."""
    dropped, lines = data.get("dropped"), data.get("lines")
    left_out = [f"… {dropped:,} lines left out"] if isinstance(dropped, int) and dropped > 0 else []
    return left_out + ([str(line) for line in lines] if isinstance(lines, list) else [])


def _number(value: Any) -> float | None:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if fits else None


def _written(number: float | None) -> str:
    """`1,234`, `0.5`; nothing for None."""
    if number is None:
        return ""
    return f"{round(number):,}" if float(number).is_integer() else f"{number:,.2f}"


def _inline(value: Any) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False)


# --- the house ---------------------------------------------------------------------------------------------------


def house(session: Session) -> Row:
    """Workers that are there, tasks that run, what just ended, and how many end a second.

    `workers_total` and `running_total` count what the lists, of SHOWN rows at most, leave out; `concurrency_total` is
    how many tasks all these workers run at once, `running_on_gone` how many of those that run are on workers that are
    no longer there: their end, or their return to the queue, is not known yet.
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
    return _rows(session, there.order_by(Worker.worker_id).limit(SHOWN))


def _running_by_worker(session: Session) -> dict[str | None, int]:
    counted = session.execute(select(Task.worker_id, func.count()).where(RUNS, ~IS_REQUEUED).group_by(Task.worker_id))
    return {row[0]: row[1] for row in counted}


def _running(session: Session) -> list[Row]:
    columns = (Task.task_id, Task.name, Task.worker_id, Task.attempts, Task.started_at)
    runs = select(*columns).where(RUNS, ~IS_REQUEUED)
    return _rows(session, runs.order_by(Task.started_at.desc(), Task.task_id).limit(SHOWN))


def _just_ended(session: Session) -> list[Row]:
    """The newest first; there may be fewer than ENDS where other events are many."""
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
    return _rows(session, question.order_by(ends.c.event_id.desc()))


def _speed(session: Session) -> float:
    """Ends a second in the last SPAN seconds, or in as many of them as the newest events tell of."""
    newest = _newest()
    recent = newest.c.at > func.now() - func.make_interval(0, 0, 0, 0, 0, 0, SPAN)
    ends = func.count().filter(newest.c.kind.in_(FINAL_STATUSES), recent)
    age: Any = func.extract("epoch", func.now() - func.min(newest.c.at))
    number, known, total = session.execute(select(ends, age, func.count())).one()
    seconds = SPAN if total < NEWEST else min(SPAN, max(float(known), 0.5))
    return number / seconds


# --- queues ------------------------------------------------------------------------------------------------------


def served_queues(session: Session) -> set[str]:
    """Names of the queues from which active workers take tasks, each worker's own among them."""
    active = session.execute(select(Worker.worker_id, Worker.queues).where(Worker.status == "active"))
    return {queue for worker_id, queues in active for queue in (*queues, f"worker.{worker_id}")}


def queues_with_waiting_tasks(session: Session) -> set[str]:
    """Names of the queues in which submitted tasks wait, EVENTS at most."""
    waits = Task.rank < FINAL_RANK, status_now == "queued", Task.queue.is_not(None)
    return {str(queue) for queue in session.scalars(select(Task.queue).where(*waits).distinct().limit(EVENTS))}


# --- asking ------------------------------------------------------------------------------------------------------


def _newest() -> Any:
    columns = (TaskEvent.event_id, TaskEvent.task_id, TaskEvent.kind, TaskEvent.at)
    return select(*columns).order_by(TaskEvent.event_id.desc()).limit(NEWEST).subquery()


def age(moment: datetime | None, now: datetime) -> float | None:
    """Seconds from then to now; none below 0, for the clocks of two machines differ."""
    return None if moment is None else max(0.0, (now - moment).total_seconds())


def _rows(session: Session, question: Select[*tuple[Any, ...]]) -> list[Row]:
    return [dict(row) for row in session.execute(question).mappings()]

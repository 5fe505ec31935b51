"""Bursts in the database: a burst's row, its workers, their tasks."""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, func, select, text, update
from sqlalchemy.orm import Session

from howl.bursts.request import BurstRequest
from howl.connections import postgres
from howl.errors import UnknownBurst
from howl.models import Burst, Task, Worker

#: Values of bursts.origin: where a burst's workers run.
ON_GITHUB, ON_THIS_MACHINE = "github-actions", "local"
#: Fewest characters that may abbreviate a burst's id, and most that an id may have.
PREFIX_LENGTH, ID_LENGTH = 6, 64
#: Most bursts in a list.
LIMIT = 1000

#: Numbers of tasks by worker and status.
TaskCounts = dict[str, dict[str, int]]


def begin(database_url: str, **values: Any) -> None:
    """Insert a burst's row, with values by column name; raises DatabaseUnavailable."""
    with postgres.session(database_url) as session:
        session.add(Burst(**values))


def end(database_url: str, burst_id: str, minutes_used: float) -> None:
    """Record that a burst has ended; raises DatabaseUnavailable."""
    with postgres.session(database_url) as session:
        row = update(Burst).where(Burst.burst_id == burst_id)
        session.execute(row.values(ended_at=func.now(), minutes_used=minutes_used))


def count(database_url: str, worker_ids: list[str]) -> tuple[int, TaskCounts]:
    """Count these workers that have registered, and the tasks they began; raises DatabaseUnavailable."""
    tasks: TaskCounts = {name: {} for name in worker_ids}
    with postgres.session(database_url) as session:
        registered = session.scalar(select(func.count()).where(Worker.worker_id.in_(worker_ids)))
        question = select(Task.worker_id, Task.status, func.count()).where(Task.worker_id.in_(worker_ids))
        for name, status, number in session.execute(question.group_by(Task.worker_id, Task.status)):
            tasks[str(name)][status] = number
    return registered or 0, tasks


def running_here(database_url: str, since: float) -> set[str]:
    """Return ids of bursts on this machine that began within the last `since` seconds and have not ended."""
    recent = Burst.started_at > datetime.now(UTC) - timedelta(seconds=since)
    with postgres.session(database_url) as session:
        return set(
            session.scalars(
                select(Burst.burst_id).where(Burst.origin == ON_THIS_MACHINE, Burst.ended_at.is_(None), recent)
            )
        )


def installation(session: Session) -> str:
    """Return what identifies this database: PostgreSQL's system identifier, and the database's name."""
    number, name = session.execute(text("SELECT system_identifier, current_database() FROM pg_control_system()")).one()
    return f"{number}/{name}"


def find(session: Session, burst_id: str) -> Burst:
    """Return the one burst whose id begins with `burst_id` (6 characters or more); raises UnknownBurst."""
    if not (PREFIX_LENGTH <= len(burst_id) <= ID_LENGTH and burst_id.isalnum()):
        raise UnknownBurst(
            f"No burst has such an id: give {PREFIX_LENGTH} characters of one, as `howl burst list` shows."
        )
    found = session.scalars(select(Burst).where(Burst.burst_id.startswith(burst_id)).limit(2)).all()
    if len(found) != 1:
        several = "More than one burst's id begins" if found else "No burst's id begins"
        raise UnknownBurst(f"{several} with {burst_id!r}: `howl burst list` shows them.")
    return found[0]


def list_all(session: Session, seconds: float) -> list[dict[str, Any]]:
    """Return bursts that began within the last `seconds`, or have not ended, newest first."""
    recent = (Burst.started_at > datetime.now(UTC) - timedelta(seconds=seconds)) | Burst.ended_at.is_(None)
    rows = session.scalars(select(Burst).where(recent).order_by(Burst.started_at.desc()).limit(LIMIT))
    return [summary(session, row) for row in rows]


def summary(session: Session, row: Burst) -> dict[str, Any]:
    """Return a burst as a list shows it."""
    return {
        "burst_id": row.burst_id,
        "origin": row.origin,
        "status": status(row),
        "num_workers": row.num_workers,
        "registered": len(crew(session, row)),
        "runtime_minutes": row.runtime_minutes,
        "minutes_planned": row.minutes_planned,
        "minutes_used": row.minutes_used,
        "requested_by": row.requested_by,
        "started_at": row.started_at,
        "ended_at": row.ended_at,
        "run": row.run,
        "reason": row.request.get("refused") or row.request.get("failed"),
    }


def status(row: Burst) -> str:
    """Return `refused`, `failed` (no run began), `starting`, `running`, `stopping`, `cancelled` or `ended`."""
    if row.request.get("refused"):
        return "refused"
    if row.request.get("failed"):
        return "failed"
    if row.ended_at is not None:
        return "cancelled" if row.run.get("conclusion") == "cancelled" else "ended"
    if "conclusion" in row.run:
        return "stopping"
    return "starting" if row.origin == ON_GITHUB and "run_id" not in row.run else "running"


def crew(session: Session, row: Burst) -> list[Worker]:
    """Return the burst's registered workers: on GitHub those of its run, on this machine those with its names."""
    if row.origin != ON_GITHUB:
        names = BurstRequest(burst_id=row.burst_id, workers=row.num_workers, runtime=1).names
        ours: ColumnElement[bool] = Worker.worker_id.in_(names)
    elif "run_id" in row.run:
        run = {name: row.run[name] for name in ("repository", "run_id", "attempt", "index") if name in row.run}
        ours = Worker.run.contains(run)
        if whose := row.run.get("credential"):
            # Workers with another credential may claim to be of any run.
            ours &= func.coalesce(Worker.credential, whose) == whose
    else:
        return []
    return list(session.scalars(select(Worker).where(ours).order_by(Worker.worker_id)))


def conclude(session: Session, burst_id: str, conclusion: str) -> None:
    """Record how the burst's run ended, as GitHub reports it; the first conclusion stays."""
    row = session.get_one(Burst, burst_id, with_for_update=True, populate_existing=True)
    row.run = {"conclusion": conclusion} | row.run

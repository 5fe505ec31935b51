"""Shutting workers down remotely, by draining or at once, for the CLI."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError
from sqlalchemy import select
from sqlalchemy.orm import Session

from howl.celery import settings_of
from howl.connections import postgres
from howl.connections.explain import reason
from howl.errors import QueueUnavailable, UnknownWorker, WorkerSilent
from howl.models import PRESENT, Worker
from howl.node_names import worker_id_of

Row = dict[str, Any]
Order = Literal["drain", "stop"]

#: Seconds within which a reachable worker answers.
ANSWER = 5.0
#: Seconds between two polls of the workers table.
POLL = 0.5


def present(session: Session) -> list[str]:
    """Return the ids of the workers that are present."""
    return list(session.scalars(select(Worker.worker_id).where(Worker.status.in_(PRESENT)).order_by(Worker.worker_id)))


def dismiss(
    worker_ids: Sequence[str], order: Order, session: Session, app: Celery, timeout: float = ANSWER
) -> list[Row]:
    """Order workers to leave; return a row each: `worker_id`, `status`, `boot_id`, `answered`, tasks `running` there.

    A worker that is offline already is not asked: its `status` says so. Raises UnknownWorker if one is not recorded,
    and then orders none; or QueueUnavailable.
    """
    columns = (Worker.worker_id, Worker.status, Worker.boot_id)
    known = {row.worker_id: row for row in session.execute(select(*columns).where(Worker.worker_id.in_(worker_ids)))}
    if missing := [worker_id for worker_id in worker_ids if worker_id not in known]:
        raise UnknownWorker(
            f"No worker {missing[0]!r} is recorded, and none was told: `howl workers list` shows who is there."
        )
    asked = [worker_id for worker_id in worker_ids if known[worker_id].status != "offline"]
    answers = _tell(asked, order, app, timeout) if asked else {}
    return [
        {
            "worker_id": worker_id,
            "status": known[worker_id].status,
            "boot_id": known[worker_id].boot_id,
            "answered": worker_id in answers,
            "running": answers.get(worker_id, {}).get("running"),
        }
        for worker_id in worker_ids
    ]


def require_answers(rows: Sequence[Row], timeout: float = ANSWER) -> None:
    """Raise WorkerSilent if a worker that should have answered has not."""
    silent = [row["worker_id"] for row in rows if not row["answered"] and row["status"] != "offline"]
    if silent:
        raise WorkerSilent(
            f"{', '.join(silent)} did not answer within {timeout:g} s. A worker of the solo pool hears nothing while "
            "its task runs, and one of an older version does not know this order: try again, or end its process or its "
            "burst. If it is gone, what it held goes back on the queue by itself when its lease ends."
        )


def until_gone(rows: Sequence[Row], app: Celery, timeout: float) -> Iterator[list[Row]]:
    """Poll for workers and yield those still present, until none is left or `timeout` seconds have passed.

    A worker that was started again under its name, as a service manager does, counts as gone.
    """
    url = settings_of(app).database()
    lives = {row["worker_id"]: row["boot_id"] for row in rows}
    deadline = time.monotonic() + timeout
    while True:
        with postgres.session(url) as session:
            left = _still_there(lives, session)
        yield left
        if not left or time.monotonic() >= deadline:
            return
        time.sleep(POLL)


def _still_there(lives: dict[str, str | None], session: Session) -> list[Row]:
    columns = (Worker.worker_id, Worker.status, Worker.boot_id)
    there = select(*columns).where(Worker.worker_id.in_(lives), Worker.status.in_(PRESENT)).order_by(Worker.worker_id)
    return [dict(row) for row in session.execute(there).mappings() if row["boot_id"] == lives[row["worker_id"]]]


def _tell(worker_ids: list[str], order: Order, app: Celery, timeout: float) -> dict[str, Row]:
    """Send an order and return the answers by worker."""
    try:
        replies = app.control.broadcast(f"howl_{order}", destination=worker_ids, reply=True, timeout=timeout)
    except (OperationalError, RedisError) as error:
        raise QueueUnavailable(f"No worker was told: Redis does not answer ({reason(error)}). Try again.") from error
    return {worker_id_of(node): reply for answer in replies or () for node, reply in answer.items() if "ok" in reply}

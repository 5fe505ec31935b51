"""Ending a burst before its deadline, wherever its workers run."""

from datetime import timedelta
from typing import Any

from sqlalchemy import func, select

from howl.bursts import budget, github, records
from howl.bursts.local import REGISTER_TIMEOUT
from howl.bursts.records import ON_GITHUB
from howl.celery import create_app
from howl.config import Settings
from howl.connections import postgres
from howl.errors import WorkerSilent
from howl.models import Burst
from howl.remote_shutdown import dismiss, require_answers


def stop(burst_id: str, settings: Settings) -> dict[str, Any]:
    """Have a burst's workers put back what they cannot end, and leave; return the burst as a list shows it.

    Cancels the run on GitHub, or asks the workers on this machine to drain. A burst that has ended stays as it is.
    Raises UnknownBurst, GitHubFailed, NotConfigured, DatabaseUnavailable, QueueUnavailable, or WorkerSilent when a
    worker did not answer: the burst is then as it was.
    """
    with postgres.session(settings.database()) as session:
        row = records.find(session, burst_id)
    if row.ended_at is None:
        _end(row, settings)
    with postgres.session(settings.database()) as session:
        return records.summary(session, records.find(session, row.burst_id))


def _end(row: Burst, settings: Settings) -> None:
    if row.origin == ON_GITHUB:
        github.cancel(row, settings)
    else:
        _drain(row, settings)
    with postgres.session(settings.database()) as session:
        records.conclude(session, row.burst_id, "cancelled")
        if row.origin == ON_GITHUB:
            budget.give_up(session, row.burst_id, "stopped before its run began")


def _drain(row: Burst, settings: Settings) -> None:
    with postgres.session(settings.database()) as session:
        now = session.scalars(select(func.now())).one()
        if now > row.started_at + timedelta(minutes=row.runtime_minutes):
            return  # workers leave by themselves now, even those that hear nothing
        there = [worker.worker_id for worker in records.crew(session, row)]
        if len(there) < row.num_workers and now < row.started_at + timedelta(seconds=REGISTER_TIMEOUT):
            raise WorkerSilent(
                f"{len(there)} of the burst's {row.num_workers} workers have come so far, and one that has not hears "
                "nothing: stop it again in a moment."
            )
        app = create_app(settings)
        try:
            require_answers(dismiss(there, "drain", session, app))
        finally:
            app.close()

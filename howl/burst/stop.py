"""Ending a burst before its time, wherever its workers run."""

from typing import Any

from kombu.exceptions import OperationalError

from howl import db
from howl.burst import budget, github, record
from howl.burst.record import ON_GITHUB
from howl.burst.request import BurstRequest
from howl.celery import create_app
from howl.config import Settings
from howl.errors import QueueUnavailable
from howl.models import Burst
from howl.tls import reason


def stop(burst_id: str, settings: Settings) -> dict[str, Any]:
    """Its workers put back what they cannot end, and leave; returns what a list says of the burst.

    On GitHub the run is cancelled, here the workers are asked to drain. One that has ended stays as it is. Raises
    UnknownBurst, GitHubFailed, NotConfigured, DatabaseUnavailable or QueueUnavailable.
    """
    with db.session(settings.database()) as session:
        row = record.find(session, burst_id)
    if row.ended_at is None:
        _end(row, settings)
    with db.session(settings.database()) as session:
        return record.summary(session, record.find(session, row.burst_id))


def _end(row: Burst, settings: Settings) -> None:
    if row.origin == ON_GITHUB:
        github.cancel(row, settings)
    else:
        _drain(row, settings)
    with db.session(settings.database()) as session:
        record.conclude(session, row.burst_id, "cancelled")
        if row.origin == ON_GITHUB:
            budget.give_up(session, row.burst_id, "stopped before its run began")


def _drain(row: Burst, settings: Settings) -> None:
    names = BurstRequest(burst_id=row.burst_id, workers=row.num_workers, runtime=1).names
    app = create_app(settings)
    try:
        app.control.shutdown(destination=[f"celery@{name}" for name in names])
    except (OperationalError, OSError) as error:
        raise QueueUnavailable(f"The workers cannot be told: Redis does not answer ({reason(error)}).") from error
    finally:
        app.close()

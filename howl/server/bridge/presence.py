"""The workers table: which workers are present, have left, or are lost."""

import json
from datetime import datetime
from typing import Any, NamedTuple

from pydantic import AwareDatetime, BaseModel, Field
from sqlalchemy import or_, select, text, update
from sqlalchemy.orm import Session

from howl.models import Worker
from howl.server.recorder.quota import OVERHEAD, Budget


class Described(BaseModel):
    """A worker's description of itself; strict, because anyone with a worker's credential may write anything."""

    worker_id: str = Field(min_length=1, max_length=255)
    boot_id: str = Field(max_length=64)
    status: str = Field(pattern="^(active|draining|offline)$")
    manager_host: str | None = Field(None, max_length=255)
    hostname: str | None = Field(None, max_length=255)
    tags: list[str] = Field(default=[], max_length=100)
    queues: list[str] = Field(default=[], max_length=1000)
    origin: str = Field("local", max_length=64)
    concurrency: int | None = Field(None, ge=0, le=100_000)
    version: str | None = Field(None, max_length=64)
    #: None: not reported this time.
    tasks: list[str] | None = Field(None, max_length=10_000)
    run: dict[str, str] = Field(default={}, max_length=20)
    deadline_at: AwareDatetime | None = None


class Sighting(NamedTuple):
    """A worker's description and the time NATS received it, by the server's clock: the worker's may be wrong."""

    described: Described
    at: datetime
    #: Celery's event, for its listeners.
    event: dict[str, Any]
    #: The worker's credential, verified by NATS, whose HOWL_RECORD_LIMIT a new row counts against.
    credential: str

    def row(self) -> dict[str, Any]:
        row: dict[str, Any] = self.described.model_dump(mode="json")
        left = self.described.status == "offline"
        row |= {"credential": self.credential}
        return row | {"last_heartbeat_at": self.at.isoformat(), "offline_at": self.at.isoformat() if left else None}


def record(opened: Session, sightings: list[Sighting], budget: Budget) -> None:
    """Update the table; repeating it, or a report from an earlier boot, changes nothing.

    While a worker is present, no other credential can change its row: its name is taken. New workers are not recorded
    for a credential that is above HOWL_RECORD_LIMIT.
    """
    by_credential: dict[str, dict[str, Sighting]] = {}
    for sighting in sightings:
        newest = by_credential.setdefault(sighting.credential, {})
        known = newest.get(sighting.described.worker_id)
        if known is None or _supersedes(sighting, known):
            newest[sighting.described.worker_id] = sighting
            _remember_tasks(sighting, known)
    # Two sightings of one worker may not share a statement. One global order, so that no two transactions deadlock.
    for credential in sorted(by_credential):
        newest = by_credential[credential]
        for worker_id in _newcomers_above_the_limit(opened, credential, newest, budget):
            del newest[worker_id]
        rows = [newest[worker_id].row() for worker_id in sorted(newest)]
        opened.execute(text(_UPSERT), {"rows": json.dumps(rows)})


def _newcomers_above_the_limit(
    opened: Session, credential: str, newest: dict[str, Sighting], budget: Budget
) -> list[str]:
    known = set(opened.scalars(select(Worker.worker_id).where(Worker.worker_id.in_(newest))))
    newcomers = sorted(newest.keys() - known)
    if not newcomers or budget.allows(opened, credential, [OVERHEAD] * len(newcomers)):
        return []
    return newcomers


def mark_lost(opened: Session, since: datetime) -> list[str]:
    """Mark present workers as lost whose last heartbeat was before `since`; return their ids.

    A row that never had a heartbeat is left unchanged.
    """
    silent = Worker.last_heartbeat_at < since
    present = or_(Worker.status == "active", Worker.status == "draining")
    found = update(Worker).where(present, silent).values(status="lost").returning(Worker.worker_id)
    return list(opened.scalars(found).all())


def _supersedes(new: Sighting, old: Sighting) -> bool:
    """Apply the rule of the upsert below to two sightings of one batch, where one that is read again may come last."""
    if new.described.boot_id == old.described.boot_id and "offline" in (new.described.status, old.described.status):
        return new.described.status == "offline"
    return new.at >= old.at


def _remember_tasks(new: Sighting, old: Sighting | None) -> None:
    if old is not None and new.described.tasks is None and new.described.boot_id == old.described.boot_id:
        new.described.tasks = old.described.tasks


_TYPES = {
    "worker_id": "text", "boot_id": "text", "status": "text", "manager_host": "text", "hostname": "text",
    "tags": "text[]", "queues": "text[]", "tasks": "text[]", "origin": "text", "concurrency": "int", "version": "text",
    "run": "jsonb", "deadline_at": "timestamptz", "credential": "text", "last_heartbeat_at": "timestamptz",
    "offline_at": "timestamptz",
}  # fmt: skip

_UPSERT = f"""
INSERT INTO workers AS w ({", ".join(_TYPES)}, registered_at)
SELECT {", ".join(_TYPES)}, last_heartbeat_at
FROM json_to_recordset(CAST(:rows AS json)) AS given({", ".join(f"{name} {kind}" for name, kind in _TYPES.items())})
ON CONFLICT (worker_id) DO UPDATE SET
{", ".join(f"{name} = excluded.{name}" for name in _TYPES if name not in ("worker_id", "tasks"))},
tasks = CASE WHEN w.boot_id IS DISTINCT FROM excluded.boot_id
             THEN excluded.tasks ELSE coalesce(excluded.tasks, w.tasks) END,
registered_at = CASE WHEN w.boot_id IS DISTINCT FROM excluded.boot_id
                     THEN excluded.registered_at ELSE w.registered_at END
WHERE coalesce(w.last_heartbeat_at, '-infinity') <= excluded.last_heartbeat_at
  AND NOT (w.status = 'offline' AND w.boot_id IS NOT DISTINCT FROM excluded.boot_id)
  AND (coalesce(w.credential, excluded.credential) = excluded.credential OR w.status IN ('offline', 'lost'))
"""  # noqa: S608  # built from the names above alone

"""Rows of artifacts, the files that tasks left: written with outcomes, managed by the curator."""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Text, any_, cast, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session

from howl.artifacts import store
from howl.config import Settings
from howl.models import Artifact
from howl.outcomes import ArtifactKept
from howl.server_requests import pieces_of


def record(opened: Session, told: list[tuple[ArtifactKept, datetime]], settings: Settings) -> None:
    """Record reported files, each with the time Redis received the report; repeating it changes nothing.

    A task's file replaces an earlier one of its name.
    """
    newest: dict[tuple[str, str], dict[str, Any]] = {}
    for artifact, at in told:
        row = _row(artifact, at, settings)
        key = artifact.task_id, artifact.name
        # One row per file: an upsert may touch a row only once.
        if key not in newest or _replaces(row, newest[key]):
            newest[key] = row
    if newest:
        # In one global order, so that no two transactions deadlock.
        opened.execute(text(UPSERT), {"rows": json.dumps([newest[key] for key in sorted(newest)], default=_iso)})


def _replaces(row: dict[str, Any], earlier: dict[str, Any]) -> bool:
    """Apply the rule of the upsert below to two rows of one batch."""
    return bool(row["attempt"] >= earlier["attempt"] or row["created_at"] > earlier["created_at"])


def _iso(moment: datetime) -> str:
    return moment.isoformat()


def _row(artifact: ArtifactKept, at: datetime, settings: Settings) -> dict[str, Any]:
    # The worker's clock orders attempts, on one machine or two; a time in the future is not accepted.
    created = min(datetime.fromisoformat(artifact.at), at)
    return {
        "artifact_id": artifact.artifact_id,
        "task_id": artifact.task_id,
        "name": artifact.name,
        "media_type": artifact.media_type,
        "size": artifact.size,
        "sha256": artifact.sha256,
        "location": f"{store.bucket(settings.subject_prefix)}/{artifact.artifact_id}",
        "worker_id": artifact.worker_id,
        "attempt": artifact.attempt,
        "created_at": created,
        "expires_at": at + timedelta(seconds=settings.artifact_retention),
    }


def arriving(opened: Session, limit: int) -> list[Artifact]:
    """Return rows whose object has not been checked for yet, oldest first."""
    question = select(Artifact).where(Artifact.status == "arriving").order_by(Artifact.created_at).limit(limit)
    return list(opened.scalars(question))


def note(opened: Session, artifact_id: str, status: str) -> None:
    """Set the row's status, unless the row describes another object by now."""
    opened.execute(update(Artifact).where(Artifact.artifact_id == artifact_id).values(status=status))


class Doubt(NamedTuple):
    """A row that contradicts a listing of the bucket; its fields are named like the columns."""

    artifact_id: str
    size: int
    sha256: str
    status: str


def doubtful(opened: Session, whole: Mapping[str, int]) -> list[Doubt]:
    """Return rows that are `kept` without an object in `whole`, or `missing` with one; it gives their pieces."""
    columns = (Artifact.artifact_id, Artifact.size, Artifact.sha256, Artifact.status)
    rows = opened.execute(select(*columns).where(Artifact.status.in_(("kept", "missing"))))
    return [row for row in map(Doubt._make, rows.yield_per(1000)) if _is_there(row, whole) != (row.status == "kept")]


def _is_there(row: Doubt, whole: Mapping[str, int]) -> bool:
    # An empty file has one piece or none.
    return row.artifact_id in whole and (not row.size or whole[row.artifact_id] == pieces_of(row.size))


def which(opened: Session) -> tuple[Any, ...]:
    """Return values that change once PostgreSQL, its database or the table is another: restored, or started anew."""
    return tuple(opened.execute(text(WHICH)).one())


def take_expired(opened: Session, limit: int) -> list[str]:
    """Delete expired rows, and return the names of their objects."""
    due = select(Artifact.artifact_id).where(Artifact.expires_at < func.now()).order_by(Artifact.expires_at)
    gone = delete(Artifact).where(Artifact.artifact_id.in_(due.limit(limit))).returning(Artifact.artifact_id)
    return list(opened.scalars(gone))


def sizes(opened: Session, names: list[str]) -> dict[str, int | None]:
    """Return the size in bytes of each object that has a row; None if its content has not been verified."""
    question = select(Artifact.artifact_id, Artifact.size, Artifact.status)
    known = opened.execute(question.where(Artifact.artifact_id == any_(cast(names, ARRAY(Text)))))
    return {row.artifact_id: row.size if row.status == "kept" else None for row in known}


WHICH = """
SELECT oid, pg_relation_filenode('artifacts'), pg_postmaster_start_time()
FROM pg_database WHERE datname = current_database()
"""

_TYPES = {
    "artifact_id": "text", "task_id": "text", "name": "text", "media_type": "text", "size": "bigint", "sha256": "text",
    "location": "text", "worker_id": "text", "attempt": "int", "created_at": "timestamptz",
    "expires_at": "timestamptz",
}  # fmt: skip

# A late report of an earlier attempt, with an older file, does not replace the later attempt's file.
UPSERT = f"""
INSERT INTO artifacts AS a ({", ".join(_TYPES)})
SELECT {", ".join(_TYPES)}
FROM json_to_recordset(CAST(:rows AS json)) AS given({", ".join(f"{name} {kind}" for name, kind in _TYPES.items())})
ON CONFLICT (task_id, name) DO UPDATE SET
{", ".join(f"{name} = excluded.{name}" for name in _TYPES)},
status = CASE WHEN a.artifact_id = excluded.artifact_id THEN a.status ELSE 'arriving' END
WHERE excluded.attempt >= a.attempt OR excluded.created_at > a.created_at
"""  # noqa: S608  # built from the names above alone

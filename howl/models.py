"""The tables in PostgreSQL: everything that ever ran can be queried."""

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    Double,
    Identity,
    Index,
    MetaData,
    Text,
    UniqueConstraint,
    false,
    func,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

WORKER_STATUSES = ("active", "draining", "offline", "lost")
#: Statuses of workers that are present.
PRESENT = ("active", "draining")
TASK_STATUSES = ("queued", "started", "retrying", "succeeded", "failed", "cancelled", "expired", "dead")
ARTIFACT_STATUSES = ("arriving", "kept", "missing")


class Base(DeclarativeBase):
    """The base of all tables; it fixes names of constraints, so that migrations can refer to them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar = {
        str: Text,
        float: Double,
        datetime: DateTime(timezone=True),
        list[str]: ARRAY(Text),
        dict[str, Any]: JSONB,
    }


def _one_of(column: str, values: tuple[str, ...]) -> CheckConstraint:
    return CheckConstraint(f"{column} IN ({', '.join(repr(value) for value in values)})", name=column)


class Worker(Base):
    """A worker as the server last heard from it; a row that never had a heartbeat stays as written."""

    __tablename__ = "workers"
    __table_args__ = (_one_of("status", WORKER_STATUSES),)

    worker_id: Mapped[str] = mapped_column(primary_key=True)
    manager_host: Mapped[str | None]
    hostname: Mapped[str | None]
    status: Mapped[str] = mapped_column(server_default="active", index=True)
    tags: Mapped[list[str]] = mapped_column(server_default="{}")
    queues: Mapped[list[str]] = mapped_column(server_default="{}")
    origin: Mapped[str] = mapped_column(server_default="local")
    concurrency: Mapped[int | None]
    version: Mapped[str | None]
    #: Names of the tasks that it knows, without Celery's own; NULL: not reported yet.
    tasks: Mapped[list[str] | None]
    #: The burst run that it belongs to: repository, run id, attempt, index.
    run: Mapped[dict[str, Any]] = mapped_column(server_default="{}")
    #: Random id of the worker's current start.
    boot_id: Mapped[str | None]
    registered_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_heartbeat_at: Mapped[datetime | None]
    deadline_at: Mapped[datetime | None]
    offline_at: Mapped[datetime | None]
    #: The NATS user that it logs in as.
    credential: Mapped[str | None]


class Task(Base):
    """A task, whoever submitted it and wherever it ran; it only moves to a higher (attempts, rank)."""

    __tablename__ = "tasks"
    __table_args__ = (
        _one_of("status", TASK_STATUSES),
        # Maintenance reads only open tasks, the front doors the newest.
        Index("ix_tasks_open", "queued_at", postgresql_where="rank < 3"),
        Index("ix_tasks_queued_at", "queued_at"),
        # Queried twice a second by everyone who watches; a short run, of which only the end is reported, costs nothing.
        Index("ix_tasks_running", "worker_id", postgresql_where="status = 'started'"),
    )

    task_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(index=True)
    description: Mapped[str | None]
    args: Mapped[list[Any] | None] = mapped_column(JSONB)
    kwargs: Mapped[dict[str, Any] | None]
    queue: Mapped[str | None]
    priority: Mapped[int | None]
    status: Mapped[str] = mapped_column(server_default="queued")
    #: 0 queued, 1 started, 2 retrying, 3 ended: see howl.outcomes.
    rank: Mapped[int] = mapped_column(server_default="0")
    worker_id: Mapped[str | None] = mapped_column(index=True)
    #: The one worker that it was assigned to, if any.
    target_worker_id: Mapped[str | None]
    parent_id: Mapped[str | None] = mapped_column(index=True)
    root_id: Mapped[str | None]
    group_id: Mapped[str | None] = mapped_column(index=True)
    #: Of a task that nobody submitted: the Redis user that reported its status and queue. NULL: a submitter did, or a
    #: user that may do everything.
    redis_user: Mapped[str | None]
    submitted_by: Mapped[str | None]
    idempotency_key: Mapped[str | None] = mapped_column(unique=True)
    attempts: Mapped[int] = mapped_column(server_default="0")
    #: Seconds a run may take.
    time_limit: Mapped[float | None]
    expires_at: Mapped[datetime | None]
    queued_at: Mapped[datetime] = mapped_column(server_default=func.now())
    pushed_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    #: Seconds by the worker's clock.
    runtime: Mapped[float | None]
    result: Mapped[Any | None] = mapped_column(JSONB)
    #: JSON as reported, of those among result, error, args and kwargs that JSONB changes: howl.server.storable.
    exact: Mapped[str | None]
    error_type: Mapped[str | None]
    error_message: Mapped[str | None]
    #: The exception as Celery prepares it, from which its clients restore it.
    error: Mapped[dict[str, Any] | None]
    traceback: Mapped[str | None]
    #: Celery's tuples of the tasks that this one published.
    children: Mapped[list[Any] | None] = mapped_column(JSONB)


class TaskEvent(Base):
    """An event of a task, append-only; `source` names the message that it came from, so that none counts twice."""

    __tablename__ = "task_events"
    # Queries for what follows an event come several times a second, for tasks with up to tens of thousands.
    __table_args__ = (Index("ix_task_events_task_id_event_id", "task_id", "event_id"),)

    event_id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    task_id: Mapped[str]
    worker_id: Mapped[str | None]
    kind: Mapped[str]
    at: Mapped[datetime] = mapped_column(server_default=func.now(), index=True)
    data: Mapped[dict[str, Any]] = mapped_column(server_default="{}")
    source: Mapped[str | None] = mapped_column(unique=True)


class Artifact(Base):
    """A file that a task produced; it may be reported before the task itself is."""

    __tablename__ = "artifacts"
    __table_args__ = (
        _one_of("status", ARTIFACT_STATUSES),
        Index("ix_artifacts_arriving", "created_at", postgresql_where="status = 'arriving'"),
        UniqueConstraint("task_id", "name"),
    )

    #: The object's name, chosen at random by its worker.
    artifact_id: Mapped[str] = mapped_column(primary_key=True)
    task_id: Mapped[str]
    name: Mapped[str]
    media_type: Mapped[str]
    #: Bytes.
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
    #: The object store's bucket and the object's name.
    location: Mapped[str]
    #: `arriving` until the server has checked for the object, then `kept`, or `missing`.
    status: Mapped[str] = mapped_column(server_default="arriving")
    worker_id: Mapped[str | None]
    #: The task's attempt that produced it.
    attempt: Mapped[int] = mapped_column(server_default="1")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now(), index=True)
    #: Time at which it will be deleted.
    expires_at: Mapped[datetime | None] = mapped_column(index=True)


class Burst(Base):
    """Workers started for a limited time: the request, who made it, and the run that resulted."""

    __tablename__ = "bursts"

    burst_id: Mapped[str] = mapped_column(primary_key=True)
    origin: Mapped[str]
    requested_by: Mapped[str | None]
    num_workers: Mapped[int]
    runtime_minutes: Mapped[float]
    #: The rest of the request: tags, queues, concurrency.
    request: Mapped[dict[str, Any]] = mapped_column(server_default="{}")
    run: Mapped[dict[str, Any]] = mapped_column(server_default="{}")
    minutes_planned: Mapped[float]
    minutes_used: Mapped[float | None]
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    ended_at: Mapped[datetime | None]


class Chord(Base):
    """A chord whose body the recorder submits when every part has ended."""

    __tablename__ = "chords"
    __table_args__ = (
        # Per user: none must keep another from reporting a group whose id both know.
        UniqueConstraint("group_id", "redis_user", postgresql_nulls_not_distinct=True),
        Index("ix_chords_waiting", "waits_for", postgresql_where="body_submitted_at IS NULL"),
    )

    chord_id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    group_id: Mapped[str]
    parts: Mapped[list[str]]
    #: Number of parts, and of those, from the first on, that are known to have ended.
    size: Mapped[int] = mapped_column(server_default="0")
    ended: Mapped[int] = mapped_column(server_default="0")
    #: The first part that has not ended; NULL: not known yet. Only its end causes this row to be read.
    waits_for: Mapped[str | None]
    #: Celery's documents as text, because JSONB would change numbers in them.
    header: Mapped[str]
    body: Mapped[str]
    #: The Redis user whose workers reported it: the body is published with its rights. NULL: with the server's own.
    redis_user: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now(), index=True)
    #: Time at which it stopped waiting: its body was submitted, or it expired.
    body_submitted_at: Mapped[datetime | None]
    expired: Mapped[bool] = mapped_column(server_default=false())


class StoredPiece(Base):
    """A piece of a large chord that is not completely reported yet: see howl.server.chords.pieces."""

    __tablename__ = "chord_pieces"
    __table_args__ = (UniqueConstraint("group_id", "redis_user", "number", postgresql_nulls_not_distinct=True),)

    piece_id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    group_id: Mapped[str]
    redis_user: Mapped[str | None]
    number: Mapped[int]
    text: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now(), index=True)


class RecordUsage(Base):
    """Usage of HOWL_RECORD_LIMIT by one Redis user's workers: see howl.server.recorder.quota."""

    __tablename__ = "record_usage"

    redis_user: Mapped[str] = mapped_column(primary_key=True)
    #: Bytes of the limit in use when the row was written; they run off at the limit's rate.
    level: Mapped[float]
    #: Totals: bytes on disk, about; entries; and entries that were refused.
    bytes: Mapped[int] = mapped_column(BigInteger, server_default="0")
    entries: Mapped[int] = mapped_column(BigInteger, server_default="0")
    refused: Mapped[int] = mapped_column(BigInteger, server_default="0")
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())

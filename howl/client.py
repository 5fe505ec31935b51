"""Submitting a task from a program, on the settings of its environment: `from howl import submit`."""

from collections.abc import Mapping, Sequence
from typing import Any

from howl import celery, submission
from howl.config import load_settings
from howl.connections.postgres import session


def submit(
    name: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, *, queue: str | None = None,
    worker_id: str | None = None, priority: int | None = None, time_limit: float | None = None,
    expires_in: float | None = None, idempotency_key: str | None = None, description: str | None = None,
    submitted_by: str | None = None,
) -> str:  # fmt: skip
    """Record a task, push it, and return its id: what `howl submit` does.

    `priority` is 0 (first) to 9; `time_limit` and `expires_in` are seconds. Under an idempotency key that is known, the
    first such task's id is returned. Raises UnknownTask, InvalidRequest, UnknownWorker, NotConfigured,
    DatabaseUnavailable or QueueUnavailable (howl.errors): one sentence each, saying what to do.
    """
    request = submission.TaskRequest(
        name=name, args=list(args), kwargs=dict(kwargs or {}), queue=queue, worker_id=worker_id, priority=priority,
        time_limit=time_limit, expires_in=expires_in, idempotency_key=idempotency_key, description=description,
        submitted_by=submitted_by,
    )  # fmt: skip
    with session(load_settings().database()) as opened:
        return submission.submit(request, opened, celery.app)

"""A worker's identity: what it reports to the server of itself with every heartbeat."""

import os
import re
import socket
import uuid
from itertools import accumulate
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from celery.worker import state

import howl
from howl.broker.namespaces import DEFAULT_USER, user_of
from howl.celery import settings_of, worker_queue
from howl.config import Settings
from howl.node_names import worker_id_of
from howl.outcomes import is_id

#: GitHub's variables, and the burst workflow's own, by the name under which a run is recorded.
RUN_VARIABLES = {
    "repository": "GITHUB_REPOSITORY",
    "run_id": "GITHUB_RUN_ID",
    "attempt": "GITHUB_RUN_ATTEMPT",
    "job": "GITHUB_JOB",
    "index": "HOWL_WORKER_INDEX",
    "burst_id": "HOWL_BURST_ID",
}
#: Most bytes of the names of tasks that are reported.
TASKS_BYTES = 1 << 15


class Identity:
    """One life of one worker; `boot_id` is random, so that a restarted worker differs from its predecessor."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.settings = settings_of(worker.app)
        self.node_name: str = worker.hostname
        self.worker_id = worker_id_of(worker.hostname)
        self.boot_id = uuid.uuid4().hex[:12]

    def describe(self) -> dict[str, Any]:
        """Return what the workers table holds of this worker."""
        settings = self.settings
        return {
            "worker_id": self.worker_id,
            "boot_id": self.boot_id,
            "status": "draining" if state.should_stop is not None or state.should_terminate is not None else "active",
            "manager_host": settings.manager_host or urlsplit(settings.redis()).hostname,
            "hostname": socket.gethostname(),
            "tags": list(settings.worker_tags),
            "queues": self._queues(),
            "origin": origin(settings),
            "concurrency": self.worker.concurrency,
            "version": howl.__version__,
            "run": {name: value for name, variable in RUN_VARIABLES.items() if (value := os.environ.get(variable))},
            "deadline_at": settings.worker_deadline.isoformat() if settings.worker_deadline else None,
        }

    def tasks(self) -> list[str]:
        """Return the names of the tasks that this worker knows, except Celery's own; only the first of very many."""
        names = sorted(name for name in self.worker.app.tasks if not name.startswith("celery."))
        ends = accumulate(len(name.encode()) for name in names)
        return [name for name, end in zip(names, ends, strict=True) if end <= TASKS_BYTES and is_id(name)]

    def _queues(self) -> list[str]:
        own = worker_queue(self.worker_id).name
        return sorted(name for name in self.worker.app.amqp.queues.consume_from if name != own)


def default_name(settings: Settings) -> str:
    """Return a worker's id for when nobody chose one.

    Under GitHub Actions it is made of the run, and begins with the credential's name: only then may the worker be
    assigned tasks by its name (docs/security.md). Without an index in the workflow's matrix, the runner's name is used.
    """
    run, attempt = os.environ.get("GITHUB_RUN_ID"), os.environ.get("GITHUB_RUN_ATTEMPT", "1")
    if os.environ.get("GITHUB_ACTIONS") != "true" or not run:
        return f"{socket.gethostname()}-{os.getpid()}"
    user = user_of(settings)
    index = os.environ.get("HOWL_WORKER_INDEX") or os.environ.get("RUNNER_NAME") or str(os.getpid())
    return f"{'worker' if user == DEFAULT_USER else user}-{run}-{attempt}-{re.sub(r'[^A-Za-z0-9_-]+', '-', index)}"


def origin(settings: Settings) -> str:
    """Return where this worker runs: as configured, else as its surroundings show."""
    if settings.worker_origin:
        return settings.worker_origin
    if os.environ.get("GITHUB_ACTIONS") == "true":
        return "github-actions"
    return "docker" if Path("/.dockerenv").exists() else "local"

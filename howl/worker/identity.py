"""Who a worker is: what it tells the server of itself with every heartbeat."""

import os
import socket
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from celery.worker import state

import howl
from howl.celery import settings_of, worker_id_of, worker_queue
from howl.config import Settings

#: GitHub's variables, by the name under which a run is recorded.
RUN_VARIABLES = {
    "repository": "GITHUB_REPOSITORY",
    "run_id": "GITHUB_RUN_ID",
    "attempt": "GITHUB_RUN_ATTEMPT",
    "job": "GITHUB_JOB",
}


class Identity:
    """One life of one worker; `boot_id` is random, so that a restarted worker is told from its predecessor."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.settings = settings_of(worker.app)
        self.node_name: str = worker.hostname
        self.worker_id = worker_id_of(worker.hostname)
        self.boot_id = uuid.uuid4().hex[:12]

    def describe(self) -> dict[str, Any]:
        """What the workers table holds of this worker."""
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
            "run": {name: os.environ[variable] for name, variable in RUN_VARIABLES.items() if variable in os.environ},
            "deadline_at": settings.worker_deadline.isoformat() if settings.worker_deadline else None,
        }

    def _queues(self) -> list[str]:
        own = worker_queue(self.worker_id).name
        return sorted(name for name in self.worker.app.amqp.queues.consume_from if name != own)


def origin(settings: Settings) -> str:
    """Where this worker runs: as told, else as its surroundings show."""
    if settings.worker_origin:
        return settings.worker_origin
    if os.environ.get("GITHUB_ACTIONS") == "true":
        return "github-actions"
    return "docker" if Path("/.dockerenv").exists() else "local"

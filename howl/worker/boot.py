"""A worker's first step: is there a queue to work from?"""

from typing import Any

from celery import bootsteps

from howl.backend import require_redis
from howl.celery import settings_of


class Preflight(bootsteps.Step):
    """Ends the worker with one clear sentence, not a traceback a minute later, when Redis cannot be used."""

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        require_redis(settings_of(parent.app))

"""HOWL: a Celery task queue whose workers live far away and die young.

What authors of tasks and of clients import is here, and nothing else is public: `from howl import task, progress`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery import shared_task as task

    from howl.celery import app, install
    from howl.client import submit
    from howl.worker.task.context import artifact, log, progress

__all__ = ["app", "artifact", "install", "log", "progress", "submit", "task"]
__version__ = "0.1.0"

#: Where each name is, and what it is called there: loaded when it is first asked for. `howl --help` must not pay for
#: Celery's import, nor a task for PostgreSQL's.
_PLACES = {
    "app": ("howl.celery", "app"),
    "artifact": ("howl.worker.task.context", "artifact"),
    "install": ("howl.celery", "install"),
    "log": ("howl.worker.task.context", "log"),
    "progress": ("howl.worker.task.context", "progress"),
    "submit": ("howl.client", "submit"),
    "task": ("celery", "shared_task"),
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, called = _PLACES[name]
    return getattr(import_module(module), called)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])

"""Idempotency keys: what a repeated request must have in common with the first request of its key."""

from decimal import Decimal
from typing import Any

from howl.errors import InvalidRequest
from howl.models import Task

#: Columns that must be equal, with the names that people use. Not among them are values that only people read (the
#: description, the submitter) and `expires_in`, which counts from each request anew. The queue names the worker too.
COMPARED = {
    "name": "name",
    "args": "arguments",
    "kwargs": "arguments",
    "queue": "queue or worker",
    "priority": "priority",
    "time_limit": "time limit",
}


def require_same(first: Task, row: dict[str, Any]) -> None:
    """Raise InvalidRequest, naming what differs and no values, unless a request's `row` asks for the `first` task."""
    other = [called for name, called in COMPARED.items() if not _equal(getattr(first, name), row[name])]
    if other:
        raise InvalidRequest(
            f"This idempotency key is that of task {first.task_id}, and this request differs from it in "
            f"{', '.join(dict.fromkeys(other))}: give other work a key of its own."
        )


def _equal(stored: Any, given: Any) -> bool:
    """Compare as JSON: true is not 1, and PostgreSQL writes 1e23 in full, so that it is read as another number."""
    if isinstance(stored, dict) and isinstance(given, dict):
        named = {str(name): value for name, value in given.items()}
        return stored.keys() == named.keys() and all(_equal(value, named[name]) for name, value in stored.items())
    if isinstance(stored, list) and isinstance(given, list | tuple):
        return len(stored) == len(given) and all(map(_equal, stored, given))
    if isinstance(stored, bool) or isinstance(given, bool):
        return stored is given
    if isinstance(stored, int) and isinstance(given, float):
        return Decimal(repr(given)) == stored
    return bool(stored == given)
